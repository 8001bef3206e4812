"""The fused operations: native kernels against plain jnp, flax and optax; derivatives; transformations."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax import export

from nas.errors import InputError
from nas.ops import fused, native, noise

ROOT = Path(__file__).parents[2]
needs_native = pytest.mark.skipif(not native.available(), reason=native.native_status())


def normal(seed, *shape, scale=1.0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(shift, scale, shape), jnp.float32)


def batch(shape, *, residual=False, seed=0):
    """x, scale, bias [, residual] and a cotangent for y."""
    channels = shape[-1]
    arrays = [
        normal(seed, *shape, scale=2, shift=1),
        normal(seed + 1, channels, shift=1),
        normal(seed + 2, channels),
    ]
    return [*arrays, *([normal(seed + 3, *shape)] if residual else [])], normal(seed + 4, *shape)


def value_and_gradients(function, arrays, cotangent):
    """``function``'s value and its gradients by all arrays along ``cotangent``, jitted."""

    def run(arrays, cotangent):
        value, backward = jax.vjp(function, *arrays)
        return value, backward(cotangent)

    return jax.jit(run)(arrays, cotangent)


@pytest.fixture
def portable(monkeypatch):
    """Runs a function with the plain jnp form of everything."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "_use_native", lambda *arrays: False)
            return function(*args)

    return run


def close(found, expected, *, atol=2e-5, rtol=2e-5, case=""):
    """Leaves equal up to rounding, measured by each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        size = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * size, err_msg=str(case))


def agree(portable, cases, **tolerance):
    """Every ``function, arrays, cotangent`` has with native kernels the value and gradients of its jnp form.

    The jnp forms are compiled in one program: that is quicker.
    """
    found = {
        name: value_and_gradients(function, arrays, cotangent)
        for name, (function, arrays, cotangent) in cases.items()
    }

    def run(values):
        return {name: value_and_gradients(cases[name][0], *value) for name, value in values.items()}

    expected = portable(jax.jit(run), {name: case[1:] for name, case in cases.items()})
    for name in cases:
        close(found[name], expected[name], case=name, **tolerance)


# ---- activations ----------------------------------------------------------------------------------------------


@needs_native
def test_activations_and_their_slopes(portable):
    grid = np.concatenate([np.linspace(-12, 12, 4801), [-200, 200, 1e-8, -1e-8, 0.5, 88, -88]])
    x = jnp.asarray(grid[np.abs(np.abs(grid) - 3) > 1e-3], jnp.float32)
    x = x[(x != 0) & (x != 6)]

    def all_of_them(x):
        return [fused.activate(x, name) for name in fused.ACTIVATIONS]

    ones = [jnp.ones_like(x)] * len(fused.ACTIVATIONS)
    found, found_slopes = zip(
        *(value_and_gradients(lambda x, n=n: fused.activate(x, n), [x], ones[0]) for n in fused.ACTIVATIONS),
        strict=True,
    )
    expected = portable(jax.jit(all_of_them), x)
    slopes = portable(
        jax.jit(lambda x: [jax.vjp(f, x)[1](jnp.ones_like(x))[0] for f in fused.ACTIVATIONS.values()]), x
    )
    for name, a, b, da, db in zip(fused.ACTIVATIONS, found, expected, found_slopes, slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6 if name == "gelu" else 2e-7, err_msg=name)
        np.testing.assert_allclose(da[0], db, rtol=2e-6, atol=4e-6 if name == "gelu" else 1e-6, err_msg=name)


@needs_native
@pytest.mark.parametrize("name", sorted(fused.ACTIVATIONS))
def test_activations_pass_nan_on(name):
    x = jnp.asarray([1.0, np.nan, -1.0, np.nan], jnp.float32)
    assert np.isnan(fused.activate(x, name)).tolist() == [False, True, False, True]


def test_activation_names():
    x = normal(0, 3, 4)
    close(fused.activate(x, "swish"), jax.nn.silu(x))
    assert fused.activate(x, "identity") is x
    close(fused.activate(jnp.float32(-2), "relu"), jnp.float32(0))
    with pytest.raises(
        InputError, match=r"^activate: activation: 'mish' is not one of identity, relu, .*swish$"
    ):
        fused.activate(x, "mish")


# ---- normalisation --------------------------------------------------------------------------------------------


