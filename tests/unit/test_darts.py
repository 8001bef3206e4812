"""The darts space: paths dropped in training, the auxiliary head, cells that leave something unread."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.data import load
from nas.errors import InputError
from nas.nn.graph import Builder, Term
from nas.nn.layers import CellAverage, Dense, conv
from nas.training import loop
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper, hyper_of
from nas.training.loop import Training, on_device
from nas.training.network import Noise
from nas.training.optimiser import Rates
from nas.training.programs import Batch, Runner, Shape
from search_spaces import darts

SHAPE = Shape((8, 8, 3), 10, 16, 16, "momentum")
SMALL = {"channels": 4, "cells": 3, "batch_size": 64}


def small(genotype: str = "darts_v2", **changes: Any) -> Any:
    return darts.architecture_of(darts.GENOTYPES[genotype], **{**darts.RECIPE, **SMALL, **changes})


# -------------------------------------------------------------------------------------------------- drop path


def test_a_dropped_path_is_an_images_whole_map():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4000, 2, 3, 2)), jnp.float32)
    path, seed = darts.DropPath(), jnp.uint32(7)

    def run(rate: float, train: bool = True) -> np.ndarray:
        return np.asarray(path.apply({}, x, train=train, drop_path=jnp.float32(rate), seed=seed))

    factors = (run(0.3) / np.asarray(x)).reshape(len(x), -1)
    assert np.ptp(factors, axis=1).max() < 1e-5
    np.testing.assert_allclose(np.unique(np.round(factors[:, 0], 4)), [0, 1 / 0.7], rtol=1e-3)
    assert np.mean(factors[:, 0] == 0) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    np.testing.assert_array_equal(run(0.0), x)
    np.testing.assert_array_equal(run(0.3, train=False), x)


def dropping() -> Any:
    b = Builder()
    x = b.add("conv", conv(4), 0)
    paths = [b.add(f"drop_{k}", darts.DropPath(), x) for k in range(2)]
    b.add("logits", Dense(10), b.add("average", CellAverage(1), b.mix("sum", [Term(p) for p in paths])))
    return b.graph()


def batch(size: int = 16) -> Batch:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, size).astype(np.int32)
    images = rng.standard_normal((size, 8, 8, 3)).astype(np.float32)
    return Batch(*jax.device_put((images, np.eye(10, dtype=np.float32)[labels], labels)))


def test_how_often_paths_are_dropped_does_not_change_the_program():
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rates = Rates(np.float32(0.1), np.float32(0))
    runner = Runner(dropping(), SHAPE)
    runner.compile()
    states, data = [runner.init(0) for _ in range(3)], batch()
    before, losses = len(compiled), []
    for state, rate in zip(states, (0.0, 0.2, 0.9), strict=True):
        noise = Noise(np.float32(0), np.uint32(3), np.float32(rate))
        state, loss, _ = runner.step(state, data, noise, rates, np.float32(0))
        losses.append(float(loss))
    assert len(compiled) == before
    assert len(set(losses)) == 3


def test_paths_are_dropped_more_and_more_from_the_first_epoch_on(monkeypatch, digits):
    """As the authors train: drop_path * epoch / epochs, with epochs from 0."""
    hyper = Hyper(drop_path=0.2, batch_size=64, learning_rate=0.01)
    training = Training(dropping(), hyper, digits, 10, TrainingConfig(), seed=0, epochs=4)
    seen: list[float] = []
    training.compile()
    step = training.runner.step

    def spy(state: Any, batch: Any, noise: Noise, *rest: Any) -> Any:
        seen.append(float(noise.drop_path))  # type: ignore[arg-type]
        return step(state, batch, noise, *rest)

    monkeypatch.setattr(training.runner, "step", spy)
    for epoch in range(4):
        training.train_epoch(epoch)
    per_epoch = np.array(seen).reshape(4, -1)
    np.testing.assert_allclose(
        per_epoch, np.outer([0, 0.05, 0.1, 0.15], np.ones(per_epoch.shape[1])), rtol=1e-6
    )


def test_drop_path_is_a_hyperparameter():
    assert hyper_of(darts.NAMED["darts_v2"].arch).drop_path == 0.2
    with pytest.raises(InputError, match=r"drop_path: 1\.0 is not in \[0, 1\)"):
        Hyper(drop_path=1.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> loop.Data:
    dataset = load("digits", cache_dir=tmp_path_factory.mktemp("cache"))
    return on_device(dataset.train, dataset.mean, dataset.std)


@pytest.mark.slow
def test_the_published_recipe_trains(digits):
    """Auxiliary head, drop path, cutout and clipped gradients at once, on 8x8 pixels."""
    arch = small(auxiliary=True, learning_rate=0.1)
    config = TrainingConfig(clip_norm=5.0)
    network = darts.build(arch, 10)
    training = Training(network, hyper_of(arch), digits, 10, config, seed=0, epochs=3)
    training.compile()
    found = [training.train_epoch(epoch) for epoch in range(3)]
    assert "auxiliary" in training.state.variables["params"]
    assert found[2].loss < found[0].loss
    assert found[2].accuracy > 0.2
    assert training.evaluate(digits).accuracy > 0.2


# ------------------------------------------------------------------------------------------------------ cells


def test_what_a_cell_computes_and_nobody_reads_stays():
    """Its parameters count, as published."""
    same_input = small(
        normal_inputs_1="0-0", normal_inputs_2="0-0", normal_inputs_3="0-2", normal_inputs_4="0-2"
    )
    some_out = small("nasnet", normal_concat="4-5-6")
    for arch in (small(), same_input, some_out, small("nasnet"), small("amoebanet")):
        network = darts.build(arch, 10)
        shapes: Any = jax.eval_shape(
            lambda network=network: network.lazy_init(
                jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
            )
        )
        assert "cell_1_input_1" in shapes["params"]


def test_a_cell_gives_out_nodes_that_it_has():
    for steps, concat in ((4, "4-5-6"), (4, "3-4-6")):
        with pytest.raises(InputError, match="breaks the constraint: the nodes of reduce_concat"):
            darts.SPACE.validate(small(reduce_concat=concat, steps=steps))
    darts.SPACE.validate(small("amoebanet"))


@pytest.mark.parametrize("name", darts.GENOTYPES)
def test_genotypes_come_back_from_the_published_notation(name):
    genotype = darts.GENOTYPES[name]
    assert darts.read_genotype(str(genotype)) == genotype
    again = darts.genotype_of(darts.architecture_of(genotype, **darts.RECIPE))
    assert darts.architecture_of(again) == darts.architecture_of(genotype)
    for kind in ("normal", "reduce"):
        assert sorted(getattr(again, kind)) == sorted(getattr(genotype, kind))


@pytest.mark.parametrize("name", ["skip", "sep_conv", "sep_conv_3x3_", "identity_3x3", "min_pool_3x3"])
def test_an_unknown_operation_is_refused(name):
    """It would be passed on as a skip connection, or as what its name begins with, and a search with it would train."""
    choices = "max_pool_3x3, avg_pool_3x3, skip_connect, .*conv_7x1_1x7"
    with pytest.raises(
        InputError, match=f"^operation: '{name}' is not one of {choices}( .did you mean .*)?$"
    ):
        darts.operation(name, 8, 1, affine=True)
    layout = darts.layout(2, ("none", "skip_connect", name))
    with pytest.raises(
        InputError, match=f"^operation: '{name}' is not one of {choices}( .did you mean .*)?$"
    ):
        darts.supernet(layout, 10, channels=4, cells=3)
