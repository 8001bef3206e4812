"""Elastic supernets: paths against networks cut out, one program for many, the sandwich's gradient, recalibration."""

from __future__ import annotations

import functools
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.goals import parse_goals
from nas.objectives.base import TrialFailed
from nas.objectives.elastic import ElasticObjective, ElasticSetup
from nas.objectives.quantities import QuantitiesSetup, sign_of
from nas.oneshot import elastic_training
from nas.oneshot.elastic import Elastic, sub_network
from nas.oneshot.elastic_training import ElasticSettings, ElasticTraining, Phase, shrinking
from nas.run.elastic import best, told
from nas.strategies import STRATEGIES
from nas.strategies.evolution import EvolutionConfig
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Data
from nas.training.network import Noise, apply_evaluate, apply_train
from nas.trial import Trial
from search_spaces import SPACES
from search_spaces.chain import chain_space

CHAIN = chain_space(max_depth=3, widths=(4, 8), kernels=(1, 3, 5))
PLAIN = ("normalisation=batch", "activation=relu", "stride=1", "downsample_every=2", "head_depth=0")
FAMILIES: dict[str, tuple[Any, Any, tuple[int, int, int]]] = {
    "chain": (
        CHAIN.restrict(fix=(*PLAIN, "connections=plain", "pooling=max", "depth=2")),
        ("kernel", "width"),
        (6, 6, 1),
    ),
    "chain by depth": (
        CHAIN.restrict(fix=(*PLAIN, "connections=residual", "pooling=none", "width=4")),
        ("kernel", "depth"),
        (5, 5, 2),
    ),
    "resnet": (
        SPACES["resnet"].restrict(
            fix=[
                "stem=small",
                "stages=3",
                "preactivation=False",
                "connections=residual",
                "block=basic",
                "shortcut=A",
            ],
            narrow=("blocks=1..2", "width=8,16"),
        ),
        ("blocks", "width"),
        (8, 8, 3),
    ),
    "mbconv": (
        SPACES["mbconv"].restrict(
            fix=(
                *[
                    "width_1=8",
                    "stages=2",
                    "stem_width=8",
                    "granularity=stage",
                    "stem_stride=1",
                    "depth_1=1",
                    "head_width=16",
                ],
                *[
                    "head_dense=0",
                    "relu_stages=0",
                    "expand_at_1=False",
                    "activation=silu",
                    "stride_1=1",
                    "stride_2=2",
                ],
                *["resolution=0", "epsilon=0.00001", "se_form=efficientnet", "se=True"],
            ),
            narrow=("expansion=3,6", "kernel=3,5,7", "depth_2=1..2", "width_2=8,16"),
        ),
        ("kernel", "expansion", "depth", "width"),
        (6, 6, 3),
    ),
}


@functools.cache
def family(name: str) -> tuple[Elastic, Any]:
    space, vary, shape = FAMILIES[name]
    elastic = Elastic(space, shape, 3, vary)
    (largest,) = elastic.classes()
    return elastic, largest


def random_variables(elastic: Elastic, arch: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (
            np.asarray(rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1]), np.float32)
            if len(leaf.shape) > 1
            else np.asarray(rng.uniform(0.5, 1.5, leaf.shape), np.float32)
        ),
        elastic.init(arch, 0),
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.some(2)
def test_a_path_computes_the_network_cut_out(name: str) -> None:
    elastic, largest = family(name)
    variables = random_variables(elastic, largest)
    transforms = {
        place: {size: matrix + np.float32(0.1) for size, matrix in of.items()}
        for place, of in elastic.transforms(largest).items()
    }
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *elastic.image_shape)), jnp.float32)
    by_path = jax.jit(
        lambda path: apply_evaluate(
            elastic.network(largest),
            {**variables, "params": sub_network(variables["params"], path, transforms)},
            (x,),
        )
    )
    archs = {elastic.smallest(largest), *(elastic.sample(largest, rng) for _ in range(1))}
    assert len(archs) > 1
    for arch in archs:
        elastic.space.validate(arch)
        path = elastic.path(arch)
        behind = {**variables, "params": sub_network(variables["params"], path, transforms)}
        own = elastic.cut(behind, arch)
        shapes = jax.tree.map(np.shape, elastic.shapes(arch).params)
        assert jax.tree.map(np.shape, own["params"]) == shapes
        alone = jax.jit(functools.partial(apply_evaluate, elastic.network(arch)))(own, (x,))
        assert float(jnp.abs(alone).max()) > 0
        np.testing.assert_allclose(by_path(path), alone, rtol=2e-3, atol=1e-4 * float(jnp.abs(alone).max()))


