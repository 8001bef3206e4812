"""DenseNets against torchvision's, and rematerialised ones against those that keep everything."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.training.network import Noise, initialise, outline
from nas.training.optimiser import Rates
from nas.training.programs import Batch, Runner, Shape, lower_step, mean_loss
from search_spaces.densenet import NAMED, SPACE, build

SMALL = NAMED["densenet121"].arch.set(
    width=8, growth=4, **{f"layers_{stage}": count for stage, count in enumerate((3, 2, 4, 1), 1)}
)
TINY = NAMED["densenetbc100"].arch.set(width=8, growth=4, layers_1=4, layers_2=3, layers_3=2)
SHAPE = Shape(
    image_shape=(16, 16, 3), num_classes=10, batch_size=4, evaluate_batch_size=4, optimiser="nesterov"
)


def torch_name(path):
    """Torchvision's name of the module that a path into our parameters means."""
    node, *inner = path
    part = inner[0] if inner and inner[0] in ("squeeze", "grow") else None
    if node == "logits":
        return "classifier", "classifier"
    if node == "norm":
        return "features.norm5", ""
    if node.startswith("transition_"):
        place = f"features.transition{int(node[-1]) - 1}"
        return f"{place}.norm", f"{place}.conv"
    if node.startswith("layer_"):
        _, stage, number = node.split("_")
        place, which = f"features.denseblock{stage}.denselayer{number}", {"squeeze": 1, "grow": 2}[part or ""]
        return f"{place}.norm{which}", f"{place}.conv{which}"
    return {"conv_0": ("", "features.conv0"), "norm_0": ("features.norm0", "")}[node]


def from_torch(state, like):
    """``like``, a tree of variables, with the values (or gradients) of torchvision's ``state``."""
    leaves = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

    def value(path, leaf):
        keys = [str(key.key) for key in path]
        norm, other = torch_name(keys[:-1])
        if keys[-1] == "kernel":
            found = state[f"{other}.weight"]
            axes = (2, 3, 1, 0) if found.ndim == 4 else (1, 0)
            found = found.permute(*axes)
        else:
            found = state[f"{norm}.{leaves[keys[-1]]}"]
        assert found.shape == leaf.shape
        return jnp.asarray(found.detach().numpy())

    return jax.tree_util.tree_map_with_path(value, like)


def randomise(torch, model):
    """Statistics and normalisations other than those of a new network."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_densenet121_has_the_logits_of_torchvision():
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    theirs = models.densenet121(weights=None).eval()
    randomise(torch, theirs)
    network = build(NAMED["densenet121"].arch, 1000)
    variables = outline(network, (64, 64, 3)).variables
    state = theirs.state_dict()
    variables = {name: from_torch(state, tree) for name, tree in variables.items()}
    x = images((2, 64, 64, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_gradients_are_those_of_torchvision():
    """Every map of a block has many readers: their gradients must add up."""
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    theirs = models.DenseNet(growth_rate=4, block_config=(3, 2, 4, 1), num_init_features=8, num_classes=10)
    randomise(torch, theirs)
    network = build(SMALL, 10)
    variables = outline(network, (64, 64, 3)).variables
    state = theirs.state_dict()
    variables = {name: from_torch(state, tree) for name, tree in variables.items()}
    x, target = images((4, 64, 64, 3)), np.eye(10, dtype=np.float32)[[1, 5, 0, 9]]

    logits = theirs.train()(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target))
    loss.backward()
    expected = from_torch({name: p.grad for name, p in theirs.named_parameters()}, variables["params"])

    def loss_of(params):
        given = {**variables, "params": params}
        logits, _ = network.apply(given, x, train=True, mutable=["batch_stats"])
        return mean_loss(logits, jnp.asarray(target))

    value, grads = jax.jit(jax.value_and_grad(loss_of))(variables["params"])
    assert float(value) == pytest.approx(loss.item(), rel=1e-4)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale, rtol=1e-3), grads, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"bottleneck": False, "compression": 1.0}]
)
def test_rematerialised_training_has_the_same_numbers(changes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 4).astype(np.int32)
    batch = Batch(jnp.asarray(images((4, 16, 16, 3))), jnp.eye(10)[labels], jnp.asarray(labels))
    noise = Noise(np.float32(0.3), np.uint32(7))
    rates = Rates(np.float32(0.1), np.float32(1e-4))
    found = []
    for remat in (False, True):
        network = build(TINY.set(remat=remat, dropout_at="convolutions", **changes), 10)
        runner = Runner(network, SHAPE)
        runner.compile()
        state = runner.init(3)
        for _ in range(2):
            state, loss, logits = runner.step(state, batch, noise, rates, np.float32(0))
        found.append((loss, logits, state.variables, runner.predict(state.variables, batch.images)))
    # The same operations in the same order, so nearly to the bit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.slow
def test_rematerialising_saves_memory():
    """XLA must not merge the second computation with the first, as it does with jax.checkpoint's on CPU."""
    kept = []
    for remat in (False, True):
        arch = TINY.set(remat=remat, layers_1=8, layers_2=1, layers_3=1)
        analysis = lower_step(build(arch, 10), SHAPE).compile().memory_analysis()
        assert analysis is not None
        kept.append(analysis.temp_size_in_bytes)
    assert kept[1] < 0.6 * kept[0]


def test_outline_counts_what_a_block_keeps():
    """Layer i of the first block joins 8 + 4i channels, normalises them and has 16 + 16 + 4 channels behind."""
    full, remat = (
        outline(build(TINY.set(remat=on), 10), (16, 16, 3)).activation_bytes for on in (False, True)
    )
    pixels = 16 * 16 * 4
    joined = sum(2 * (8 + 4 * i) for i in range(1, 4)) + 8  # the first layer has nothing to join
    assert full - remat >= pixels * (joined + 4 * 16)


@pytest.mark.slow
def test_dropout_behind_convolutions_or_before_the_classifier():
    """Section 4.2: rate 0.2 behind every convolution but the first, where there is no augmentation."""
    x = jnp.asarray(images((2, 16, 16, 3)))

    def zeros(where):
        network = build(TINY.set(dropout_at=where), 10)
        variables = initialise(network, 0, (16, 16, 3), "float32")

        def outputs_of(variables):
            return network.apply(
                variables,
                x,
                train=True,
                dropout=jnp.float32(0.2),
                seed=jnp.uint32(1),
                capture_intermediates=True,
                mutable=["batch_stats", "intermediates"],
            )

        outputs = jax.jit(outputs_of)(variables)[1]["intermediates"]
        names = ("conv_0", "layer_1_1", "layer_1_2", "transition_2", "layer_3_1")
        return [float((outputs[name]["__call__"][0] == 0).mean()) for name in names]

    assert zeros("classifier") == [0.0] * 5
    first, *others = zeros("convolutions")
    assert first == 0.0
    assert others == pytest.approx([0.2] * 4, abs=0.06)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("image_shape", [(8, 8, 1), (13, 17, 2), (28, 28, 1)])
@pytest.mark.some(3)
def test_every_stem_runs_on_any_image(stem, image_shape):
    network = build(SMALL.set(stem=stem), 7)
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    logits = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=False), outline(network, image_shape).variables, image
    )
    assert logits.shape == (2, 7)


@pytest.mark.slow
def test_the_searched_part_is_small():
    searched = SPACE.searched()
    for i in range(20):
        network = build(searched.sample((1, i)), 10)
        assert len(network.nodes) < 25
        assert outline(network, (8, 8, 1)).macs_per_image < 3e6
