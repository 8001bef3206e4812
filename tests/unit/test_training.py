"""Training: the pure step against independent arithmetic, and what a run must repeat to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas.cache import cache_root
from nas.data import load
from nas.ending import Terminated, terminate
from nas.errors import InputError
from nas.nn.graph import Builder
from nas.nn.layers import CellAverage, Dense, conv
from nas.space import Architecture
from nas.training import augment, optimiser, stored
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import SCHEDULES, Hyper, hyper_of, learning_rates
from nas.training.loop import (
    Data,
    Training,
    TrainingFailed,
    make_batch,
    on_device,
    tally,
    tally_padded,
    train,
)
from nas.training.network import Noise, outline
from nas.training.programs import (
    Batch,
    Runner,
    Shape,
    abstract_arguments,
    step_function,
)
from search_spaces import SPACES, chain, nasbench201
from tests.arrays import in_plain

ROOT = Path(__file__).parents[2]
BASE = {
    "depth": 2,
    "width_1": 8,
    "width_2": 16,
    "kernel_1": 3,
    "kernel_2": 3,
    "stride": 1,
    "pooling": "max",
    "downsample_every": 1,
    "connections": "plain",
    "normalisation": "batch",
    "activation": "relu",
    "head_depth": 1,
    "head_width": 32,
}
RATES = optimiser.Rates(np.float32(0.1), np.float32(1e-3))


def network(**changes):
    return chain.build(Architecture(BASE | changes), 10)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", cache_dir=tmp_path_factory.mktemp("cache"))


def data_of(dataset, split="train") -> Data:
    return on_device(getattr(dataset, split), dataset.mean, dataset.std)


def batch_of(dataset, size=32, seed=0) -> Batch:
    index = np.random.default_rng(seed).integers(0, len(dataset.train), size).astype(np.int32)
    return make_batch(data_of(dataset), {"index": index}, np.float32(0), num_classes=10, dtype="float32")


def shape_of(dataset, **changes) -> Shape:
    return dataclasses.replace(Shape(dataset.image_shape, 10, 32, 64, "nesterov"), **changes)


def training_of(dataset, *, net=None, config=None, seed=0, epochs=3, **hyper) -> Training:
    hyper = Hyper(**({"learning_rate": 0.05, "batch_size": 64} | hyper))
    return Training(
        net or network(), hyper, data_of(dataset), 10, config or TrainingConfig(), seed=seed, epochs=epochs
    )


# ------------------------------------------------------------------------------- rates and hyperparameters


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("constant", optax.constant_schedule(0.3)),
        ("linear", optax.linear_schedule(0.3, 0.0, 40)),
        ("cosine", optax.cosine_decay_schedule(0.3, 40)),
        ("step", optax.piecewise_constant_schedule(0.3, {20: 0.1, 30: 0.1})),
        ("step_1", optax.piecewise_constant_schedule(0.3, {20: 0.1})),
        ("step_3", optax.piecewise_constant_schedule(0.3, {10: 0.1, 20: 0.1, 30: 0.1})),
    ],
)
def test_schedules_equal_optax(name, reference):
    hyper = Hyper(learning_rate=0.3, schedule=name)
    ours = np.concatenate([learning_rates(hyper, epoch=e, epochs=4, steps=10) for e in range(4)])
    np.testing.assert_allclose(ours, [float(reference(k)) for k in range(40)], rtol=1e-5, atol=1e-8)


def test_one_cycle_rises_then_falls_to_zero():
    rates = learning_rates(Hyper(learning_rate=1.0, schedule="one_cycle"), epoch=0, epochs=1, steps=1000)
    assert rates.dtype == np.float32
    assert rates[0] == 0
    assert rates.argmax() == 150
    assert rates[150] == pytest.approx(1)
    assert rates[-1] < 0.002
    steps = {"step", "step_1", "step_2", "step_3"}
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "one_cycle", *steps}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"optimiser": "sdg"}, "optimiser: 'sdg' is not one of sgd, momentum"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is not one of"),
        ({"augmentation": "crop+flop"}, "augmentation: 'flop' is not one of"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"dropout": 1.0}, "dropout: 1.0 is not in"),
        ({"learning_rate": math.nan}, "learning_rate: nan is not"),
    ],
)
def test_a_wrong_hyperparameter_is_named(wrong, says):
    with pytest.raises(InputError, match=says):
        Hyper(**wrong)


def test_hyperparameters_come_from_the_architecture_first():
    hyper = hyper_of({"learning_rate": 0.2, "depth": 3}, learning_rate=0.1, batch_size=16)
    assert (hyper.learning_rate, hyper.batch_size) == (0.2, 16)


def mask(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def with_l2(factory, **more):
    return lambda rate, decay: optax.chain(
        optax.add_decayed_weights(decay, mask), factory(learning_rate=rate, **more)
    )


def decoupled(factory):
    return lambda rate, decay: factory(learning_rate=rate, weight_decay=decay, mask=mask)


REFERENCES = {
    "sgd": with_l2(optax.sgd),
    "momentum": with_l2(optax.sgd, momentum=0.9),
    "nesterov": with_l2(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": with_l2(optax.rmsprop, decay=0.9, eps=1e-8),
    "adam": with_l2(optax.adam),
    "adamw": decoupled(optax.adamw),
    "lion": decoupled(optax.lion),
    "lamb": decoupled(optax.lamb),
    "yogi": with_l2(optax.yogi),
    "prodigy": with_l2(optax.contrib.prodigy),
}


def two_modules():
    rng = np.random.default_rng(0)
    params = {k: {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)} for k in "ab"}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


def first_state(name, params, **more):
    return optimiser.initial_state(optimiser.transformation(name, **more), params)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.some(4)
def test_an_update_equals_optax(name):
    """Called directly with rates that are constants; L2 and decoupled weight decay on kernels alone."""
    params = two_modules()
    reference = optax.chain(optax.clip_by_global_norm(1.0), REFERENCES[name](0.1, 1e-2))
    theirs, their_state = params, reference.init(params)
    ours, state = params, first_state(name, params, clip=True)
    rates = optimiser.Rates(np.float32(0.1), np.float32(1e-2), np.float32(1.0))
    step = jax.jit(functools.partial(optimiser.update, name, clip=True))
    for k in range(4):
        grads = jax.tree.map(lambda p, k=k: jnp.sin(p + k), params)
        updates, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        ours, state = step(ours, grads, state, rates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)
    assert not np.array_equal(ours["a"]["kernel"], params["a"]["kernel"])


@pytest.mark.parametrize(
    "name",
    [
        name if name in REFERENCES else pytest.param(name, marks=pytest.mark.slow)
        for name in optimiser.FACTORIES
    ],
)
@pytest.mark.some(5)
def test_every_optimiser_starts_as_optax_does_and_is_one_program_for_all_rates(name):
    params = two_modules()["a"]
    state = first_state(name, params)
    expected = optimiser.transformation(name).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    traced = []

    @jax.jit
    def step(params, state, rates):
        traced.append(rates)
        return optimiser.update(name, params, params, state, rates, loss=jnp.sum(params["kernel"] ** 2))

    new = params
    for rate, decay in ((0.01, 1e-3), (0.02, 0.5), (0.1, 1e-3)):
        new, state = step(new, state, optimiser.Rates(np.float32(rate), np.float32(decay)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    assert len(traced) == 1
    assert not np.array_equal(new["kernel"], params["kernel"])


def test_the_first_state_costs_no_compilation():
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    params = {"kernel": np.ones((3, 41), np.float32), "bias": np.ones(43, np.float32)}
    optimisers = [optimiser.transformation(name) for name in ("momentum", "adamw", "lamb")]
    jax.monitoring.register_event_duration_secs_listener(listen)
    states = [optimiser.initial_state(one, params) for one in optimisers]
    assert compiled == []
    assert [leaf.shape for leaf in jax.tree.leaves(states[0])] == [(43,), (3, 41)]


@pytest.mark.parametrize("name", ["momentum", "adamw", "lion", "lamb"])
def test_a_module_may_have_a_weight_decay_of_its_own(name):
    rng = np.random.default_rng(0)
    params = {k: {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)} for k in "abc"}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    grads = jax.tree.map(jnp.sin, params)

    def updated(decay, own=(), decays=()):
        rates = RATES._replace(weight_decay=np.float32(decay), own_weight_decay=decays)
        return optimiser.update(name, params, grads, first_state(name, params, own=own), rates, own=own)[0]

    mixed = updated(0.1, ("c", "a"), (np.float32(0.3), np.float32(0.0)))
    alone = {k: updated(decay) for k, decay in {"a": 0.0, "b": 0.1, "c": 0.3}.items()}
    assert list(mixed) == list(params)
    for k, expected in alone.items():
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), mixed[k], expected[k])
    assert not np.array_equal(mixed["a"]["kernel"], alone["b"]["a"]["kernel"])


def test_an_optimiser_of_ones_own_is_one_entry(digits, monkeypatch):
    with pytest.raises(InputError, match="optimiser: 'mine' is not one of sgd, momentum"):
        Hyper(optimiser="mine")
    factory = functools.partial(optax.adamw, b1=0.5)
    monkeypatch.setitem(optimiser.FACTORIES, "mine", factory)
    training = training_of(digits, optimiser="mine", learning_rate=3e-3, epochs=1)
    training.compile()
    assert np.isfinite(training.train_epoch(0).loss)
    found = optimiser.source("mine")
    assert found is not None
    assert found.startswith("optax ")
    monkeypatch.setitem(optimiser.FACTORIES, "mine", lambda learning_rate: optax.sgd(learning_rate))
    found = optimiser.source("mine")
    assert found is not None
    assert "test_an_optimiser_of_ones_own_is_one_entry" in found


# --------------------------------------------------------------------------------------------- augmentation


def test_draws_are_a_function_of_the_generator_and_within_bounds():
    def once():
        return augment.draw(
            "crop+flip+cutout+mixup+colour",
            np.random.default_rng(3),
            steps=50,
            batch=16,
            image_shape=(32, 28, 3),
        )

    first, second = once(), once()
    assert set(first) == {"shift", "flip", "cutout", "mix", "colour"}
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert np.abs(first["shift"]).max(axis=(0, 1)).tolist() == [augment.crop_pad(32), augment.crop_pad(28)]
    cutout = first["cutout"]
    assert (cutout[..., 2] == 14).all()
    assert (cutout[..., :2].min(), cutout[..., 0].max(), cutout[..., 1].max()) == (-7, 31 - 7, 27 - 7)
    assert 0.4 < first["flip"].mean() < 0.6
    assert not augment.draw("crop", np.random.default_rng(3), 5, 4, (8, 8, 1))["flip"].any()
    assert augment.draw("none", np.random.default_rng(3), 5, 4, (8, 8, 1)) == {}


def test_batches_equal_numpy(digits):
    """Pad-crop, flip, cutout, mixup and smoothing of real images, pixel by pixel."""
    data = data_of(digits)
    index = np.arange(6, dtype=np.int32)
    plan = {
        "index": index,
        "shift": np.array([[0, 0], [1, 0], [0, -1], [-1, 1], [1, 1], [-1, -1]], np.int32),
        "flip": np.array([False, True, False, True, False, False]),
        "cutout": np.array([[0, 0, 0], [1, 2, 4], [-2, -2, 4], [6, 6, 4], [3, 3, 1], [0, 0, 0]], np.int32),
        "mix": np.float32(0.25),
    }
    batch = make_batch(data, plan, np.float32(0.1), num_classes=10, dtype="float32")
    expected = []
    for i in index:
        image = np.zeros((8, 8, 1), np.float32)  # zero padding in pixel space
        dy, dx = plan["shift"][i]
        for y in range(8):
            for x in range(8):
                if 0 <= y + dy < 8 and 0 <= x + dx < 8:
                    image[y, x] = digits.train.images[i, y + dy, x + dx] / np.float32(255)
        if plan["flip"][i]:
            image = image[:, ::-1]
        image = (image - digits.mean) / digits.std
        top, left, size = plan["cutout"][i]
        image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        expected.append(image)
    expected = np.stack(expected)
    target = np.eye(10, dtype=np.float32)[digits.train.labels[:6]] * 0.9 + 0.01
    np.testing.assert_allclose(batch.images, 0.25 * expected + 0.75 * expected[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.target, 0.25 * target + 0.75 * target[::-1], rtol=1e-5)
    np.testing.assert_array_equal(batch.labels, digits.train.labels[:6][::-1])


def test_colour_factors_of_one_change_nothing_and_contrast_is_about_the_mean():
    images = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 3)), jnp.float32)
    mean, std = jnp.full(3, 0.2), jnp.full(3, 0.5)
    same = augment.adjust_colour(images, jnp.ones((2, 3)), mean, std)
    np.testing.assert_allclose(same, images, atol=1e-6)
    flat = augment.adjust_colour(images, jnp.array([[1.0, 0.0, 1.0]] * 2), mean, std) * std + mean
    np.testing.assert_allclose(flat, jnp.broadcast_to(flat[:, :1, :1], flat.shape), atol=1e-6)
    grey = augment.adjust_colour(images, jnp.array([[1.0, 1.0, 0.0]] * 2), mean, std) * std + mean
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)


# ------------------------------------------------------------------------------------------------ the step


def test_a_step_equals_plain_jax(digits):
    """One update of a network without normalisation or dropout, against the formula written out."""
    net = network(normalisation="none", pooling="average", head_depth=0)
    runner = Runner(net, shape_of(digits))
    runner.compile()
    state = runner.init(0)
    batch = batch_of(digits)
    params = jax.tree.map(np.array, state.variables["params"])

    def loss(p):
        x = batch.images
        for i in (1, 2):
            kernel = p[f"conv_{i}"]["kernel"]
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + p[f"norm_{i}"]["bias"])
            x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
        logits = x.reshape(x.shape[0], -1) @ p["logits"]["kernel"] + p["logits"]["bias"]
        return -jnp.mean(jnp.sum(batch.target * jax.nn.log_softmax(logits), -1))

    value, grads = jax.value_and_grad(loss)(params)
    state, loss_here, _ = runner.step(state, batch, Noise(np.float32(0), np.uint32(0)), RATES, np.float32(0))
    assert float(loss_here) == pytest.approx(float(value), rel=1e-5)

    def updated(path, p, g):
        g = g + 1e-3 * p if p.ndim >= 2 else g
        return p - 0.1 * (g + 0.9 * g)  # Nesterov's first step from a zero trace

    expected = jax.tree_util.tree_map_with_path(updated, params, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.variables["params"],
        expected,
    )


def test_an_ordinary_flax_module_trains(digits):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    runner = Runner(Linear(), shape_of(digits))
    runner.compile()
    noise = Noise(np.float32(0), np.uint32(0))
    state, before, _ = runner.step(runner.init(0), batch_of(digits), noise, RATES, np.float32(0))
    _, after, _ = runner.step(state, batch_of(digits), noise, RATES, np.float32(0))
    assert float(after) < float(before)


def test_clipping_and_the_average_of_parameters(digits):
    """A clipped step of plain gradient descent is as long as the norm says, and the average moves by its share."""
    runner = Runner(network(), shape_of(digits, optimiser="sgd", clip=True, ema=True))
    runner.compile()
    state = runner.init(0)
    before, average = (jax.tree.map(np.array, tree) for tree in (state.variables["params"], state.ema))
    rates = optimiser.Rates(np.float32(0.1), np.float32(0), np.float32(0.01))
    noise = Noise(np.float32(0), np.uint32(0))
    state, *_ = runner.step(state, batch_of(digits), noise, rates, np.float32(0.75))
    moved = jax.tree.map(lambda a, b: a - b, state.variables["params"], before)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.1 * 0.01, rel=1e-3)
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, state.variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, expected)


class Sowing(nn.Module):
    """A linear classifier with a loss of its own: the mean square of its features."""

    @nn.compact
    def __call__(self, x, *, train=False):
        h = nn.Dense(6, name="features")(x.reshape(x.shape[0], -1))
        if train:
            self.sow("losses", "sparsity", 0.5 * jnp.mean(h**2))
        return nn.Dense(10, name="logits")(jax.lax.stop_gradient(h))


@pytest.mark.slow
def test_sown_losses_are_added_to_the_gradient_alone(digits):
    runner = Runner(Sowing(), shape_of(digits))
    runner.compile()
    state = runner.init(0)
    assert set(state.variables) == {"params"}
    batch = batch_of(digits)
    params = jax.tree.map(np.array, state.variables["params"])

    def total(p):
        h = batch.images.reshape(len(batch.images), -1) @ p["features"]["kernel"] + p["features"]["bias"]
        logits = jax.lax.stop_gradient(h) @ p["logits"]["kernel"] + p["logits"]["bias"]
        cross_entropy = -jnp.mean(jnp.sum(batch.target * jax.nn.log_softmax(logits), -1))
        return cross_entropy + 0.5 * jnp.mean(h**2), cross_entropy

    grads, cross_entropy = jax.grad(total, has_aux=True)(params)
    rates = RATES._replace(weight_decay=np.float32(0))
    state, loss, _ = runner.step(state, batch, Noise(np.float32(0), np.uint32(0)), rates, np.float32(0))
    assert float(loss) == pytest.approx(float(cross_entropy), rel=1e-5)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * 1.9 * g, rtol=1e-4, atol=1e-6),
        state.variables["params"],
        params,
        grads,
    )


def graph_with_head():
    b = Builder()
    x = b.add("conv_1", conv(8), 0)
    head = b.add("head_average", CellAverage(1), x)
    b.add("head", Dense(10), head)
    b.add("logits", Dense(10), b.add("average", CellAverage(2), x))
    return b.graph({"head": 0.3})


@pytest.mark.slow
def test_an_auxiliary_classifier_is_trained_and_no_part_of_the_output(digits):
    network: Any = graph_with_head()
    runner = Runner(network, shape_of(digits))
    runner.compile()
    state = runner.init(0)
    batch = batch_of(digits)
    params = jax.tree.map(np.array, state.variables["params"])
    assert set(params) == {"conv_1", "head", "logits"}
    b = Builder()
    b.add("logits", Dense(10), b.add("average", CellAverage(2), b.add("conv_1", conv(8), 0)))
    bare: Any = b.graph()
    with pytest.raises(ValueError, match="nowhere"):
        Builder().graph({"nowhere": 1.0})

    def logits_of(p):
        h = jax.lax.conv_general_dilated(
            batch.images, p["conv_1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        cells = h.reshape(len(h), 2, 4, 2, 4, 8).mean((2, 4)).reshape(len(h), -1)
        head = h.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]
        return cells @ p["logits"]["kernel"] + p["logits"]["bias"], head

    def total(p):
        losses = [-jnp.mean(jnp.sum(batch.target * jax.nn.log_softmax(x), -1)) for x in logits_of(p)]
        return losses[0] + 0.3 * losses[1], losses[0]

    images = jnp.concatenate([batch.images] * 2)
    predicted = runner.predict(state.variables, images)
    np.testing.assert_allclose(predicted[: len(batch.images)], logits_of(params)[0], rtol=1e-4, atol=1e-5)
    found, plain = (outline(net, digits.image_shape) for net in (network, bare))
    assert found.macs_per_image == 8 * 8 * 9 * 8 + 2 * 2 * 8 * 10 == plain.macs_per_image
    assert found.params == plain.params + 8 * 10 + 10

    grads, cross_entropy = jax.grad(total, has_aux=True)(params)
    rates = RATES._replace(weight_decay=np.float32(0))
    state, loss, _ = runner.step(state, batch, Noise(np.float32(0), np.uint32(0)), rates, np.float32(0))
    assert float(loss) == pytest.approx(float(cross_entropy), rel=1e-5)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * 1.9 * g, rtol=1e-4, atol=1e-6),
        state.variables["params"],
        params,
        grads,
    )


def test_trials_that_differ_in_hyperparameters_alone_compile_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    valid = data_of(digits, "valid")
    steps = len(digits.train) // 64
    learning_rates(Hyper(schedule="linear"), epoch=0, epochs=2, steps=steps)  # a small program of its own

    def run(**hyper):
        before = len(compiled)
        measured = list(train(training_of(digits, epochs=2, **hyper), valid, until=2))
        return len(compiled) - before, measured

    first, _ = run(learning_rate=0.02, dropout=0.0, label_smoothing=0.0)
    second, measured = run(
        learning_rate=0.05, dropout=0.2, label_smoothing=0.1, weight_decay=1e-3, schedule="linear", seed=5
    )
    assert first > 0
    assert second == 0
    assert measured[0].compile_seconds < 0.25
    assert run(batch_size=32)[0] > 0  # the listener does hear of compilations


# Of the benchmarks' families, whose 17 cells take long to trace, a network of three cells.
LARGE = ("nasbench201", "natssize", "accel_nasbench")  # made of what others are made of too
FAMILIES = {name: space for name, space in SPACES.items() if name not in LARGE}
FAMILIES["nasbench201"] = nasbench201.nasbench201_space(channels=4, cells=1)


@pytest.mark.parametrize(
    ("platform", "dtype"), [("tpu", "bfloat16"), pytest.param("cuda", "float32", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("chain", "nasbench201") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_steps_lower_for_accelerators(digits, name, platform, dtype):
    space = FAMILIES[name].searched()
    assert space.build is not None
    net = space.build(space.sample(1), 10)
    shape = shape_of(digits, dtype=dtype, clip=True, ema=True)
    arguments = abstract_arguments(net, shape, None)
    exported = in_plain(jax.export.export(step_function(net, shape), platforms=[platform]), *arguments)
    assert exported.platforms == (platform,)
    assert "custom_call @nas" not in exported.mlir_module()


@pytest.mark.slow
def test_bfloat16_trains(digits):
    training = training_of(digits, config=TrainingConfig(dtype="bfloat16"), epochs=3)
    measured = list(train(training, data_of(digits, "valid"), until=3))
    assert measured[-1].valid_accuracy > 0.8
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(training.state.variables["params"]))


# ------------------------------------------------------------------------------------------------ the loop


def test_training_learns_and_is_repeatable_to_the_bit(digits):
    def run():
        training = training_of(digits, dropout=0.1, augmentation="crop", epochs=3)
        return [strip(m) for m in train(training, data_of(digits, "valid"), until=3)]

    first = run()
    assert first == run()
    assert first[-1].valid_accuracy > 0.6
    assert [m.budget for m in first] == [1, 2, 3]


def strip(measurement):
    return dataclasses.replace(measurement, compile_seconds=0, train_seconds=0, evaluate_seconds=0)


@pytest.mark.parametrize("lost", [False, True])
def test_going_on_from_a_checkpoint_repeats_to_the_bit(digits, tmp_path, lost):
    config = TrainingConfig(ema_decay=0.9, clip_norm=1.0)
    valid = data_of(digits, "valid")

    def new():
        return training_of(
            digits, config=config, optimiser="adamw", learning_rate=3e-3, dropout=0.2, epochs=4
        )

    whole = [strip(m) for m in train(new(), valid, until=4)]
    keeper = Checkpoints(tmp_path / "trial")
    half = list(train(new(), valid, until=2, checkpoints=keeper))
    keeper.close()
    keeper = Checkpoints(tmp_path / ("elsewhere" if lost else "trial"))
    rest = list(train(new(), valid, until=4, checkpoints=keeper, measured=tuple(half)))
    keeper.close()
    assert [strip(m) for m in (*half, *rest)] == whole
    assert [m.budget for m in rest] == [3, 4]
    assert keeper.epochs() == [4]


@pytest.mark.parametrize("stops", [(1, 8), pytest.param((7, 9, 16, 17, 18), marks=pytest.mark.slow)])
def test_going_on_in_mid_epoch_repeats_to_the_bit(digits, tmp_path, request, stops):
    """Each process is asked to end in the middle, at the end or between epochs, of 8 steps each."""
    config = TrainingConfig(ema_decay=0.9, clip_norm=1.0, steps_per_epoch=8)
    before = signal.signal(signal.SIGTERM, terminate)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))

    def new():
        return training_of(
            digits, config=config, optimiser="adamw", dropout=0.2, epochs=3, augmentation="crop+flip"
        )

    whole = [strip(m) for m in train(new(), data_of(digits, "valid"), until=3)]
    seen, steps = [], 0
    for stop in (*stops, 99):
        training = new()
        step = training.runner.step

        def counted(*given, step: Any = step, stop: int = stop) -> Any:
            nonlocal steps
            steps += 1
            if steps == stop:
                signal.raise_signal(signal.SIGTERM)
            return step(*given)

        training.runner.step = counted  # pyright: ignore[reportAttributeAccessIssue]
        keeper = Checkpoints(tmp_path, minutes=1e-6 if stop % 2 else math.inf)
        units = train(training, data_of(digits, "valid"), until=3, checkpoints=keeper, measured=tuple(seen))
        with pytest.raises(Terminated) if stop < 99 else contextlib.nullcontext():
            seen.extend(units)
        keeper.close()
        assert len(keeper.epochs()) == 1
    assert [strip(m) for m in seen] == whole
    assert steps == 24, "steps were done twice"


def test_a_checkpoint_ahead_of_the_record_gives_its_measurements(digits, tmp_path):
    valid = data_of(digits, "valid")
    keeper = Checkpoints(tmp_path)
    done = list(train(training_of(digits), valid, until=2, checkpoints=keeper))
    again = list(train(training_of(digits), valid, until=3, checkpoints=keeper, measured=tuple(done[:1])))
    keeper.close()
    assert [m.budget for m in again] == [2, 3]
    assert again[0] == done[1]


def test_a_damaged_checkpoint_is_passed_over(digits, tmp_path):
    keeper = Checkpoints(tmp_path)
    done = list(train(training_of(digits), data_of(digits, "valid"), until=1, checkpoints=keeper))
    keeper.close()
    for path in (tmp_path / "1").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    keeper = Checkpoints(tmp_path)
    rest = list(
        train(
            training_of(digits), data_of(digits, "valid"), until=2, checkpoints=keeper, measured=tuple(done)
        )
    )
    keeper.close()
    whole = list(train(training_of(digits), data_of(digits, "valid"), until=2))
    assert [strip(m) for m in rest] == [strip(m) for m in whole[1:]]


def test_a_loss_that_is_not_finite_stops_the_training(digits):
    training = training_of(digits, learning_rate=1e8, net=network(normalisation="none"))
    with pytest.raises(TrainingFailed, match=r"loss is (nan|inf) by step \d+ of epoch 1"):
        list(train(training, data_of(digits, "valid"), until=1))


def test_the_running_average_is_what_is_evaluated(digits):
    valid = data_of(digits, "valid")
    training = training_of(digits, config=TrainingConfig(ema_decay=0.999))
    training.compile()
    training.train_epoch(0)
    lagging = training.evaluate(valid)
    training.state = training.state._replace(ema=training.state.variables["params"])
    assert training.evaluate(valid).accuracy > lagging.accuracy + 0.2


def test_evaluation_counts_every_image_once(digits):
    valid = data_of(digits, "valid")
    results = []
    for size in (7, 1000):
        training = training_of(digits, config=TrainingConfig(evaluate_batch_size=size))
        training.compile()
        results.append(training.evaluate(valid))
    assert results[0].accuracy == pytest.approx(results[1].accuracy, abs=1e-9)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)


def test_tally_leaves_padding_out():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    labels = jnp.array([0, 0, 0], jnp.int32)
    batch = Batch(jnp.zeros((3, 1, 1, 1)), jax.nn.one_hot(labels, 2), labels)
    sums = tally_padded(jnp.ones(3), logits, batch, np.int32(2))
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(1))]
    np.testing.assert_allclose(sums, [1 + sum(losses), 2, 3], rtol=1e-6)
    np.testing.assert_allclose(tally(jnp.ones(3), jnp.float32(2), logits, labels), [7, 3, 4])


@pytest.mark.parametrize(
    ("hyper", "config", "says"),
    [
        ({"batch_size": 100_000}, {}, r"batch_size: 100000 is more than the \d+ images"),
        ({"batch_size": 50}, {"devices": 8}, "batch_size: 50 is not a multiple of devices=8"),
    ],
)
def test_sizes_that_cannot_be(digits, hyper, config, says):
    with pytest.raises(InputError, match=says):
        training_of(digits, config=TrainingConfig(**config), **hyper)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    """A full disk: the error comes once, with the next save or the end, and what is closed after it keeps the last."""
    keeper = Checkpoints(tmp_path / "0")
    state = {"weights": np.arange(3, dtype=np.float32)}
    keeper.save(1, state, {"units": 1})
    keeper.wait()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeper._orbax, "save", full)
    with pytest.raises(OSError, match="No space"):
        keeper.save(2, state, {"units": 2})
    keeper.close()
    again = Checkpoints(tmp_path / "0")
    found = again.restore(state)
    again.close()
    assert found is not None
    assert (found[0], found[2]) == (1, {"units": 1})


def test_an_outline_is_the_network(digits):
    net: Any = network(connections="residual")
    found = outline(net, digits.image_shape)
    variables = net.lazy_init(jax.random.key(0), jnp.zeros((1, *digits.image_shape)))
    assert jax.tree.map(jnp.shape, dict(variables)) == jax.tree.map(jnp.shape, found.variables)
    assert found.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert found.macs_per_image == 64 * 9 * 8 + 16 * 9 * 8 * 16 + 16 * 8 * 16 + 64 * 32 + 32 * 10
    assert found.training_bytes(64) > found.training_bytes(32) > 5 * 4 * found.params


def test_a_program_from_jaxs_cache_is_one_of_its_own_thread():
    before, hit = stored._hits(), "/jax/compilation_cache/cache_hits"
    other = threading.Thread(target=jax.monitoring.record_event, args=(hit,))
    other.start()
    other.join()
    assert stored._hits() == before
    jax.monitoring.record_event(hit)
    assert stored._hits() == before + 1


STORED = """
import sys
import threading
import jax, numpy as np
from nas.data import load
from nas.space import Architecture
from nas.training.hyper import Hyper
from nas.training.config import TrainingConfig
from nas.training.loop import Training, on_device, train
from nas.training.stored import use_compilation_cache
from search_spaces import chain
use_compilation_cache()
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
)
dataset = load("digits")
data = [on_device(s, dataset.mean, dataset.std) for s in (dataset.train, dataset.valid)]
network = chain.build(Architecture({arch!r}), 10)
training = Training(network, Hyper(learning_rate=0.02), data[0], 10, TrainingConfig(), seed=0, epochs=1)
for m in train(training, data[1], until=1):
    print(m.train_loss, m.valid_loss, m.valid_accuracy)