def test_shapes_are_those_of_the_whole_network() -> None:
    elastic, largest = family("mbconv")
    arch = elastic.smallest(largest)
    made = jax.eval_shape(
        lambda key, x: elastic.network(arch).init(key, x), jax.random.key(0), jnp.zeros((1, 6, 6, 3))
    )
    shapes = elastic.shapes(arch)
    for kind, of in (("params", shapes.params), ("batch_stats", shapes.batch_stats)):
        assert jax.tree.map(np.shape, dict(made[kind])) == jax.tree.map(np.shape, of)


def test_smaller_kernels_are_maps_of_the_centre() -> None:
    elastic, largest = family("chain")
    assert elastic.kernel_sizes(largest) == {"conv_1/kernel": (5, 3, 1), "conv_2/kernel": (5, 3, 1)}
    params = elastic.init(largest, 0)["params"]
    rng = np.random.default_rng(0)
    matrices = {"3": rng.normal(size=(9, 9)), "1": rng.normal(size=(1, 1))}
    arch = {**largest, "kernel_1": 1, "kernel_2": 3}
    found = sub_network(params, elastic.path(arch), {"conv_1/kernel": matrices, "conv_2/kernel": matrices})
    for node, size in (("conv_1", 1), ("conv_2", 3)):
        whole = np.asarray(params[node]["kernel"])
        inner = np.einsum("ab,bio->aio", matrices["3"], whole[1:4, 1:4].reshape(9, *whole.shape[2:]))
        inner = inner.reshape(3, 3, *whole.shape[2:])
        if size == 1:
            inner = matrices["1"][0, 0] * inner[1:2, 1:2]
        edge = (5 - size) // 2
        expected = np.zeros_like(whole)
        expected[edge : edge + size, edge : edge + size] = inner
        np.testing.assert_allclose(found[node]["kernel"], expected, rtol=1e-5, atol=1e-6)


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count).astype(np.int32)
    pixels = rng.integers(0, 80, (count, *shape)) + 80 * labels.reshape(-1, 1, 1, 1)
    channels = shape[-1]
    return Data(
        jnp.asarray(pixels, jnp.uint8),
        jnp.asarray(labels),
        jnp.full(channels, 0.5, jnp.float32),
        jnp.full(channels, 0.3, jnp.float32),
    )


def training(name: str = "chain", **settings: Any) -> ElasticTraining:
    elastic, _ = family(name)
    phases = settings.pop("phases", (Phase((), 1), Phase(elastic.vary, 2)))
    chosen = ElasticSettings(phases, Hyper(batch_size=8, learning_rate=0.05), **settings)
    config = TrainingConfig(evaluate_batch_size=16)
    return ElasticTraining(elastic, chosen, images(32, elastic.image_shape), config, seed=0)