@needs_native
def test_batch_norm(portable):
    shapes = [(4, 3, 5, 1), (6, 7, 3), (50, 24), (40, 100), (1100, 8)]
    agree(
        portable,
        {
            shape: (lambda *a: fused.batch_norm_act(*a, activation="relu")[0], *batch(shape))
            for shape in shapes
        },
    )


@needs_native
def test_batch_norm_activations(portable):
    kinds = [("gelu", False), ("tanh", False), *((name, True) for name in fused.ACTIVATIONS)]
    agree(
        portable,
        {
            (name, residual): (
                lambda *a, name=name: fused.batch_norm_act(*a, activation=name)[0],
                *batch((7, 5, 6), residual=residual),
            )
            for name, residual in kinds
        },
    )


@needs_native
def test_batch_norm_over_many_tasks(portable):
    """Large enough for several threads, and channels that fill no vector."""
    function = functools.partial(fused.batch_norm_act, activation="silu")
    cases = {
        channels: (lambda *a: function(*a)[0], *batch((16, 28, 28, channels), residual=True))
        for channels in (20, 129)
    }
    agree(portable, cases, atol=1e-4)


def test_batch_norm_is_flax_batch_norm():
    (x, scale, bias), dy = batch((8, 6, 6, 12))
    layer = linen.BatchNorm(use_running_average=False, use_fast_variance=False)
    fresh = layer.init(jax.random.key(0), x)

    def flax(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": fresh["batch_stats"]}
        return layer.apply(variables, x, mutable=["batch_stats"])

    y, updated = flax(x, scale, bias)
    found, mean, var = fused.batch_norm_act(x, scale, bias)
    close(found, y)
    # flax's running statistics begin at 0 and 1 and keep 0.99
    close(fused.ema_update(fresh["batch_stats"], {"mean": mean, "var": var}, 0.99), updated["batch_stats"])
    gradients = jax.vjp(lambda *a: flax(*a)[0], x, scale, bias)[1](dy)
    close(jax.vjp(lambda *a: fused.batch_norm_act(*a)[0], x, scale, bias)[1](dy), gradients)
    evaluated = linen.BatchNorm(use_running_average=True).apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}, x
    )
    close(fused.batch_norm_inference(x, scale, bias, mean, var), evaluated)


@needs_native
def test_batch_norm_keeps_the_digits_of_a_small_variance():
    x = normal(0, 4000, 24, scale=1e-2, shift=1000)
    exact = np.asarray(x, np.float64)
    _, mean, var = fused.batch_norm_act(x, jnp.ones(24), jnp.zeros(24))
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-5)


def test_statistics_carry_no_gradient(portable):
    arrays, _ = batch((9, 4))

    def statistics(x, scale, bias):
        _, mean, var = fused.batch_norm_act(x, scale, bias)
        return (mean**2 + var).sum()

    for gradients in (jax.grad(statistics)(*arrays), portable(jax.grad(statistics), *arrays)):
        assert not gradients.any()


@needs_native
def test_batch_norm_inference(portable):
    cases = {}
    for residual in (False, True):
        arrays, dy = batch((7, 5, 6), residual=residual)
        arrays[3:3] = [normal(7, 6), jnp.abs(normal(8, 6)) + 0.1]
        cases[residual] = (lambda *a: fused.batch_norm_inference(*a, activation="gelu"), arrays, dy)
    agree(portable, cases)


@needs_native
def test_scale_shift(portable):
    x, *given = batch((6, 5, 7), residual=True)[0]
    cases = {}
    for activation in ("identity", "relu", "gelu"):
        for has in range(8):
            places = [i for i in range(3) if has >> i & 1]

            def function(x, *some, places=places, activation=activation):
                arguments = [None, None, None]
                for place, one in zip(places, some, strict=True):
                    arguments[place] = one
                return fused.scale_shift_act(x, *arguments, activation=activation)

            cases[activation, has] = (function, [x, *(given[i] for i in places)], normal(9, 6, 5, 7))
    agree(portable, cases)


@needs_native
def test_layer_norm(portable):
    kinds = {
        (6, 7, 3): ("identity", True),
        (50, 24): ("gelu", False),
        (3, 9, 9, 32): ("relu", True),
        (5, 11, 65): ("silu", True),
        (700, 96): ("tanh", True),
    }
    agree(
        portable,
        {
            shape: (
                lambda *a, name=name: fused.layer_norm_act(*a, activation=name),
                *batch(shape, residual=residual),
            )
            for shape, (name, residual) in kinds.items()
        },
    )