print(len(compiled))
"""


@pytest.mark.slow
def test_compiled_programs_are_shared_by_processes(tmp_path):
    """Also where only JAX's cache has them, or a stored one is damaged: always the same numbers."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NAS_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    # the library of native kernels, which takes longer to build than all of this
    native = cache_root() / "native"
    if native.is_dir():
        (tmp_path / "native").symlink_to(native)
    arch = BASE | {"connections": "residual", "width_2": 8, "pooling": "none"}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", STORED.format(arch=arch)],
            capture_output=True,
            text=True,
            env=env,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    *first, compiled = run()
    *second, again = run()
    assert second == first
    assert int(again) == int(compiled) - 2  # the step and the prediction were not so much as looked for
    stored = list((tmp_path / "programs").iterdir())
    assert len(stored) == 2
    for path in stored:
        path.write_bytes(path.read_bytes()[:1000])
    assert run()[:-1] == first
    for path in stored:
        path.unlink()
    assert run()[:-1] == first
    assert run()[:-1] == first


PARALLEL = """
import sys
import threading
import numpy as np, jax
from nas.data import load
from nas.training import programs
from nas.training.hyper import Hyper
from nas.training.config import TrainingConfig
from nas.training.loop import Training, on_device, train
from search_spaces import chain
assert jax.local_device_count() == 8
dataset = load("digits", cache_dir=sys.argv[1])
arch = {arch!r}
for devices in (1, 8, 1, 8):
    programs._compiled.cache_clear()  # the second time they come from disk
    config = TrainingConfig(devices=devices, ema_decay=0.9, clip_norm=1.0)
    data = [on_device(s, dataset.mean, dataset.std, devices) for s in (dataset.train, dataset.valid)]
    hyper = Hyper(learning_rate=0.02, dropout=0.1, augmentation="crop+mixup")
    training = Training(chain.build(arch, 10), hyper, data[0], 10, config, seed=0, epochs=2)
    for m in train(training, data[1], until=2):
        print(m.train_loss, m.valid_loss, m.valid_accuracy)
    leaf = training.state.variables["params"]["conv_2"]["kernel"]
    assert len(leaf.sharding.device_set) == devices
"""