@pytest.mark.parametrize("distil", [True, False])
@pytest.mark.slow
def test_the_gradient_of_a_step_is_the_sum_of_those_of_its_networks(distil: bool) -> None:
    """Each computed by the network cut out, scattered back by hand."""
    one = training(distil=distil)
    elastic, largest = family("chain")
    batch = one._batch(one.train, {"index": np.arange(8, dtype=np.int32)})
    archs = [largest, elastic.smallest(largest), elastic.sample(largest, np.random.default_rng(3))]
    found, _, _ = one.gradients(archs, batch, Noise(np.float32(0), np.uint32(0)))
    params = one.state.params["network"]
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    stats = elastic.init(largest, 0)["batch_stats"]
    target = batch.target
    for arch in archs:
        own = elastic.cut({"params": params, "batch_stats": stats}, arch)

        def loss(params: Any, own: Any = own, arch: Any = arch, target: Any = target) -> Any:
            logits, _, _ = apply_train(
                elastic.network(arch), {**own, "params": params}, (batch.images,),
                Noise(np.float32(0), np.uint32(0)),
            )  # fmt: skip
            return optax.softmax_cross_entropy(logits, target).mean(), logits

        grads, logits = jax.grad(loss, has_aux=True)(own["params"])
        if arch == largest and distil:
            target = jax.nn.softmax(logits)
        for node, leaves in grads.items():
            for leaf, grad in leaves.items():
                where = tuple(
                    slice((n - m) // 2, (n - m) // 2 + m) if len(grad.shape) == 4 and k < 2 else slice(m)
                    for k, (n, m) in enumerate(zip(total[node][leaf].shape, grad.shape, strict=True))
                )
                if node == "logits" and leaf == "kernel":  # 3 x 3 cells of a map, channel by channel
                    cells = total[node][leaf].reshape(-1, 8, 3)
                    cells[:, : grad.shape[0] // len(cells)] += np.asarray(grad).reshape(len(cells), -1, 3)
                    total[node][leaf] = cells.reshape(-1, 3)
                else:
                    total[node][leaf][where] += grad
    for node, leaves in total.items():
        for leaf, expected in leaves.items():
            np.testing.assert_allclose(found["network"][node][leaf], expected, rtol=2e-3, atol=2e-5)


def test_recalibrated_statistics_are_the_average_of_batches() -> None:
    one = training(recalibration=3)
    elastic, largest = family("chain")
    one.train_epoch(0)
    arch = elastic.smallest(largest)
    found = elastic.cut({"params": one.state.params["network"], **one.recalibrated(arch)}, arch)
    network = elastic.network(arch)
    seen = []
    for k in range(3):
        x = one._batch(one.train, {"index": np.arange(8 * k, 8 * k + 8, dtype=np.int32)}).images
        for node in network.nodes:  # the first convolution, by JAX itself
            if node.name == "conv_1":
                y = jax.lax.conv_general_dilated(
                    x, found["params"]["conv_1"]["kernel"], (1, 1), "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )  # fmt: skip
                y = np.asarray(y + found["params"]["conv_1"].get("bias", 0), np.float64)
                seen.append((y.mean((0, 1, 2)), y.var((0, 1, 2))))
    mean, var = (np.mean(values, 0) for values in zip(*seen, strict=True))
    stats = found["batch_stats"]["norm_1"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-3, atol=1e-5)
    count = 8 * 36
    assert np.allclose(stats["var"], var, rtol=1e-3) or np.allclose(
        stats["var"], var * count / (count - 1), rtol=1e-3
    )


def test_one_program_serves_all_sub_networks() -> None:
    one = training(kernel_transformation=True)
    elastic, largest = family("chain")
    valid = images(16, elastic.image_shape, 1)
    for epoch in range(3):
        one.train_epoch(epoch)
    rng = np.random.default_rng(0)
    archs = {elastic.sample(largest, rng) for _ in range(12)}
    assert len(archs) > 6
    shown = [one.evaluate(arch, valid) for arch in archs]
    assert len({result.loss for result in shown}) == len(archs)
    (programs,) = one.programs.values()
    assert programs.compilations == 3  # a gradient, statistics, a prediction


@pytest.mark.slow
def test_what_is_cut_out_says_what_the_supernet_said() -> None:
    one = training(kernel_transformation=True)
    elastic, largest = family("chain")
    for epoch in range(2):
        one.train_epoch(epoch)
    arch = elastic.sample(largest, np.random.default_rng(5))
    valid = images(16, elastic.image_shape, 1)
    batch = one._batch(valid, {"index": np.arange(16, dtype=np.int32)})
    logits = apply_evaluate(elastic.network(arch), one.cut(arch), (batch.images,))
    loss = optax.softmax_cross_entropy(logits, batch.target).mean()
    assert float(loss) == pytest.approx(one.evaluate(arch, valid).loss, rel=1e-3)


@pytest.mark.slow
def test_classes_share_weights_and_training_goes_on_from_a_checkpoint(tmp_path: FilePath) -> None:
    space = CHAIN.restrict(fix=(*PLAIN, "connections=plain", "pooling=max"), narrow=("depth=1,2",))
    elastic = Elastic(space, (4, 4, 1), 3, ("kernel", "width"))
    assert {arch["depth"] for arch in elastic.classes()} == {1, 2}
    settings = ElasticSettings((Phase(("width",), 2),), Hyper(batch_size=8), random=1)
    valid = images(16, (4, 4, 1), 1)

    def fresh() -> ElasticTraining:
        return ElasticTraining(elastic, settings, images(32, (4, 4, 1)), TrainingConfig(), seed=0)

    with pytest.raises(InputError, match="logits has other shapes"):
        fresh()  # its map has other cells
    elastic = Elastic(
        CHAIN.restrict(fix=(*PLAIN[:3], "downsample_every=3", "head_depth=0", "connections=plain", "pooling=none"),
                       narrow=("depth=1,2",)),
        (4, 4, 1), 3, ("kernel", "width"),
    )  # fmt: skip
    whole, keeper = fresh(), Checkpoints(tmp_path)
    seen = list(whole.run(valid))
    first = fresh()
    begun = list(first.run(valid, until=1, checkpoints=keeper))
    again = fresh()
    rest = list(again.run(valid, checkpoints=keeper))
    keeper.close()
    assert [m.train_loss for m in rest] == [m.train_loss for m in seen]
    assert begun[0] == rest[0]
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_phases_shrink_in_order() -> None:
    elastic, largest = family("mbconv")
    phases = shrinking(elastic, 10)
    assert phases == (
        Phase((), 1),
        Phase(("kernel",), 3),
        Phase(("kernel", "depth"), 3),
        Phase(("kernel", "depth", "expansion", "width"), 3),
    )
    settings = ElasticSettings(phases)
    assert [len(settings.phase(epoch).vary) for epoch in (0, 1, 4, 7, 99)] == [0, 1, 2, 4, 4]
    rng = np.random.default_rng(0)
    arch = elastic.sample(largest, rng, ("kernel",))
    others = {name for name in arch if not name.startswith("kernel")}
    assert {name: arch[name] for name in others} == {name: largest[name] for name in others}
    with pytest.raises(InputError, match="3 epochs are less than the 4 phases"):
        shrinking(elastic, 3)
    with pytest.raises(InputError, match="every phase needs an epoch"):
        ElasticSettings((Phase((), 0),))


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        (("connections=plain", "normalisation=layer"), "not part of its largest network"),
        (("connections=dense", "normalisation=batch"), "concat_3 is joined otherwise"),
        (("connections=residual", "normalisation=batch"), "norm_2 is joined otherwise"),
    ],
)
def test_what_is_not_elastic_is_refused_in_one_line(fix: tuple[str, ...], message: str) -> None:
    space = CHAIN.restrict(
        fix=(*PLAIN[1:], *fix, "pooling=none", "depth=3"), narrow=("width_1=8", "width_2=4,8", "width_3=8")
    )
    elastic = Elastic(space, (5, 5, 1), 3, ("kernel", "width"))
    (largest,) = elastic.classes()
    with pytest.raises(InputError, match=message) as caught:
        elastic.check({**largest, "width_2": 4})
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_choices_are_refused() -> None:
    with pytest.raises(InputError, match="mlp has no elastic choices"):
        Elastic(SPACES["mlp"], (8, 8, 1), 3)
    with pytest.raises(InputError, match="depht"):
        Elastic(CHAIN, (8, 8, 1), 3, ("depht",))
    with pytest.raises(InputError, match="more than 32 classes"):
        Elastic(CHAIN, (8, 8, 1), 3).classes()
    elastic, _ = family("chain")
    settings = ElasticSettings((Phase((), 1),), Hyper(batch_size=64))
    with pytest.raises(InputError, match="batch_size"):
        ElasticTraining(elastic, settings, images(32, (6, 6, 1)), TrainingConfig(), seed=0)
    assert elastic_training.ORDER[0] == ("kernel",)


def setup(tmp_path: FilePath, **more: Any) -> ElasticSetup:
    space = CHAIN.restrict(
        fix=(*PLAIN, "connections=plain", "pooling=none", "depth=2"),
        narrow=("kernel=1,3",),
    )
    settings = ElasticSettings((Phase(("kernel", "width"), 1),), Hyper(batch_size=200), random=0)
    data = DataConfig("digits", image_size=4)
    return ElasticSetup(space, data, settings, tmp_path, vary=("kernel", "width"), **more)


@pytest.mark.slow
def test_a_supernet_is_an_objective_of_any_strategy(tmp_path: FilePath) -> None:
    limit = 5_000
    goals = parse_goals(["valid_accuracy"], [f"macs_per_image<={limit}"], sign_of)
    fresh = setup(tmp_path)
    quantities = QuantitiesSetup(fresh.space, fresh.data, ("macs_per_image",))
    fresh = setup(tmp_path, goals=goals, quantities=quantities)
    with pytest.raises(InputError, match="holds no supernet"):
        fresh()
    training, valid = fresh.fresh()
    keeper = Checkpoints(tmp_path)
    assert len(list(training.run(valid, checkpoints=keeper))) == 1
    keeper.close()
    objective = fresh()
    config = EvolutionConfig(trials=12, epochs=1, population=4)
    trials = told(STRATEGIES["evolution"](fresh.space, config), objective)
    assert [trial.status for trial in trials] == ["completed"] * 12
    kept = [trial for trial in trials if trial.feasible]
    assert 0 < len(kept) < 12
    for trial in trials:
        assert trial.macs_per_image == trial.measurements[0].values["macs_per_image"]  # type: ignore[union-attr]
        assert trial.feasible == ((trial.macs_per_image or 0) <= limit)
        if trial.feasible:
            assert trial.score == pytest.approx(training.evaluate(trial.arch, valid).accuracy)
    found = best(trials)
    assert found is not None
    assert found.score == max(trial.score for trial in kept)
    with pytest.raises(InputError, match="needs quantities"):
        ElasticObjective(training, valid, goals)
    refused = Trial(0, fresh.space.sample(0).set(depth=1), 1, 0)
    with pytest.raises(TrialFailed):
        list(objective(refused))