def test_layer_norm_is_flax_layer_norm():
    (x, scale, bias), _ = batch((8, 6, 12))
    expected = linen.LayerNorm(use_fast_variance=False).apply({"params": {"scale": scale, "bias": bias}}, x)
    close(fused.layer_norm_act(x, scale, bias), expected)


@needs_native
def test_local_response_norm(portable):
    x, dy = normal(0, 3, 5, 20, scale=3), normal(1, 3, 5, 20)
    agree(
        portable,
        {
            (size, beta): (
                lambda x, size=size, beta=beta: fused.local_response_norm(x, size=size, beta=beta, alpha=0.1),
                [x],
                dy,
            )
            for size, beta in ((1, 0.75), (4, 0.75), (5, 0.5), (5, 1.0), (5, 0.6))
        },
    )


def test_local_response_norm_is_the_papers():
    x = np.asarray(normal(0, 9, scale=20))
    expected = [
        x[i] / (2 + 1e-4 * sum(x[j] ** 2 for j in range(max(0, i - 2), min(9, i + 3)))) ** 0.75
        for i in range(9)
    ]
    np.testing.assert_allclose(fused.local_response_norm(jnp.asarray(x)), expected, rtol=1e-6)


# ---- where edges meet -----------------------------------------------------------------------------------------


@needs_native
def test_concatenate(portable):
    agree(
        portable,
        {
            channels: (
                lambda *a: fused.concatenate(a),
                [normal(i, 40, 5, count) for i, count in enumerate(channels)],
                normal(9, 40, 5, sum(channels)),
            )
            for channels in ((1,), (3, 5), (16, 32, 7), (2, 2, 2, 2))
        },
        atol=0,
        rtol=0,
    )


@needs_native
def test_add_and_fork(portable):
    arrays = [normal(i, 50, 700, 3) for i in range(3)]

    def function(*arrays):
        a, b, c, _ = fused.fork(fused.add(*arrays), 4)  # one reader sends nothing back
        return fused.add(a, jnp.sin(b), c * c)

    agree(portable, {"": (function, arrays, normal(9, 50, 700, 3))})
    assert fused.add(arrays[0]) is arrays[0]
    backward = jax.jit(lambda x: jax.grad(lambda x: sum(a.sum() for a in fused.fork(x, 3)))(x))
    assert "@nas_total" in backward.lower(arrays[0]).as_text()
    direction = [normal(7, 50, 700, 3)] * 3
    close(jax.jvp(function, arrays, direction), portable(jax.jvp, function, arrays, direction))
    stacked = jnp.stack(arrays)
    close(
        jax.vmap(function, in_axes=(0, None, 1))(stacked, arrays[0], jnp.stack(arrays, 1))[1],
        function(arrays[1], arrays[0], arrays[1]),
    )


@needs_native
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_dropout_is_the_noise_modules(rate):
    x, dy = normal(0, 3, 7, 2000), normal(1, 3, 7, 2000)
    (found, gradient), (expected, by_jnp) = (
        value_and_gradients(lambda x, f=f: f(x, jnp.float32(rate), jnp.uint32(12345)), [x], dy)
        for f in (fused.dropout, noise.dropout)
    )
    close([found, gradient], [expected, by_jnp], atol=0, rtol=1e-6)
    np.testing.assert_allclose((np.asarray(found) == 0).mean(), rate, atol=0.01)


# ---- dense layers and the loss --------------------------------------------------------------------------------


@needs_native
def test_dense(portable):
    cases = {}
    for rows, inputs, outputs, bias, activation in (
        (1, 1, 1, True, "identity"),
        (5, 7, 3, False, "relu"),
        (32, 84, 10, True, "identity"),
        (13, 33, 47, True, "tanh"),
        (64, 401, 130, True, "relu"),
        (8, 12, 9, True, "gelu"),
        (3, 700, 200, True, "relu"),
    ):
        arrays = [
            normal(0, rows, inputs),
            normal(1, inputs, outputs),
            *([normal(2, outputs)] if bias else []),
        ]
        function = functools.partial(fused.dense, activation=activation)
        cases[rows, inputs, outputs] = (function, arrays, normal(3, rows, outputs))
    agree(portable, cases, atol=1e-5)