@pytest.mark.slow
def test_eight_devices_equal_one_up_to_rounding(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    env |= {"JAX_PLATFORMS": "cpu", "NAS_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PARALLEL.format(arch=BASE), str(tmp_path)],
        capture_output=True, text=True, env=env, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])
    assert values.shape == (8, 3)
    np.testing.assert_allclose(values[2:4], values[:2], rtol=2e-2)
    np.testing.assert_array_equal(values[4:], values[:4])
    assert len(list((tmp_path / "programs").iterdir())) == 4


MANY_PROGRAMS = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from nas.training.programs import data_mesh, paced
mesh = data_mesh(2)
x = jax.device_put(np.ones((16, 300, 300), np.float32), NamedSharding(mesh, P("data")))
predict = jax.jit(lambda x: jnp.sin(x @ x).sum((1, 2)))
tally = jax.jit(lambda total, y: total + y.sum(), out_shardings=NamedSharding(mesh, P()))
total = jax.device_put(np.float32(0), NamedSharding(mesh, P()))
for _ in range(50):
    total = tally(total, paced(predict(x), mesh))
print(float(total))
"""


@pytest.mark.slow
def test_more_programs_than_may_be_under_way_run_on_two_devices_of_two_threads():
    """Not waiting for any of them ends in a deadlock, which XLA aborts after 21 s."""
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_collective_call_terminate_timeout_seconds=1"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "NPROC": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MANY_PROGRAMS]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]


# ------------------------------------------------------------------- modules' own weight decay, parts of a pass


def test_choices_of_a_modules_weight_decay_reach_its_update():
    dataset = load("digits")
    data = on_device(dataset.train, dataset.mean, dataset.std)
    arch = Architecture(BASE, optimiser="sgd", learning_rate=0.1, schedule="constant", weight_decay=0.0)
    config = TrainingConfig(steps_per_epoch=1)

    def kernels(arch):
        training = Training(
            chain.build(arch, 10), hyper_of(arch), data, 10, config, seed=0, epochs=1
        )  # fmt: skip
        training.compile()
        before = jax.tree.map(np.array, training.state.variables["params"])
        training.train_epoch(0)
        return before, jax.tree.map(np.array, training.state.variables["params"])

    before, plain = kernels(arch)
    _, decayed = kernels(arch.set(weight_decay_conv_2=0.5))
    for name, tree in plain.items():
        # One step of gradient descent: the penalty takes rate times decay of the kernel, of that layer alone.
        taken = 0.05 * before[name]["kernel"] if name == "conv_2" else 0.0
        if "kernel" in tree:
            np.testing.assert_allclose(decayed[name]["kernel"], tree["kernel"] - taken, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"^weight_decay: module: 'conv_9' is not one of conv_1, "):
        kernels(arch.set(weight_decay_conv_9=0.5))
    with pytest.raises(InputError, match=r"^weight_decay_conv_1: -1 is not a finite number of at least 0$"):
        hyper_of(arch.set(weight_decay_conv_1=-1))


def test_parts_of_a_pass_see_each_image_once(monkeypatch):
    dataset = load("digits")
    data = on_device(dataset.train, dataset.mean, dataset.std)
    config = TrainingConfig(steps_per_epoch=7)
    hyper = hyper_of(Architecture(batch_size=32))
    network = chain.build(Architecture(BASE), 10)
    training = Training(network, hyper, data, 10, config, seed=3, epochs=8)
    seen: list[np.ndarray] = []
    plan = training._plan

    def spied(*arguments):
        drawn = plan(*arguments)
        seen.append(drawn["index"])
        return drawn

    monkeypatch.setattr(training, "_plan", spied)
    training.compile()
    passed = len(data.labels) // 32 // 7
    seen.clear()
    for epoch in range(2 * passed):
        training.train_epoch(epoch)
    assert {part.shape for part in seen} == {(7, 32)}
    first, second = (np.concatenate(part).ravel() for part in (seen[:passed], seen[passed:]))
    assert len(set(first.tolist())) == len(first) == passed * 7 * 32
    assert first.tolist() != second.tolist()
    with pytest.raises(InputError, match=r"^steps_per_epoch: 99 is more than the "):
        Training(network, hyper, data, 10, TrainingConfig(steps_per_epoch=99), seed=0, epochs=1)
    with pytest.raises(InputError, match=r"^steps_per_epoch: 0 is below 1"):
        TrainingConfig(steps_per_epoch=0)
