"""Normalisations: kernels against plain jnp and Flax; derivatives."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import export

from nas.cpu import native
from nas.cpu.function import visible_relu
from nas.cpu.normalisation import FUSED, batch_norm, batch_norm_inference, moments
from nas.nn.layers import layer_norm, local_response_norm, running
from tests.arrays import agree, close, in_plain, normal, second_derivatives_agree

ROOT = Path(__file__).parents[2]
needs_native = pytest.mark.skipif(not native.enabled("normalisation"), reason=native.native_status())


def batch(shape, *, seed=0):
    """x, scale, bias and a cotangent for y."""
    channels = shape[-1]
    arrays = [
        normal(seed, *shape, scale=2, shift=1),
        normal(seed + 1, channels, shift=1),
        normal(seed + 2, channels),
    ]
    return arrays, normal(seed + 4, *shape)


# ---- batch normalisation --------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.some(2)
def test_batch_norm(activation):
    shapes = [(4, 3, 5, 1), (6, 7, 3), (50, 24), (40, 100), (1100, 8)]
    agree({shape: (lambda *a: batch_norm(*a, activation=activation)[0], *batch(shape)) for shape in shapes})


@needs_native
def test_batch_norm_over_many_tasks():
    """Large enough for several threads, and channels that fill no vector."""
    cases = {
        channels: (lambda *a: batch_norm(*a, activation="relu")[0], *batch((16, 28, 28, channels)))
        for channels in (20, 129)
    }
    agree(cases, atol=1e-4)


@pytest.mark.parametrize("activation", FUSED)
def test_batch_norm_passes_nan_on(activation):
    arrays, _ = batch((9, 3))
    y, *_ = batch_norm(arrays[0].at[4, 1].set(np.nan), *arrays[1:], activation=activation)
    assert np.isnan(y).all(0).tolist() == [False, True, False]


def test_batch_norm_is_flax_batch_norm():
    (x, scale, bias), dy = batch((8, 6, 6, 12))
    layer = linen.BatchNorm(use_running_average=False, use_fast_variance=False, momentum=0.9)
    fresh = layer.init(jax.random.key(0), x)

    def flax(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": fresh["batch_stats"]}
        return layer.apply(variables, x, mutable=["batch_stats"])

    y, updated = flax(x, scale, bias)
    found, mean, var = batch_norm(x, scale, bias)
    close(found, y)
    before: Any = fresh["batch_stats"]
    after = running((before["mean"], before["var"]), (mean, var))
    close(dict(zip(("mean", "var"), after, strict=True)), updated["batch_stats"])
    gradients = jax.vjp(lambda *a: flax(*a)[0], x, scale, bias)[1](dy)
    close(jax.vjp(lambda *a: batch_norm(*a)[0], x, scale, bias)[1](dy), gradients)
    evaluated = linen.BatchNorm(use_running_average=True).apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}, x
    )
    close(batch_norm_inference(x, scale, bias, mean, var), evaluated)


@needs_native
def test_batch_norm_keeps_the_digits_of_a_small_variance():
    x = normal(0, 4000, 24, scale=1e-2, shift=1000)
    exact = np.asarray(x, np.float64)
    for mean, var in (batch_norm(x, jnp.ones(24), jnp.zeros(24))[1:], moments(x)):
        np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
        np.testing.assert_allclose(var, exact.var(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_of_16_bit_numbers_are_exact_to_float32(dtype):
    x = normal(0, 4000, 24, scale=0.5, shift=20).astype(dtype)
    exact = np.asarray(x, np.float64)
    mean, var = moments(x)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(0), rtol=2e-3)


def test_statistics_carry_no_gradient():
    arrays, _ = batch((9, 4))

    def statistics(x, scale, bias):
        _, mean, var = batch_norm(x, scale, bias)
        return (mean**2 + var).sum()

    for gradients in (jax.grad(statistics)(*arrays), in_plain(jax.grad(statistics), *arrays)):
        assert not gradients.any()


def test_moments_carry_no_gradient():
    x = normal(0, 6, 5, 4, shift=2)
    close(moments(x), (x.mean((0, 1)), x.var((0, 1))))
    assert not jnp.any(jax.grad(lambda x: sum(map(jnp.sum, moments(x))))(x))


def test_batch_norm_inference():
    """By running statistics: differentiated as any other function of them."""
    (x, scale, bias), dy = batch((7, 5, 6))
    arrays = (x, scale, bias, normal(7, 6), jnp.abs(normal(8, 6)) + 0.1)

    def by_flax(x, scale, bias, mean, var):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        return linen.BatchNorm(use_running_average=True).apply(variables, x)

    close(batch_norm_inference(*arrays), by_flax(*arrays))
    close(*(jax.vjp(f, *arrays)[1](dy) for f in (batch_norm_inference, by_flax)))


# ---- layer normalisation --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_layer_norm_is_flax_layer_norm():
    (x, scale, bias), dy = batch((8, 6, 12))

    def flax(x, scale, bias):
        return linen.LayerNorm(epsilon=1e-5, use_fast_variance=False).apply(
            {"params": {"scale": scale, "bias": bias}}, x
        )

    close(layer_norm(x, scale, bias), flax(x, scale, bias))
    close(*(jax.vjp(f, x, scale, bias)[1](dy) for f in (layer_norm, flax)))


# ---- derivatives of derivatives, and transformations ----------------------------------------------------------


def network(params, x, targets):
    """All normalisations, small."""
    s, b = params["s"], params["b"]
    y = jnp.tanh(batch_norm(x, s, b)[0])
    y = jax.nn.silu(batch_norm(y, s, b)[0] + x)
    y = jax.nn.elu(layer_norm(y, s, b) + x)
    y = jax.nn.gelu(batch_norm_inference(y, s, b, b, 1 + s**2))
    y = local_response_norm(y, size=3, alpha=0.5)
    y = jax.nn.sigmoid(y.reshape(y.shape[0], -1) @ params["w"] + params["c"]) @ params["v"]
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(y), -1))


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


@pytest.mark.slow
@needs_native
def test_a_network_and_its_second_derivatives(example):
    params, x, targets = example
    direction = jax.tree.map(lambda leaf: normal(9, *leaf.shape), params)

    def forward(params):
        gradient = functools.partial(jax.grad(network), x=x, targets=targets)
        return network(params, x, targets), jax.jvp(gradient, (params,), (direction,))

    def reverse(params):
        gradient = jax.grad(network)(params, x, targets)
        return sum(jnp.vdot(g, direction[name]) for name, g in gradient.items())

    found, expected = jax.jit(forward)(params), in_plain(jax.jit(lambda params: forward(params)), params)
    close(found, expected, atol=5e-5)
    close(jax.jit(jax.grad(reverse))(params), found[1][1], atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [lambda f, *args: f(*args), in_plain], ids=["kernels", "plain"])
def test_gradients_are_finite_differences(example, how):
    params, x, targets = example
    gradient = how(jax.grad(network, argnums=(0, 1, 2)), params, x, targets)
    direction = jax.tree.map(lambda leaf: normal(9, *leaf.shape), example)
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    step = 1e-2
    there, back = (
        network(*jax.tree.map(lambda leaf, d, sign=sign: leaf + sign * step * d, example, direction))
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (there - back) / (2 * step), rtol=2e-2)


@pytest.mark.slow
@needs_native
def test_forward_mode_alone_is_by_the_plain_form(example):
    """A `jax.custom_vjp` has no tangents of its own; within `plain` there is none."""
    run = functools.partial(jax.jvp, network, example, jax.tree.map(jnp.ones_like, example))
    with pytest.raises(TypeError, match="forward-mode"):
        run()
    value, tangent = in_plain(run)
    gradients = jax.grad(network, (0, 1, 2))(*example)
    close(value, network(*example))
    close(tangent, sum(map(jnp.sum, jax.tree.leaves(gradients))), atol=5e-5)


@pytest.mark.slow
@needs_native
def test_vmap_is_a_loop(example):
    params, x, targets = example
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 1.1, leaf - 0.1]), params)
    xs = jnp.stack([x, x + 1, x * 2], axis=1)  # mapped along axis 1
    found = jax.vmap(jax.value_and_grad(network), in_axes=(0, 1, None))(several, xs, targets)
    for i in range(3):
        one = jax.value_and_grad(network)(jax.tree.map(lambda leaf, i=i: leaf[i], several), xs[:, i], targets)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], found), one)


@pytest.mark.slow
def test_scan_and_checkpoint(example):
    params, x, targets = example

    def body(total, x):
        loss, gradient = jax.value_and_grad(jax.checkpoint(network))(params, x, targets)
        return total + loss, gradient

    total, gradients = jax.jit(lambda xs: jax.lax.scan(body, 0.0, xs))(jnp.stack([x, x + 1]))
    first, second = (jax.value_and_grad(network)(params, one, targets) for one in (x, x + 1))
    close(total, first[0] + second[0])
    close(jax.tree.map(lambda leaf: leaf[1], gradients), second[1])


def second_order_cases():
    """A function whose derivatives of two orders go through native kernels, and its arguments."""
    x, cotangent = normal(0, 5, 6, 7, 20, shift=0.3), normal(1, 5, 6, 7, 20)

    def normalised(activation):
        def run(x):
            y = batch_norm(x, jnp.full(20, 1.5), jnp.full(20, 0.3), activation=activation)[0]
            return jnp.sum(jnp.tanh(y) * cotangent)

        return run

    def affine(x, scale, bias):
        return jnp.sum(jnp.tanh(batch_norm(x, scale, bias, activation="relu")[0]) * cotangent)

    return {
        **{f"batch_norm_{name}": (normalised(name), (x,)) for name in FUSED},
        "batch_norm_affine": (affine, (x, normal(2, 20), normal(3, 20))),
    }


@needs_native
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow) if case.endswith(("silu", "swish", "affine")) else case
        for case in second_order_cases()
    ],
)
@pytest.mark.some(1)
def test_second_derivatives_by_kernels_equal_plain_jnp(case):
    second_derivatives_agree(*second_order_cases()[case])


# ---- programs -------------------------------------------------------------------------------------------------


def test_shapes_and_other_platforms(example):
    """Within `plain` a program has no kernel, so that it can be one for another platform."""
    params, x, targets = example
    out = jax.eval_shape(jax.grad(network), params, x, targets)
    assert jax.tree.map(lambda leaf: leaf.shape, out) == jax.tree.map(lambda leaf: leaf.shape, params)
    exported = in_plain(export.export(jax.jit(jax.grad(network)), platforms=["tpu", "cuda"]), *example)
    assert "@nas_" not in exported.mlir_module()


@pytest.mark.slow
def test_without_a_compiler(example, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    jax.clear_caches()  # the normalisations are jitted, and a compiler does not come and go in one process
    lowered = jax.jit(lambda *args: jax.value_and_grad(network)(*args)).lower(*example)
    assert "@nas_" not in lowered.as_text()
    monkeypatch.undo()
    jax.clear_caches()
    close(lowered.compile()(*example), jax.value_and_grad(network)(*example))


@needs_native
def test_nothing_is_left_for_xla_to_compile():
    """One custom call each: what XLA would have to generate code for is what takes its time."""
    arrays, dy = batch((4, 6, 6, 8))

    def run(*arrays):
        value, backward = jax.vjp(lambda *a: batch_norm(*a, activation="relu")[0], *arrays)
        return value, backward(dy)

    lowered = jax.jit(run).lower(*arrays)
    for target in ("@nas_batch_norm(", "@nas_batch_norm_backward("):
        assert target in lowered.as_text()
    text = str(lowered.compile().as_text())
    assert "custom-call" in text
    assert "fusion" not in text


@needs_native
def test_rectifiers_are_seen_where_they_are_looked_for():
    """Apart from the normalisation before them, which keeps its kernel; values are the same."""
    arrays, _ = batch((4, 6, 8))
    function = functools.partial(batch_norm, activation="relu")
    found = function(*arrays)
    assert "name=relu" not in str(jax.make_jaxpr(function)(*arrays))
    with visible_relu():
        text = str(jax.make_jaxpr(lambda *a: function(*a))(*arrays))
        close(function(*arrays), found)
    assert "ffi_call" in text
    assert "name=relu" in text


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(dtype):
    arrays, _ = batch((5, 4, 6))
    small = [arrays[0].astype(dtype), *arrays[1:3]]
    y, mean, _ = batch_norm(*small, activation="relu")
    assert y.dtype == dtype
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(y, batch_norm(*arrays, activation="relu")[0], atol=0.1)
    assert layer_norm(*small).dtype == dtype


def test_no_images():
    x, c = jnp.zeros((0, 3, 4)), jnp.ones(4)
    assert batch_norm_inference(x, c, c, c, c).shape == x.shape
    assert layer_norm(x, c, c).shape == x.shape


# ---- other processes ------------------------------------------------------------------------------------------

_PROGRAM = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from nas.cpu.edges import weighted_sum
from nas.cpu.native import native_status
from nas.cpu.normalisation import batch_norm
x = jnp.asarray(np.random.default_rng(0).normal(size=(60, 30, 30, 24)), jnp.float32)
s = x[0, 0, 0]
f = lambda x, s: batch_norm(x, s, s, activation="relu")[0]
y, backward = jax.vjp(f, x, s)
z, along = jax.vjp(lambda w, x: weighted_sum(w, [x, x], (1, 0)), s, x)
found = [y, *backward(x), z, *along(x)]
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


@pytest.mark.slow
@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way here to take one processor only")
def test_results_do_not_depend_on_threads():
    one, all_of_them = run_elsewhere("one"), run_elsewhere("all")
    assert one.startswith("native kernels")
    assert one == all_of_them