@needs_native
def test_softmax_cross_entropy(portable):
    cases = {}
    for classes, mean in ((2, True), (10, False), (37, True), (37, False)):
        logits = normal(0, 12, classes, scale=6)
        targets = jax.nn.softmax(normal(1, 12, classes)) * 1.5
        dloss = jnp.float32(0.7) if mean else normal(2, 12)
        cases[classes, mean] = (
            functools.partial(fused.softmax_cross_entropy, mean=mean),
            [logits, targets],
            dloss,
        )
    agree(portable, cases)


def test_softmax_cross_entropy_is_optax():
    logits, labels = normal(0, 6, 5), jnp.asarray([0, 4, 2, 2, 1, 3])
    close(
        fused.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 5)),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
    )


def test_count_correct():
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0], [0.0, np.nan, 5.0]], jnp.float32)
    labels = jnp.asarray([1, 0, 1], jnp.int32)
    assert fused.count_correct(logits, labels) == 3  # ties to the first, NaN largest, as jnp.argmax
    assert fused.count_correct(logits, jnp.asarray([1, 2, 2], jnp.int32)) == 1


# ---- optimisers -----------------------------------------------------------------------------------------------

OPTAX = {
    "sgd": lambda rate, decay, mask: optax.chain(optax.add_decayed_weights(decay, mask), optax.sgd(rate)),
    "momentum": lambda rate, decay, mask: optax.chain(
        optax.add_decayed_weights(decay, mask), optax.sgd(rate, momentum=0.9)
    ),
    "nesterov": lambda rate, decay, mask: optax.chain(
        optax.add_decayed_weights(decay, mask), optax.sgd(rate, momentum=0.9, nesterov=True)
    ),
    "rmsprop": lambda rate, decay, mask: optax.chain(
        optax.add_decayed_weights(decay, mask), optax.rmsprop(rate)
    ),
    "adam": lambda rate, decay, mask: optax.chain(optax.add_decayed_weights(decay, mask), optax.adam(rate)),
    "adamw": lambda rate, decay, mask: optax.adamw(rate, weight_decay=decay, mask=mask),
}


def leaves(seed):
    """Parameters of a small network; more than one task's worth."""
    return {
        "conv": normal(seed, 3, 3, 5, 70),
        "bias": normal(seed, 37),
        "dense": {"w": normal(seed, 300, 120)},
    }


