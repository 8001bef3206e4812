"""Convolution and pooling: values and derivatives against XLA's own ops; transformations; the kernels' build."""

import functools
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from nas import ops
from nas.cache import cache_folder
from nas.errors import InputError
from nas.ops import native

ROOT = Path(__file__).parents[2]
QUICKLY = {"xla_backend_optimization_level": 0}  # for references that run once
needs_native = pytest.mark.skipif(not native.available(), reason=native.native_status())


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_conv(x, w, *, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def lax_pool(x, start, operation, window, strides, padding):
    padding = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, start, operation, (1, *window, 1), (1, *strides, 1), padding)


def lax_max(x, *at):
    return lax_pool(x, -jnp.inf, lax.max, *at)


def lax_average(x, window, strides, padding, *, whole):
    count = (
        window[0] * window[1] if whole else lax_pool(jnp.ones_like(x), 0.0, lax.add, window, strides, padding)
    )
    return lax_pool(x, 0.0, lax.add, window, strides, padding) / count


def agree(found, expected, *, tolerance=2e-5):
    """Leaves are equal up to rounding, measured by each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))


def same_derivatives(function, reference, *arrays):
    """Value, all gradients and a tangent of both, in one program."""

    def everything(arrays, seeds):
        def of(function):
            value, backward = jax.vjp(function, *arrays)
            tangent = jax.jvp(function, arrays, tuple(array[::-1] for array in arrays))[1]
            return value, backward(seeds), tangent

        return of(function), of(reference)

    seeds = normal(99, *jax.eval_shape(reference, *arrays).shape)
    agree(*jax.jit(everything, compiler_options=QUICKLY)(arrays, seeds))


@pytest.fixture
def portable(monkeypatch):
    """The lowering for machines without a compiler."""
    jax.clear_caches()
    monkeypatch.setattr(native, "_found", lambda: native._Native(None, "portable kernels: test"))
    yield
    jax.clear_caches()


# ---- convolution ----------------------------------------------------------------------------------------------

# x, w [, arguments]: chosen to reach every kernel, its tails and its borders.
CONVOLUTIONS = {
    "digits' first layer": ((3, 28, 28, 1), (3, 3, 1, 16), {}),
    "5x5, stride 2, one channel": ((2, 13, 14, 1), (5, 5, 1, 10), {"strides": (2, 2)}),
    "one output": ((2, 6, 5, 3), (3, 3, 3, 1), {}),
    "tails": ((2, 7, 9, 5), (3, 2, 5, 37), {"padding": "VALID"}),
    "three panels": ((1, 5, 6, 4), (3, 3, 4, 72), {"strides": (1, 2)}),
    "asymmetric": ((2, 8, 7, 6), (2, 3, 6, 7), {"padding": ((0, 2), (3, 1)), "strides": (3, 2)}),
    "dilated": ((2, 11, 12, 3), (3, 3, 3, 9), {"dilation": (2, 3), "padding": ((2, 1), (0, 3))}),
    "dilated, strided": ((2, 12, 11, 4), (3, 2, 4, 20), {"dilation": (2, 1), "strides": (2, 3)}),
    "pixels no window sees": ((2, 9, 8, 3), (1, 1, 3, 5), {"strides": (2, 3)}),
    "pointwise, no whole block": ((3, 10, 11, 7), (1, 1, 7, 17), {}),
    "kernel larger than the image": ((2, 3, 2, 4), (5, 5, 4, 3), {}),
    "winograd": ((3, 8, 8, 16), (3, 3, 16, 16), {}),
    "winograd, odd": ((3, 9, 7, 24), (3, 3, 24, 40), {"padding": "VALID"}),
    "winograd, one image, wide": ((1, 6, 70, 17), (3, 3, 17, 16), {"padding": ((0, 2), (1, 1))}),
    "winograd, panels apart": ((8, 4, 4, 128), (3, 3, 128, 144), {}),
    "bands of a large image": ((1, 70, 80, 40), (3, 3, 40, 8), {"strides": (2, 2)}),
    "two groups": ((2, 9, 8, 6), (3, 3, 3, 10), {"groups": 2}),
    "groups, strided, pointwise": ((2, 6, 6, 12), (1, 1, 3, 8), {"groups": 4, "strides": (2, 2)}),
    "depthwise": ((3, 9, 10, 16), (3, 3, 1, 16), {"groups": 16}),
    "depthwise, overlapping blocks": ((2, 8, 9, 21), (5, 5, 1, 21), {"groups": 21}),
    "depthwise, few channels": ((2, 8, 9, 3), (3, 3, 1, 3), {"groups": 3, "strides": (2, 2)}),
    "depthwise, dilated": ((2, 16, 15, 10), (3, 5, 1, 10), {"groups": 10, "dilation": (2, 2)}),
    "depthwise, mostly border": ((2, 5, 6, 6), (5, 7, 1, 6), {"groups": 6, "dilation": (2, 1)}),
    "depthwise, strided": ((2, 12, 13, 20), (3, 3, 1, 20), {"groups": 20, "strides": (2, 3)}),
    "two outputs a channel": ((2, 6, 7, 5), (3, 3, 1, 10), {"groups": 5}),
}


def test_the_kernels_are_there_unless_switched_off():
    """Else tests that need them would be skipped without a word; NAS_NATIVE=0 runs the others without."""
    assert native.available() == (os.environ.get("NAS_NATIVE") != "0"), native.native_status()


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_laxs(case):
    x, w, arguments = CONVOLUTIONS[case]
    same_derivatives(
        functools.partial(ops.conv2d, **arguments),
        functools.partial(lax_conv, **arguments),
        normal(0, *x),
        normal(1, *w),
    )


@pytest.mark.parametrize(
    "case", ["depthwise, few channels", "depthwise, dilated", "depthwise, mostly border"]
)
def test_portable_convolution_equals_laxs(case, portable):
    test_convolution_equals_laxs(case)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"padding": "same"},
            "conv2d: padding='same' is not one of SAME, VALID, ((top, bottom), (left, right))",
        ),
        ({"padding": ((-1, 0), (0, 0))}, "conv2d: padding=((-1, 0), (0, 0)) is not one of SAME, VALID,"),
        ({"strides": (0, 1)}, "conv2d: strides=(0, 1) is not a positive number or a pair of them"),
        ({"groups": 2}, "conv2d: x (1, 4, 4, 3) and w (3, 3, 3, 5) do not divide into groups=2"),
        (
            {"padding": "VALID", "dilation": 2},
            "conv2d: a 3x3 window (dilation (2, 2), padding VALID) does not fit",
        ),
    ],
)
def test_wrong_arguments(arguments, expected):
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        ops.conv2d(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 5)), **arguments)


def test_wrong_arrays():
    x, w = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 5))
    for call in (
        lambda: ops.conv2d(x[0], w),
        lambda: ops.conv2d(x, w.astype(jnp.bfloat16)),
        lambda: ops.max_pool(x[0], 2, 2),
        lambda: ops.avg_pool(x, 2, 2, ((2, 0), (0, 0))),
    ):
        with pytest.raises(InputError):
            call()


# ---- pooling --------------------------------------------------------------------------------------------------

POOLS: dict[str, Any] = {
    "3x3": ((3, 8, 9, 5), (3, 3), (1, 1), "SAME"),
    "2x2, stride 2": ((2, 8, 6, 16), (2, 2), (2, 2), "SAME"),
    "overlapping": ((2, 9, 10, 20), (3, 3), (2, 2), "SAME"),
    "odd, valid": ((2, 7, 9, 3), (2, 3), (2, 1), "VALID"),
    "asymmetric": ((2, 7, 6, 17), (3, 2), (1, 2), ((2, 0), (0, 1))),
    "gaps": ((2, 11, 10, 4), (2, 2), (3, 4), "VALID"),
    "whole image": ((2, 5, 6, 3), (5, 6), (1, 1), "VALID"),
}


@pytest.mark.parametrize("case", POOLS)
def test_max_pool_equals_laxs(case):
    shape, *at = POOLS[case]
    same_derivatives(lambda x: ops.max_pool(x, *at), lambda x: lax_max(x, *at), normal(0, *shape))


@pytest.mark.parametrize("case", POOLS)
def test_of_equal_values_the_first_is_the_maximum(case):
    """As in XLA's gradient. (Its tangents take another one, so ours are held to our gradient.)"""
    shape, *at = POOLS[case]
    x, t = jnp.round(2 * normal(1, *shape)), normal(2, *shape)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def everything(x, t):
        _, tangent = jax.jvp(lambda x: ops.max_pool(x, *at), (x,), (t,))
        (dx,) = jax.vjp(lambda x: ops.max_pool(x, *at), x)[1](tangent)
        return tangent, dx, jax.vjp(lambda x: lax_max(x, *at), x)[1](tangent)[0]

    tangent, dx, expected = everything(x, t)
    agree(dx, expected)
    np.testing.assert_allclose(jnp.vdot(tangent, tangent), jnp.vdot(dx, t), rtol=1e-4)


