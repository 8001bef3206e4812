"""Inception networks against torch: GoogLeNet's layers by torch's own functions, torchvision's model as a whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.errors import InputError
from nas.nn.noise import dropout, node_seed
from nas.objectives.train import build
from nas.training.network import Noise, apply_train, initialise
from search_spaces.inception import AUXILIARY_DROPOUT, GOOGLENET, NAMED, SPACE, Widths, widths_of


def drawn(network, image_shape, seed=0):
    """Variables from ``seed``, biases, scales and statistics too, which are zeros and ones at first."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return np.array(leaf)
        if path[-1].key in ("scale", "var"):
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
        return np.float32(rng.normal(0, 0.1, leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, initialise(network, seed, image_shape, "float32"))


def logits_of(network, variables, images):
    return np.asarray(jax.jit(functools.partial(network.apply, train=False))(variables, jnp.asarray(images)))


def test_batch_normalised_googlenet_equals_torchvision():
    models = pytest.importorskip("torchvision").models
    torch = pytest.importorskip("torch")
    network = build(SPACE, NAMED["googlenet_bn"].arch, 10)
    shape = (64, 64, 3)
    variables = drawn(network, shape)
    theirs = models.googlenet(weights=None, num_classes=10, aux_logits=False, init_weights=False).eval()
    params, statistics = variables["params"], variables["batch_stats"]
    layers = [m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
    ours = [node.name for node in network.nodes if node.name.startswith(("conv_", "norm_"))]

    def put(parameter, array):
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    with torch.no_grad():
        for layer, name in zip(layers, ours, strict=True):  # both in the order of figure 3
            if name.startswith("conv_"):
                put(layer.weight, params[name]["kernel"].transpose(3, 2, 0, 1))
                continue
            put(layer.weight, params[name]["scale"])
            put(layer.bias, params[name]["bias"])
            put(layer.running_mean, statistics[name]["mean"])
            put(layer.running_var, statistics[name]["var"])
        put(theirs.fc.weight, params["logits"]["kernel"].T)
        put(theirs.fc.bias, params["logits"]["bias"])
        images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits_of(network, variables, images), expected, rtol=1e-4, atol=1e-4)


def googlenet_in_torch(params, images):
    """Szegedy et al. 2014, table 1 and section 5: logits, and the features before each auxiliary dropout."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional

    def tensor(array):
        return torch.from_numpy(np.array(array))

    def conv(name, x, stride=1):
        kernel = tensor(params[f"conv_{name}"]["kernel"]).permute(3, 2, 0, 1)
        bias = tensor(params[f"norm_{name}"]["bias"])
        return f.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2).relu()

    def response(x):  # torch takes the mean over the 5 channels where the paper takes the sum
        return f.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)

    def shrink(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    x = response(shrink(conv("1", tensor(images).permute(0, 3, 1, 2), 2)))
    x = shrink(response(conv("3", conv("2", x))))
    features = []
    for stage, modules in ((1, 2), (2, 5), (3, 2)):
        x = shrink(x) if stage > 1 else x
        for i in range(1, modules + 1):
            name = f"{stage}_{i}"
            branches = [conv(f"{name}_1x1", x)]
            branches += [conv(f"{name}_{b}", conv(f"{name}_{b}_reduce", x)) for b in ("3x3", "large")]
            branches.append(conv(f"{name}_project", f.max_pool2d(x, 3, 1, 1)))
            x = torch.cat(branches, 1)
            if name in ("2_1", "2_4"):  # 4a and 4d
                head = f"auxiliary_{len(features) + 1}"
                y = conv(head, f.avg_pool2d(x, 5, 3)).permute(0, 2, 3, 1).flatten(1)
                y = y @ tensor(params[f"{head}_dense"]["kernel"]) + tensor(params[f"{head}_act"]["bias"])
                features.append(y.relu().numpy())
    logits = x.mean((2, 3)) @ tensor(params["logits"]["kernel"]) + tensor(params["logits"]["bias"])
    return logits.numpy(), features


@pytest.fixture(scope="module")
def eighth():
    """GoogLeNet with its auxiliary classifiers at an eighth of its widths, on images whose sums of squares matter."""
    network = build(SPACE, NAMED["googlenet_aux"].arch.set(scale=0.125, stem_width=8), 7)
    shape = (128, 128, 3)
    images = np.random.default_rng(1).normal(0, 100, (2, *shape)).astype(np.float32)
    return network, drawn(network, shape), images


def test_published_googlenet_equals_torchs_functions(eighth):
    network, variables, images = eighth
    expected, _ = googlenet_in_torch(variables["params"], images)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(network, variables, images), expected, rtol=1e-4, atol=1e-4)


def test_auxiliary_classifiers_equal_torchs_functions_but_for_dropout(eighth):
    network, variables, images = eighth
    _, features = googlenet_in_torch(variables["params"], images)
    noise = Noise(np.float32(0), np.uint32(5))
    train = jax.jit(lambda v, x: apply_train(network, v, (x,), noise))
    logits, _, extra = train(variables, jnp.asarray(images))
    np.testing.assert_allclose(logits, logits_of(network, variables, images), rtol=1e-4, atol=1e-4)
    assert [float(weight) for weight, _ in extra.auxiliary] == pytest.approx([0.3, 0.3])
    names = [node.name for node in network.nodes]
    for i, (feature, (_, found)) in enumerate(zip(features, extra.auxiliary, strict=True), 1):
        own = variables["params"][f"auxiliary_{i}"]
        seed = node_seed(5, names.index(f"auxiliary_{i}"))
        kept = np.asarray(dropout(jnp.asarray(feature), AUXILIARY_DROPOUT, seed))
        assert 0.2 < np.mean(kept[feature > 0] > 0) < 0.4
        np.testing.assert_allclose(found, kept @ own["kernel"] + own["bias"], rtol=1e-4, atol=1e-4)


def test_widths_are_the_published_ones_and_shares_of_a_module():
    published = NAMED["googlenet"].arch
    assert [[widths_of(published, s, m) for m in range(1, n + 1)] for s, n in ((1, 2), (2, 5), (3, 2))] == [
        list(stage) for stage in GOOGLENET
    ]
    assert [stage[-1].total for stage in GOOGLENET] == [480, 832, 1024]
    arch = SPACE.sample(0).set(widths="shares", width_1=128, share_1x1_1=2, share_3x3_1=4, share_large_1=1)
    arch = arch.set(share_pool_1=1, reduce_3x3_1=0.75, reduce_large_1=0.5)
    assert widths_of(arch, 1, 1) == Widths(32, 48, 64, 8, 16, 16)  # 1/4, 1/2, 1/8 and 1/8 of 128
    alone = arch.set(share_1x1_1=0, share_large_1=0, share_pool_1=0, reduce_3x3_1=0.0)
    assert widths_of(alone.without("reduce_large_1"), 1, 1) == Widths(0, 0, 128, 0, 0, 0)


def test_branches_that_a_module_does_not_have_are_not_built():
    base = (
        "stem=small,stem_width=8,stages=1,modules_1=1,widths=shares,width_1=16,share_1x1_1={},share_3x3_1={}"
    )
    base += (
        ",share_large_1=0,share_pool_1={}{},large_kernel=5,normalisation=batch,activation=relu,dropout=0.0"
    )
    base += ",optimiser=adamw,learning_rate=0.001,schedule=cosine,batch_size=32,weight_decay=1e-06"
    base += ",label_smoothing=0.0,augmentation=none"

    def names(*shares):
        arch = SPACE.from_string(base.format(*shares))
        return [
            n.name for n in build(SPACE, arch, 7).nodes if n.name.startswith(("conv_1_", "pool", "module"))
        ]

    assert names(1, 0, 0, "") == ["conv_1_1_1x1"]
    assert names(0, 1, 0, ",reduce_3x3_1=0.0") == ["conv_1_1_3x3"]
    assert names(0, 1, 1, ",reduce_3x3_1=0.5") == [
        "conv_1_1_3x3_reduce",
        "conv_1_1_3x3",
        "pool_1_1",
        "conv_1_1_project",
        "module_1_1",
    ]
    with pytest.raises(InputError, match="a module of stage 1 has a branch"):
        names(0, 0, 0, "")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.some(1)
def test_named_networks_run_on_small_images(name):
    network = build(SPACE, NAMED[name].arch, 7)
    noise = Noise(np.float32(0.4), np.uint32(0))
    for shape in ((8, 8, 1), (13, 17, 2)):
        image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        variables = jax.eval_shape(lambda x=image: network.lazy_init(jax.random.key(0), x))
        logits, _, extra = jax.eval_shape(lambda v, x: apply_train(network, v, (x,), noise), variables, image)
        assert logits.shape == (2, 7)
        assert [head.shape for _, head in extra.auxiliary] == [(2, 7)] * (2 if name == "googlenet_aux" else 0)