@pytest.mark.parametrize("kind", fused.OPTIMISERS)
def test_optimisers_are_optax(kind, portable):
    params = expected = by_jnp = leaves(0)
    slots = jnp_slots = fused.optimiser_slots(kind, params)
    reference = OPTAX[kind](0.02, 0.03, jax.tree.map(lambda leaf: leaf.ndim >= 2, params))
    state = reference.init(expected)
    step = jax.jit(functools.partial(fused.fused_update, kind))
    jnp_step = jax.jit(lambda *args: fused.fused_update(kind, *args))
    theirs = jax.jit(reference.update)
    for count in range(3):
        grads = leaves(count + 1)
        scalars = {"learning_rate": 0.02, "weight_decay": 0.03, "step": count}
        params, slots = step(params, grads, slots, scalars)
        by_jnp, jnp_slots = portable(jnp_step, by_jnp, grads, jnp_slots, scalars)
        updates, state = theirs(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    close(params, expected, atol=1e-6, rtol=1e-5)
    close(by_jnp, expected, atol=1e-6, rtol=1e-5)
    close(slots, jnp_slots, atol=1e-6, rtol=1e-6)


def test_optimiser_scalars_do_not_change_the_program():
    params, traced = leaves(0), []

    @jax.jit
    def step(*args):
        traced.append(args)
        return fused.fused_update("nesterov", *args)

    slots = fused.optimiser_slots("nesterov", params)
    for rate, count in ((0.1, 0), (0.2, 1)):
        scalars = {"learning_rate": rate, "momentum": rate, "step": count, "grad_scale": 0.5}
        step(params, leaves(1), slots, scalars)
    assert len(traced) == 1


def test_gradients_are_scaled_and_the_mask_is_kept():
    params, grads = leaves(0), leaves(1)
    mask = {"conv": False, "bias": True, "dense": {"w": False}}
    scalars = {"learning_rate": 0.1, "weight_decay": 0.5, "grad_scale": 0.25}
    found, slots = fused.fused_update("sgd", params, grads, (), scalars, mask)
    expected = jax.tree.map(lambda p, g, m: p - 0.1 * (0.25 * g + (0.5 * p if m else 0)), params, grads, mask)
    close(found, expected)
    assert slots == ()


@needs_native
def test_optimiser_works_in_place_when_donated():
    params = leaves(0)
    step = jax.jit(functools.partial(fused.fused_update, "adam"), donate_argnums=(0, 2))
    compiled = step.lower(params, params, fused.optimiser_slots("adam", params), {"step": 0}).compile()
    assert "copy(" not in str(compiled.as_text())
    given = jax.tree.map(jnp.copy, params)
    first = fused.fused_update("adam", params, params, fused.optimiser_slots("adam", params), {})
    close(step(given, params, fused.optimiser_slots("adam", params), {"step": 0}), first, atol=0, rtol=0)
    assert jax.tree.leaves(given)[0].is_deleted()


def test_wrong_optimisers():
    params = leaves(0)
    with pytest.raises(InputError, match=r"^optimiser: 'lion' is not one of sgd, momentum, .*adamw$"):
        fused.optimiser_slots("lion", params)
    with pytest.raises(InputError, match=r"^optimiser: adam has 2 slots, not 1$"):
        fused.fused_update("adam", params, params, (params,), {})
    with pytest.raises(InputError, match=r"^optimiser: scalar: 'beta1' is not one of learning_rate, "):
        fused.fused_update("sgd", params, params, (), {"beta1": 0.9})


def test_global_norm_and_clipping(portable):
    tree = leaves(0)
    norm = optax.tree.norm(tree)
    for run in (lambda f, *a: f(*a), portable):
        close(run(fused.global_norm, tree), norm)
        found, factor = run(fused.clip_scale, tree, norm / 2)
        close([found, factor], [norm, jnp.float32(0.5)])
        assert run(fused.clip_scale, tree, norm * 2)[1] == 1


def test_averages(portable):
    old, new = leaves(0), leaves(1)
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)
    for run in (lambda f, *a: f(*a), portable):
        close(run(fused.ema_update, old, new, 0.9), expected, atol=1e-6)
        close(run(fused.lerp, old, new, 0.1), expected, atol=1e-6)
    assert fused.ema_update({}, {}, 0.9) == {}