@pytest.mark.parametrize("case", ["overlapping", "asymmetric"])
def test_portable_max_pool_equals_laxs(case, portable):
    test_max_pool_equals_laxs(case)
    test_of_equal_values_the_first_is_the_maximum(case)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", POOLS)
def test_avg_pool_equals_laxs(case, whole):
    shape, *at = POOLS[case]
    same_derivatives(
        lambda x: ops.avg_pool(x, *at, count_include_pad=whole),
        lambda x: lax_average(x, *at, whole=whole),
        normal(0, *shape),
    )


def test_max_pool_keeps_nan_and_extremes():
    x = jnp.asarray([[np.nan, 1, -np.inf, np.inf, -np.inf, -np.inf]]).reshape(1, 1, 6, 1)
    np.testing.assert_array_equal(ops.max_pool(x, (1, 2), (1, 2)), lax_max(x, (1, 2), (1, 2), "SAME"))


# ---- derivatives of any order, transformations --------------------------------------------------------------


def network(conv, pool):
    """A loss of two kernels: plain, strided, depthwise and pooled."""

    def loss(params, x):
        w, v = params
        y = jnp.tanh(conv(x, w, padding="SAME"))
        y = conv(y, v, strides=(2, 2), padding="SAME", groups=v.shape[3])
        return jnp.sum(pool(y, (3, 3), (2, 2), "SAME") ** 3)

    return loss


