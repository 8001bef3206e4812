"""The CPU lowerings of JAX's convolution and pooling against XLA's own: values and derivatives of every order."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir

from nas import cpu
from nas.cpu import lowering, native

cpu.register()
ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(not native.available(), reason=native.native_status())


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv(x, w, *, strides=(1, 1), padding: Any = "SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def agree(found, expected, *, tolerance=2e-5):
    """Leaves are equal up to rounding, measured by each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))


def both(function, *arrays):
    """What ``function`` gives with the kernels and without them, and the text of the former program."""

    def run():
        program = jax.jit(lambda *arrays: function(*arrays)).lower(
            *arrays
        )  # a new function: nothing is cached
        return program.compile()(*arrays), program.as_text()

    found, text = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering.native, "enabled", lambda name: False)
        return found, run()[0], text


def same(function, *arrays, tolerance=2e-5, whole=True):
    """Equal up to rounding, with the kernels and without; ``whole``: and XLA's own was not used at all."""
    found, expected, text = both(function, *arrays)
    agree(found, expected, tolerance=tolerance)
    if whole and native.available():
        for name in ("stablehlo.convolution", "reduce_window", "select_and_scatter"):
            assert name not in text, name
        assert "nas_" in text


def derivatives(function):
    """Value, gradients and a tangent."""

    def everything(*arrays):
        value, backward = jax.vjp(function, *arrays)
        seeds = jnp.sin(jnp.arange(value.size)).reshape(value.shape).astype(value.dtype)
        return value, backward(seeds), jax.jvp(function, arrays, tuple(a[::-1] for a in arrays))[1]

    return everything


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


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.some(8)
def test_convolution_and_its_derivatives(case):
    x, w, arguments = CONVOLUTIONS[case]
    same(derivatives(functools.partial(conv, **arguments)), normal(0, *x), normal(1, *w))


HIGHER = (
    "tails",
    "asymmetric",
    "dilated, strided",
    "pixels no window sees",
    "winograd",
    "depthwise, strided",
)


def _along(function, x, w):
    """Loss, and its gradient's product with fixed vectors."""
    vectors = normal(7, *x.shape), normal(8, *w.shape)

    def loss(x, w):
        y = function(x, w)
        return jnp.sum(jnp.sin(y) * y)

    def length(x, w):
        gradients = jax.grad(loss, (0, 1))(x, w)
        return sum(jnp.sum(jnp.sin(g) * v) for g, v in zip(gradients, vectors, strict=True))

    return loss, vectors, length


@pytest.mark.parametrize("case", HIGHER)
@pytest.mark.some(3)
def test_hessian_products(case):
    """Forward over reverse, as second-order searches take it, stays with the kernels whatever the form."""
    x, w, arguments = CONVOLUTIONS[case]
    x, w = normal(0, *x), normal(1, *w) / 8
    loss, vectors, _ = _along(functools.partial(conv, **arguments), x, w)
    same(lambda x, w: jax.jvp(jax.grad(loss, (0, 1)), (x, w), vectors)[1], x, w, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", HIGHER)
def test_third_derivatives(case):
    """Reverse over reverse over reverse: forms that reverse an operand or the result too."""
    x, w, arguments = CONVOLUTIONS[case]
    x, w = normal(0, *x), normal(1, *w) / 8
    _, _, length = _along(functools.partial(conv, **arguments), x, w)

    def third(x, w):
        return jax.grad(lambda x, w: sum(jnp.sum(g**2) for g in jax.grad(length, (0, 1))(x, w)), (0, 1))(x, w)

    same(third, x, w, tolerance=1e-3, whole=False)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=["images", "kernels", "both"])
@pytest.mark.parametrize("case", ["tails", "asymmetric", "two groups", "depthwise, strided"])
@pytest.mark.some(6)
def test_vmap(case, axes):
    x, w, arguments = CONVOLUTIONS[case]
    arrays = [
        jnp.stack([normal(i, *shape) for i in range(3)]) if axis == 0 else normal(5, *shape)
        for shape, axis in zip((x, w), axes, strict=True)
    ]
    function = derivatives(functools.partial(conv, **arguments))
    same(jax.vmap(function, axes), *arrays, whole=False)