# ---- the input pipeline ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_gathered_images(channels, portable):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 9, 7, channels), np.uint8)
    index = np.array([3, 19, 0, 3, -1, 25, 7, 8], np.int32)  # -1 and 25 are both the last
    mean, inverse = random.random(channels, np.float32), 1 + random.random(channels, np.float32)
    shift = np.array([[0, 0], [2, -1], [-3, 2], [0, 0], [9, 0], [1, 1], [0, -7], [-1, 3]], np.int32)
    flip = np.array([0, 1, 0, 1, 0, 1, 0, 1], bool)
    cutout = np.array(
        [[0, 0, 0], [2, 3, 4], [-2, -1, 4], [7, 5, 9], [0, 0, 9], [3, 3, 1], [0, 0, 0], [1, 6, 2]], np.int32
    )

    expected, augmented = [], []
    for i, (dy, dx) in zip(index, shift, strict=True):
        image = images[min(i, 19)]
        expected.append((image / np.float32(255) - mean) * inverse)
        wide = np.pad(image, ((9, 9), (7, 7), (0, 0)))
        augmented.append((wide[9 + dy : 18 + dy, 7 + dx : 14 + dx] / np.float32(255) - mean) * inverse)
    for image, mirrored, (top, left, size) in zip(augmented, flip, cutout, strict=True):
        image[:] = image[:, ::-1] if mirrored else image
        image[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0

    arrays = [jnp.asarray(a) for a in (images, index, mean, inverse)]
    parameters = [jnp.asarray(a) for a in (shift, flip, cutout)]
    for run in (lambda f, *a: f(*a), portable):
        np.testing.assert_allclose(run(fused.gather_normalise, *arrays), expected, atol=1e-6)
        np.testing.assert_allclose(run(fused.gather_augmented, *arrays, *parameters), augmented, atol=1e-6)


def test_gathered_targets(portable):
    labels, index = jnp.asarray([2, 0, 1], jnp.int32), jnp.asarray([0, 2, 9], jnp.int32)
    for run in (lambda f, *a: f(*a), portable):
        chosen, targets = run(fused.gather_targets, labels, index, 3, 0.3)
        assert chosen.tolist() == [2, 1, 1]
        np.testing.assert_allclose(targets, np.eye(3)[[2, 1, 1]] * 0.7 + 0.1, rtol=1e-6)


# ---- derivatives of derivatives, and transformations ----------------------------------------------------------


def network(params, x, targets):
    """Everything differentiable, small."""
    y, _, _ = fused.batch_norm_act(x, params["s"], params["b"], activation="tanh")
    y = fused.batch_norm_act(y, params["s"], params["b"], x, activation="silu")[0]
    y = fused.layer_norm_act(y, params["s"], params["b"], x, activation="elu")
    y = fused.scale_shift_act(y, params["s"], params["b"], x, activation="gelu")
    y = fused.local_response_norm(y, size=3, alpha=0.5)
    y = fused.dense(y.reshape(y.shape[0], -1), params["w"], params["c"], activation="sigmoid")
    y = fused.dense(y, params["v"])
    return fused.softmax_cross_entropy(y, targets, mean=True)


@pytest.fixture
def example():
    params = {
        "s": normal(1, 5, shift=1),
        "b": normal(2, 5),
        "w": normal(3, 20, 6),
        "c": normal(4, 6),
        "v": normal(5, 6, 3),
    }
    return params, normal(0, 7, 2, 2, 5), jax.nn.softmax(normal(6, 7, 3))


@needs_native
def test_a_network_and_its_second_derivatives(example, portable):
    params, x, targets = example
    direction = jax.tree.map(lambda leaf: normal(9, *leaf.shape), params)

    def forward(params):
        gradient = functools.partial(jax.grad(network), x=x, targets=targets)
        return (
            jax.jvp(functools.partial(network, x=x, targets=targets), (params,), (direction,)),
            jax.jvp(gradient, (params,), (direction,)),
        )

    def reverse(params):
        gradient = jax.grad(network)(params, x, targets)
        return sum(jnp.vdot(g, direction[name]) for name, g in gradient.items())

    found, expected = jax.jit(forward)(params), portable(jax.jit(lambda params: forward(params)), params)
    close(found, expected, atol=5e-5)
    close(jax.jit(jax.grad(reverse))(params), found[1][1], atol=5e-5)


def test_gradients_are_finite_differences(example):
    params, x, targets = example
    gradient = jax.grad(network, argnums=(0, 1, 2))(params, x, targets)
    direction = jax.tree.map(lambda leaf: normal(9, *leaf.shape), example)
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    step = 1e-2
    there, back = (
        network(*jax.tree.map(lambda leaf, d, sign=sign: leaf + sign * step * d, example, direction))
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (there - back) / (2 * step), rtol=2e-2)


@needs_native
def test_vmap_is_a_loop(example):
    params, x, targets = example
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 1.1, leaf - 0.1]), params)
    xs = jnp.stack([x, x + 1, x * 2], axis=1)  # mapped along axis 1
    found = jax.vmap(jax.value_and_grad(network), in_axes=(0, 1, None))(several, xs, targets)
    for i in range(3):
        one = jax.value_and_grad(network)(jax.tree.map(lambda leaf, i=i: leaf[i], several), xs[:, i], targets)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], found), one)


@needs_native
def test_vmap_of_rows_is_one_call():
    x, scale = normal(0, 4, 6, 8), normal(1, 8)
    for function in (
        lambda x: fused.layer_norm_act(x, scale, scale),
        lambda x: fused.activate(x, "gelu"),
        lambda x: fused.softmax_cross_entropy(x, x),
        jax.grad(lambda x: fused.activate(x, "gelu").sum()),
    ):
        text = jax.jit(jax.vmap(function)).lower(x).as_text()
        assert "while" not in text
        close(jax.vmap(function)(x), jnp.stack([function(one) for one in x]), atol=1e-6)