OURS, LAXS = network(ops.conv2d, ops.max_pool), network(lax_conv, lax_max)
PARAMS = (normal(1, 3, 3, 4, 6), normal(2, 3, 3, 1, 6))
IMAGES = normal(0, 2, 9, 8, 4)


def test_second_order():
    def forward_over_reverse(loss):
        return jax.jvp(lambda *a: jax.grad(loss, (0, 1))(*a), (PARAMS, IMAGES), (PARAMS, IMAGES))[1]

    def reverse_over_reverse(loss):
        def length(*arrays):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(*arrays)))

        return jax.grad(length, (0, 1))(PARAMS, IMAGES)

    for product in (forward_over_reverse, reverse_over_reverse):
        found, expected = jax.jit(
            lambda product=product: (product(OURS), product(LAXS)), compiler_options=QUICKLY
        )()
        agree(found, expected, tolerance=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=["kernels", "images", "both"])
def test_vmap(axes):
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), PARAMS) if axes[0] == 0 else PARAMS
    images = normal(3, 3, *IMAGES.shape) if axes[1] == 0 else IMAGES

    def gradients(loss):
        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), axes))(params, images)

    agree(gradients(OURS), gradients(LAXS))


def test_nested_vmap_and_per_example_gradients():
    x = normal(0, 2, 3, 1, 8, 8, 16)
    w = normal(1, 2, 3, 3, 16, 16)

    def gradients(conv):
        def gradient(w, x):
            return jax.grad(lambda w: jnp.sum(conv(x, w, padding="SAME") ** 2))(w)

        return jax.jit(jax.vmap(jax.vmap(gradient, (None, 0))))(w, x)

    agree(gradients(ops.conv2d), gradients(lax_conv))


def test_control_flow():
    """In a scan, a branch or a loop the kernels are the same calls: their speed does not change."""
    x, w = normal(0, 2, 6, 6, 16), normal(1, 3, 3, 16, 16) / 12

    def step(y):
        return jnp.tanh(ops.conv2d(y, w))

    expected = step(step(step(x)))

    def scanned(x):
        return lax.scan(lambda y, _: (step(y), None), x, length=3)[0]

    loops = {
        "scan": scanned,
        "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1])), (0, x))[1],
        "cond": lambda x: lax.cond(x.sum() < 1e9, lambda x: step(step(step(x))), lambda x: x, x),
        "checkpoint": lambda x: jax.checkpoint(lambda x: step(step(step(x))))(x),
    }
    for name, loop in loops.items():
        np.testing.assert_allclose(jax.jit(loop)(x), expected, rtol=1e-5, atol=1e-6, err_msg=name)
        text = str(jax.jit(loop).lower(x).compile().as_text())
        assert ('custom_call_target="nas_conv"' in text) == native.available(), name
    for loop in (loops["scan"], loops["checkpoint"]):
        found = jax.jit(jax.grad(lambda x, loop=loop: loop(x).sum()))(x)
        agree(found, jax.grad(lambda x: step(step(step(x))).sum())(x))