def test_per_example_gradients_stay_with_the_kernels():
    x, w = normal(0, 5, 1, 8, 8, 16), normal(1, 3, 3, 16, 16)
    same(jax.vmap(jax.grad(lambda w, x: jnp.sum(conv(x, w) ** 2)), (None, 0)), w, x)


def test_other_forms_go_to_xla():
    """One dimension, three, other layouts, a transposed convolution, padding that cuts: right, by XLA."""
    x, w = normal(0, 2, 9, 8, 3), normal(1, 3, 3, 3, 4)
    for function, arrays in (
        (lambda x, w: lax.conv(x, w, (1, 1), "SAME"), (normal(0, 2, 3, 9, 8), normal(1, 4, 3, 3, 3))),
        (lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), (x, w)),
        (lambda x, w: conv(x, w, padding=((-1, 0), (2, -1))), (x, w)),
        (nn.Conv(4, (3,)).apply, ({"params": {"kernel": normal(2, 3, 3, 4), "bias": normal(3, 4)}}, x[0])),
        (nn.Conv(4, (3, 3, 3)).apply, (
            {"params": {"kernel": normal(2, 3, 3, 3, 3, 4), "bias": normal(3, 4)}}, normal(0, 2, 4, 5, 6, 3)
        )),
    ):  # fmt: skip
        same(function, *arrays, whole=False)


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


def max_pool(x, *at):
    return nn.max_pool(x, *at)


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.some(4)
def test_max_pool_and_its_derivatives(case):
    shape, *at = POOLS[case]
    same(derivatives(lambda x: max_pool(x, *at)), normal(0, *shape))


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.some(3)
def test_of_equal_values_the_first_is_the_maximum(case):
    """As in XLA's gradient. (Its tangents take another one, so ours are held to our gradient.)"""
    shape, *at = POOLS[case]
    x, t = jnp.round(2 * normal(1, *shape)), normal(2, *shape)

    def gradient(x, tangent):
        return jax.vjp(lambda x: max_pool(x, *at), x)[1](tangent)[0]

    tangent = jax.jit(lambda x, t: jax.jvp(lambda x: max_pool(x, *at), (x,), (t,))[1])(x, t)
    same(gradient, x, tangent)
    if native.available():
        np.testing.assert_allclose(jnp.vdot(tangent, tangent), jnp.vdot(gradient(x, tangent), t), rtol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", POOLS)
@pytest.mark.some(7)
def test_average_pool_and_its_derivatives(case, whole):
    shape, window, strides, padding = POOLS[case]

    def pool(x):
        return nn.avg_pool(x, window, strides, padding, count_include_pad=whole)

    same(derivatives(pool), normal(0, *shape), whole=whole)


def test_pools_of_members():
    x = normal(0, 3, 2, 8, 8, 4)
    same(jax.vmap(jax.grad(lambda x: jnp.sum(nn.max_pool(x, (3, 3), (2, 2), "SAME") ** 2))), x)


def test_max_pool_keeps_nan_and_extremes():
    x = jnp.asarray([[np.nan, 1, -np.inf, np.inf, -np.inf, -np.inf]]).reshape(1, 1, 6, 1)
    found, expected, _ = both(lambda x: max_pool(x, (1, 2), (1, 2)), x)
    np.testing.assert_array_equal(found, expected)


# ---- programs -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network of Flax alone."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


@needs_kernels
def test_a_plain_flax_network_calls_every_kernel():
    network, x = Plain(), normal(0, 4, 16, 16, 3)
    variables = network.init(jax.random.key(0), x)

    def loss(y: Any) -> jax.Array:
        return jnp.sum(y**2)

    text = jax.jit(jax.grad(lambda v: loss(network.apply(v, x)))).lower(variables).as_text()
    for target in ("conv", "conv_dx", "conv_dw", "max_pool", "max_pool_dx", "sum_pool"):
        assert f"@nas_{target}(" in text, target
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.some(1)
def test_half_precision(dtype):
    function = derivatives(conv)
    found, expected, _ = both(
        function, normal(0, 2, 8, 8, 4).astype(dtype), normal(1, 3, 3, 4, 8).astype(dtype)
    )
    agree(found, expected, tolerance=2e-2)


def test_double_precision_is_xlas():
    with jax.enable_x64(True):
        x, w = (
            jnp.asarray(normal(i, *shape), jnp.float64)
            for i, shape in enumerate([(2, 8, 8, 4), (3, 3, 4, 8)])
        )
        _, _, text = both(conv, x, w)
    assert "nas_" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_have_xlas_own(platform):
    traced = jax.jit(derivatives(lambda x, w: max_pool(conv(x, w), (2, 2), (2, 2)))).trace(
        normal(0, 2, 8, 8, 4), normal(1, 3, 3, 4, 8)
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "nas_" not in text
    assert "stablehlo.convolution" in text


def test_control_flow():
    """In a scan, a branch or a loop the kernels are the same calls: their speed does not change."""
    x, w = normal(0, 2, 6, 6, 16), normal(1, 3, 3, 16, 16) / 12

    def step(y):
        return jnp.tanh(conv(y, w))

    loops = {
        "scan": lambda x: lax.scan(lambda y, _: (step(y), None), x, length=3)[0],
        "while": lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, step(s[1])), (0, x))[1],
        "cond": lambda x: lax.cond(x.sum() < 1e9, lambda x: step(step(step(x))), lambda x: x, x),
        "checkpoint": lambda x: jax.checkpoint(lambda x: step(step(step(x))))(x),
    }
    for loop in loops.values():
        same(loop, x)
    for name in ("scan", "checkpoint"):
        same(jax.grad(lambda x, loop=loops[name]: loop(x).sum()), x)