def test_scan_and_checkpoint(example):
    params, x, targets = example

    def body(total, x):
        loss, gradient = jax.value_and_grad(jax.checkpoint(network))(params, x, targets)
        return total + loss, gradient

    total, gradients = jax.jit(lambda xs: jax.lax.scan(body, 0.0, xs))(jnp.stack([x, x + 1]))
    first, second = (jax.value_and_grad(network)(params, one, targets) for one in (x, x + 1))
    close(total, first[0] + second[0])
    close(jax.tree.map(lambda leaf: leaf[1], gradients), second[1])


def test_shapes_and_export(example):
    params, x, targets = example
    out = jax.eval_shape(jax.grad(network), params, x, targets)
    assert jax.tree.map(lambda leaf: leaf.shape, out) == jax.tree.map(lambda leaf: leaf.shape, params)
    exported = export.export(jax.jit(jax.grad(network)), platforms=["tpu", "cuda"])(params, x, targets)
    assert "@nas_" not in exported.mlir_module()


def test_without_a_compiler(example, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    lowered = jax.jit(lambda *args: jax.value_and_grad(network)(*args)).lower(*example)
    assert "@nas_" not in lowered.as_text()
    monkeypatch.undo()
    close(lowered.compile()(*example), jax.value_and_grad(network)(*example))


@needs_native
def test_nothing_is_left_for_xla_to_compile():
    """One custom call each: what XLA would have to generate code for is what takes its time."""
    arrays, dy = batch((4, 6, 6, 8), residual=True)
    dense = [normal(0, 4, 8), normal(1, 8, 3), normal(2, 3)]
    params = leaves(0)
    programs = {
        "batch norm": (
            lambda *a: jax.vjp(lambda *a: fused.batch_norm_act(*a, activation="relu")[0], *a)[1](dy),
            arrays,
        ),
        "scale": (
            lambda *a: jax.vjp(lambda *a: fused.scale_shift_act(*a, activation="gelu"), *a)[1](dy),
            arrays,
        ),
        "layer norm": (lambda *a: jax.vjp(lambda *a: fused.layer_norm_act(*a), *a)[1](dy), arrays),
        "dense": (
            lambda *a: jax.grad(
                lambda *a: fused.softmax_cross_entropy(
                    fused.dense(*a, activation="relu"), dense[2][None], mean=True
                )
            )(*a),
            [dense[0][:1], *dense[1:]],
        ),
        "update": (
            lambda p, *s: fused.fused_update("adam", p, p, s, {"learning_rate": 0.1}),
            [params, *fused.optimiser_slots("adam", params)],
        ),
    }
    for name, (function, args) in programs.items():
        text = str(jax.jit(function).lower(*args).compile().as_text())
        assert "custom-call" in text, name
        assert "fusion" not in text, name


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(dtype):
    arrays, _ = batch((5, 4, 6), residual=True)
    small = [arrays[0].astype(dtype), *arrays[1:3], arrays[3].astype(dtype)]
    y, mean, _ = fused.batch_norm_act(*small, activation="relu")
    assert y.dtype == dtype
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(y, fused.batch_norm_act(*arrays, activation="relu")[0], atol=0.1)
    assert fused.layer_norm_act(*small).dtype == dtype


def test_wrong_shapes():
    x, c = jnp.zeros((2, 3, 4)), jnp.zeros(4)
    for expected, call in {
        r"batch_norm_act: scale \(3,\) is not one value for each of x's 4 channels": lambda: (
            fused.batch_norm_act(x, jnp.zeros(3), c)
        ),
        r"layer_norm_act: residual \(2, 3\) is not shaped like x \(2, 3, 4\)": lambda: fused.layer_norm_act(
            x, c, c, jnp.zeros((2, 3))
        ),
        r"dense: x \(2, 3\) and w \(4, 5\) are not \[B, I\] and \[I, O\]": lambda: fused.dense(
            jnp.zeros((2, 3)), jnp.zeros((4, 5))
        ),
        r"dense: b \(4,\) is not one value for each of w's 5 outputs": lambda: fused.dense(
            jnp.zeros((2, 3)), jnp.zeros((3, 5)), c
        ),
        r"softmax_cross_entropy: logits \(2, 3\) and targets \(2, 4\) differ": lambda: (
            fused.softmax_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
        ),
        r"local_response_norm: size=0 of x \(2, 3, 4\) is not at least 1 channel": lambda: (
            fused.local_response_norm(x, size=0)
        ),
        r"gather_normalise: flip \(3,\) is not \(2,\)": lambda: fused.gather_augmented(
            jnp.zeros((3, 4, 4, 1), jnp.uint8),
            jnp.zeros(2, jnp.int32),
            jnp.zeros(1),
            jnp.zeros(1),
            jnp.zeros((2, 2), jnp.int32),
            jnp.zeros(3, bool),
            jnp.zeros((2, 3), jnp.int32),
        ),
    }.items():
        with pytest.raises(InputError, match=f"^{expected}$"):
            call()


# ---- other processes ------------------------------------------------------------------------------------------

_PROGRAM = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from nas.ops import fused, native_status
x = jnp.asarray(np.random.default_rng(0).normal(size=(60, 30, 30, 24)), jnp.float32)
s = x[0, 0, 0]
f = lambda x, s: fused.layer_norm_act(fused.batch_norm_act(x, s, s, activation="relu")[0], s, s)
y, backward = jax.vjp(f, x, s)
w = x.reshape(60, -1)[:, :3000].T
found = [y, *backward(x), fused.global_norm([x]), fused.dense(w.T, w)]
print(native_status().split(":")[0], hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in found)).hexdigest())
"""


def run_elsewhere(threads, **environment):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, threads],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way here to take one processor only")
def test_results_do_not_depend_on_threads():
    one, all_of_them = run_elsewhere("one"), run_elsewhere("all")
    assert one.startswith("native kernels")
    assert one == all_of_them


# ---- second derivatives by kernels ------------------------------------------------------------------------------


def second_order_cases():
    """A function whose derivatives of two orders go through native kernels, and its arguments."""
    x, cotangent = normal(0, 5, 6, 7, 20, shift=0.3), normal(1, 5, 6, 7, 20)
    maps = [normal(k, 4, 3, 3, 5) for k in range(3)]
    fixed = normal(5, 4)

    def normalised(activation):
        def run(x):
            y = fused.batch_norm_act(x, jnp.full(20, 1.5), jnp.full(20, 0.3), activation=activation)[0]
            return jnp.sum(jnp.tanh(y) * cotangent)

        return run

    def affine(x, scale, bias):
        return jnp.sum(jnp.tanh(fused.batch_norm_act(x, scale, bias, activation="relu")[0]) * cotangent)

    def mixed(weights, *maps):
        return jnp.sum(jnp.sin(fused.weighted_sum(weights, maps, (3, 0, 2))))

    return {
        "batch_norm": (normalised("identity"), (x,)),
        "batch_norm_relu": (normalised("relu"), (x,)),
        "batch_norm_affine": (affine, (x, normal(2, 20), normal(3, 20))),
        "relu": (lambda x: jnp.sum(jnp.tanh(fused.activate(x * x - 0.5, "relu")) * cotangent), (x,)),
        "tanh": (lambda x: jnp.sum(jnp.square(fused.activate(x, "tanh")) * cotangent), (x,)),
        "weighted_sum": (mixed, (fixed, *maps)),
        "weighted_sum_of_moving_maps": (lambda *maps: mixed(fixed, *maps), tuple(maps)),
        "weighted_sum_with_moving_weights": (lambda weights: mixed(weights, *maps), (fixed,)),
    }


@pytest.mark.parametrize("case", second_order_cases())
def test_second_derivatives_by_kernels_equal_plain_jnp(case, portable):
    function, arguments = second_order_cases()[case]
    places = tuple(range(len(arguments)))
    dots = tuple(normal(50 + k, *one.shape) for k, one in enumerate(arguments))

    def gradients(*arguments):
        return jax.grad(function, places)(*arguments)

    def derivatives():
        def run(arguments, dots):
            tangent = jax.jvp(function, arguments, dots)[1]
            forward = jax.jvp(gradients, arguments, dots)[1]
            inner = lambda *arguments: sum(map(jnp.vdot, gradients(*arguments), dots))  # noqa: E731
            return tangent, forward, jax.grad(inner, places)(*arguments)

        return jax.jit(run)(arguments, dots)

    tangent, forward, reverse = derivatives()
    expected_tangent, expected, _ = portable(derivatives)
    np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-4)
    for found in (forward, reverse):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