def test_eval_shape_and_no_images():
    x, w = jax.ShapeDtypeStruct((0, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)
    assert jax.eval_shape(ops.conv2d, x, w).shape == (0, 8, 8, 5)
    assert ops.conv2d(jnp.zeros(x.shape), jnp.zeros(w.shape)).shape == (0, 8, 8, 5)
    assert ops.max_pool(jnp.zeros(x.shape), 2, 2).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    x, w = normal(0, 2, 8, 8, 16).astype(dtype), normal(1, 3, 3, 16, 16).astype(dtype)

    def loss(x, w):
        return jnp.mean(ops.avg_pool(ops.max_pool(ops.conv2d(x, w), 2, 2), 2, 2).astype(jnp.float32))

    value, gradients = jax.value_and_grad(loss, (0, 1))(x, w)
    exact, exact_gradients = jax.value_and_grad(loss, (0, 1))(x.astype(jnp.float32), w.astype(jnp.float32))
    assert [leaf.dtype for leaf in gradients] == [dtype, dtype]
    np.testing.assert_allclose(value, exact, rtol=2e-2)
    np.testing.assert_allclose(gradients[1].astype(jnp.float32), exact_gradients[1], atol=0.02)


def test_double_precision():
    with jax.enable_x64(True):
        x, w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 3))), jnp.ones((3, 3, 3, 4))
        y = ops.max_pool(ops.conv2d(x, w), 2, 2)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, lax_max(lax_conv(x, w), (2, 2), (2, 2), "SAME"), rtol=1e-12)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_export(platform):
    """One traced program lowers for other platforms, with nothing native in it."""
    gradient = jax.jit(lambda *a: jax.jvp(lambda *a: jax.grad(OURS, (0, 1))(*a), a, a))
    text = export.export(gradient, platforms=[platform])(PARAMS, IMAGES).mlir_module()
    assert "stablehlo.convolution" in text
    assert "custom_call" not in text


@needs_native
def test_export_for_several_platforms():
    exported = export.export(
        jax.jit(OURS),
        platforms=["cpu", "tpu"],
        disabled_checks=[
            export.DisabledSafetyCheck.custom_call("nas_conv"),
            export.DisabledSafetyCheck.custom_call("nas_max_pool"),
        ],
    )(PARAMS, IMAGES)
    np.testing.assert_allclose(jax.jit(exported.call)(PARAMS, IMAGES), OURS(PARAMS, IMAGES), rtol=1e-6)


# ---- multiply-adds ------------------------------------------------------------------------------------------


def test_count_macs():
    x, w = jnp.zeros((2, 8, 6, 4)), jnp.zeros((3, 5, 2, 10))

    def conv(x, w):
        return ops.conv2d(x, w, strides=(2, 1), groups=2)

    once = 2 * 4 * 6 * 10 * 3 * 5 * 2
    assert ops.count_macs(conv, x, w) == once
    assert ops.count_macs(functools.partial(lax_conv, strides=(2, 1), groups=2), x, w) == once
    assert ops.count_macs(lambda x, w: ops.max_pool(jnp.tanh(conv(x, w)) + 1, 2, 2), x, w) == once
    assert ops.count_macs(jax.value_and_grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1)), x, w) == 3 * once
    assert ops.count_macs(jax.vmap(conv), x[None].repeat(3, 0), w[None].repeat(3, 0)) == 3 * once
    shapes = jax.eval_shape(lambda: (x, w))
    assert ops.count_macs(jax.jit(conv), *shapes) == once


def test_count_macs_of_dense_layers_and_control_flow():
    x, w = jnp.zeros((7, 5)), jnp.zeros((5, 5))
    assert ops.count_macs(lambda x, w: jax.nn.relu(x @ w + 1), x, w) == 7 * 5 * 5
    assert ops.count_macs(lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, length=4)[0], x, w) == 4 * 175
    assert ops.count_macs(lambda x, w: lax.cond(True, lambda: x @ w @ w, lambda: x @ w), x, w) == 2 * 175
    assert ops.count_macs(lambda x, w: jax.checkpoint(jax.jit(jnp.dot))(x, w), x, w) == 175
    assert (
        ops.count_macs(
            lambda x, w: jnp.einsum("bij,bjk->bik", x, w), jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 5))
        )
        == 120
    )