def test_the_private_parts_of_jax_are_there():
    """nas/cpu/lowering.py uses two private tables of JAX's; another JAX may have moved them."""
    said = f"jax {jax.__version__} has changed: see nas/cpu/lowering.py"
    primitive = lax.conv_general_dilated_p
    assert mlir._platform_specific_lowerings["cpu"][primitive].rule.__module__ == "nas.cpu.lowering", said
    assert callable(mlir._lowerings[primitive].rule), said
    assert {"axis_context"} <= set(mlir.ModuleContext.__dataclass_fields__), said


def test_it_needs_nothing_of_nas():
    """`nas.cpu` can be used alone."""
    code = "import sys; from nas import cpu; cpu.register(); print(*(m for m in sys.modules if m.startswith('nas.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200
    )
    assert all(name.startswith("nas.cpu") for name in done.stdout.split()), done.stdout
    assert "flax" not in done.stdout


_PROGRAM = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
import flax.linen as nn
from jax import lax
from nas import cpu
cpu.register()
found = []
for x, w, groups, stride in (((40, 17, 16, 16), (3, 3, 16, 24), 1, 1), ((40, 9, 9, 12), (5, 5, 12, 20), 1, 2),
                             ((20, 16, 16, 24), (3, 3, 1, 24), 24, 1)):
    x, w = (jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in (x, w))
    def network(x, w):
        y = lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                     feature_group_count=groups)
        return nn.avg_pool(nn.max_pool(y, (3, 3), padding="SAME"), (3, 3), (2, 2))
    y, backward = jax.vjp(network, x, w)
    found += [y, *backward(y)]
digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in found)).hexdigest()
print(cpu.native_status().split(":")[0], jax.device_count(), digest)
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


@pytest.mark.slow
@needs_kernels
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way here to take one processor only")
def test_same_bits_for_any_number_of_threads():
    assert run_program("all") == run_program("one")


@pytest.mark.slow
def test_switched_off():
    assert run_program("all", NAS_NATIVE="0").startswith("XLA's own operations 1 ")


_MESH_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import flax.linen as nn
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from nas import cpu
cpu.register()
mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 16)), jnp.float32)
w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 16, 16)), jnp.float32)
def loss(w, x):
    y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(nn.avg_pool(nn.max_pool(y, (3, 3), (2, 2)), (2, 2)) ** 2)
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
found = jax.jit(jax.grad(loss))(w, spread)
expected = jax.jit(jax.grad(loss))(w, x)  # on one of the devices: by the kernels
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
text = jax.jit(jax.grad(loss)).lower(w, spread).compile().as_text()
assert "all-gather" not in text and "all-reduce" in text
print("sharded", jax.device_count())
"""


def test_sharded_over_devices():
    """A program of several devices is XLA's own: it could not partition a kernel."""
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