# ---- other processes, and the kernels' build ----------------------------------------------------------------

_PROGRAM = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from nas import ops
found = []
for x, w, groups, strides in (((40, 17, 16, 16), (3, 3, 16, 24), 1, 1), ((40, 9, 9, 12), (5, 5, 12, 20), 1, 2),
                              ((20, 16, 16, 24), (3, 3, 1, 24), 24, 1)):
    x, w = (jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in (x, w))
    y, backward = jax.vjp(lambda x, w: ops.avg_pool(ops.max_pool(ops.conv2d(x, w, groups=groups, strides=strides),
                                                                 3, 1), 3, 2), x, w)
    found += [y, *backward(y)]
digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in found)).hexdigest()
print(ops.native_status().split(":")[0], jax.device_count(), digest)
"""


def run_program(how, **environment):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout.strip()


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way here to take one processor only")
def test_same_bits_for_any_number_of_threads():
    assert run_program("all") == run_program("one")


def test_without_native_kernels():
    assert run_program("all", NAS_NATIVE="0").startswith("portable kernels 1 ")


def test_without_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++ -pipe")
    assert native._found.__wrapped__().status == "portable kernels: no C++ compiler (/nowhere/g++ -pipe)"


_MESH_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from nas import ops
mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 16)), jnp.float32)
w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 16, 16)), jnp.float32)
loss = lambda w, x: jnp.sum(ops.avg_pool(ops.max_pool(ops.conv2d(x, w), 3, 2), 2, 2) ** 2)
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
found = jax.jit(jax.grad(loss))(w, spread)
with jax.enable_x64(True):
    expected = jax.grad(loss)(jnp.asarray(w, jnp.float64), jnp.asarray(x, jnp.float64))
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
text = jax.jit(jax.grad(loss)).lower(w, spread).compile().as_text()
assert "all-gather" not in text and "all-reduce" in text
print("sharded", jax.device_count())
"""


def test_sharded_over_devices():
    done = subprocess.run(
        [sys.executable, "-c", _MESH_PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.strip() == "sharded 8", done.stderr[-2000:]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that only copies the library we have, and counts how often it linked one."""
    if not native.available():
        pytest.skip(native.native_status())
    library = tmp_path / "library.so"
    links = tmp_path / "links"
    links.touch()
    with open("/proc/self/maps") as maps:  # the library may be gone from its folder
        library.write_bytes(Path(next(line.split()[-1] for line in maps if "/kernels-" in line)).read_bytes())
    script = tmp_path / "copying compiler"
    script.write_text(
        f"""#!/bin/sh
case "$*" in
*--version*) echo copying ;;
*-shared*) sleep 0.3; echo link >> '{links}'; while [ "$1" != -o ]; do shift; done; cp '{library}' "$2" ;;
*) while [ "$1" != -o ]; do shift; done; : > "$2" ;;
esac
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path / "cache"))
    return [str(script)], lambda: len(links.read_text().split())


def test_two_processes_build_once(compiler):
    """Threads stand for processes: the lock is the file's."""
    command, links = compiler
    found = []
    threads = [threading.Thread(target=lambda: found.append(native._load(command)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].exists()
    assert links() == 1
    native._load(command)
    assert links() == 1


def test_damaged_library_is_built_again(compiler):
    command, links = compiler
    path = cache_folder("native") / f"kernels-{native._key(command)}.so"
    path.write_bytes(b"not a library")
    assert native._load(command)[0] == path
    assert links() == 1
    assert path.stat().st_size > 1000


def test_cache_that_cannot_be_written(compiler, tmp_path):
    command, links = compiler
    (tmp_path / "cache").write_text("a file where the folder should be")
    path, library = native._load(command)
    assert links() == 1
    assert library.nas_conv
    assert not path.parent.exists()


def test_compiler_that_fails(tmp_path, monkeypatch):
    script = tmp_path / "failing"
    script.write_text("#!/bin/sh\necho 'kernels.cc:1: error: no' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    with pytest.raises(native._BuildError, match=r"^.*failing: kernels.cc:1: error: no$"):
        native._build([str(script)], tmp_path / "kernels.so")
