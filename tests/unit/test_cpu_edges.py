"""What supernets consist of, by kernels: rectifiers, sums, mixtures, separable convolutions; against plain jnp."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from nas.cpu import native
from nas.cpu.edges import Unnormalised, add, fork, mixture, relu, separable_conv2d, weighted_sum
from nas.cpu.geometry import Windows
from nas.cpu.normalisation import moments
from tests.arrays import agree, close, in_plain, normal, second_derivatives_agree, value_and_gradients

needs_edges = pytest.mark.skipif(not native.enabled("edges"), reason=native.native_status())
needs_separable = pytest.mark.skipif(not native.enabled("separable"), reason=native.native_status())


QUICKLY = {"xla_backend_optimization_level": 0}  # for programs that run once


def derivatives(function, arguments, orders=2):
    """Value, gradients along a fixed cotangent; the gradients' tangent and their gradient."""
    dots = tuple(normal(90 + k, *one.shape) for k, one in enumerate(arguments))
    places = tuple(range(len(arguments)))

    def scalar(*arguments):
        value = function(*arguments)
        return jnp.vdot(jnp.sin(value), normal(80, *value.shape))

    def run(arguments, dots):
        gradients = jax.grad(scalar, places)
        found = [function(*arguments), gradients(*arguments)]
        if orders > 1:
            inner = lambda *arguments: sum(map(jnp.vdot, gradients(*arguments), dots))  # noqa: E731
            found += [jax.jvp(gradients, arguments, dots)[1], jax.grad(inner, places)(*arguments)]
        return found

    return jax.jit(run, compiler_options=QUICKLY)(tuple(arguments), dots)


# ---- rectifier ------------------------------------------------------------------------------------------------


@needs_edges
def test_relu_and_its_slope():
    x = jnp.asarray([-200, -3, -1e-30, -0.0, 0, 1e-30, 0.5, 88, -np.inf, np.inf, np.nan] * 3, jnp.float32)
    found = value_and_gradients(relu, [x], jnp.ones_like(x))
    assert "@nas_relu(" in jax.jit(lambda x: relu(x)).lower(x).as_text()
    expected = value_and_gradients(jax.nn.relu, [x], jnp.ones_like(x))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1][0], expected[1][0])


def test_relu_of_all_kinds_of_arrays():
    x = normal(0, 3, 4)
    close(relu(jnp.float32(-2)), jnp.float32(0))
    assert relu(x[:0]).shape == (0, 4)
    for dtype in (jnp.bfloat16, jnp.float16):
        found = relu(x.astype(dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, relu(x), atol=0.02)


@needs_edges
def test_vmap_of_a_rectifier_is_one_call():
    x = normal(0, 4, 6, 8)
    for function in (relu, jax.grad(lambda x: relu(x).sum()), lambda x: add(x, jnp.sin(x))):
        text = jax.jit(jax.vmap(function)).lower(x).as_text()
        assert "while" not in text
        assert text.count("stablehlo.custom_call @nas_") == 1
        close(jax.vmap(function)(x), jnp.stack([function(one) for one in x]), atol=1e-6)


# ---- sums -----------------------------------------------------------------------------------------------------


@needs_edges
def test_add_and_fork():
    arrays = [normal(i, 50, 700, 3) for i in range(3)]

    def function(*arrays):
        a, b, c, _ = fork(add(*arrays), 4)  # one reader sends nothing back
        return add(a, jnp.sin(b), c * c)

    agree({"": (function, arrays, normal(9, 50, 700, 3))})
    backward = jax.jit(lambda x: jax.grad(lambda x: sum(a.sum() for a in fork(x, 3)))(x))
    assert "@nas_add(" in backward.lower(arrays[0]).as_text()
    stacked = jnp.stack(arrays)
    close(
        jax.vmap(function, in_axes=(0, None, 1))(stacked, arrays[0], jnp.stack(arrays, 1))[1],
        function(arrays[1], arrays[0], arrays[1]),
    )


def test_a_sum_and_its_tangent():
    arrays = [normal(i, 5, 7, 3) for i in range(3)]
    assert add(arrays[0]) is arrays[0]
    close(add(*arrays), sum(arrays))
    found = jax.jvp(lambda a, b: add(a, jnp.sin(b), arrays[2]), arrays[:2], arrays[1:])
    expected = jax.jvp(lambda a, b: a + jnp.sin(b) + arrays[2], arrays[:2], arrays[1:])
    close(found, expected)
    assert fork(arrays[0], 1)[0] is arrays[0]


WHERE = (3, 0, 2)


def mixed(weights, *maps):
    return jnp.sum(jnp.sin(weighted_sum(weights, maps, WHERE)))


@pytest.mark.parametrize("shape", [(4, 3, 3, 5), (16, 20, 20, 16), (3,)])
@pytest.mark.some(2)
def test_a_weighted_sum_by_hand(shape):
    weights, maps = normal(5, 4), [normal(k, *shape) for k in range(3)]
    close(weighted_sum(weights, maps, WHERE), sum(weights[i] * x for i, x in zip(WHERE, maps, strict=True)))
    by_weights, *by_maps = jax.grad(mixed, (0, 1, 2, 3))(weights, *maps)
    slope = jnp.cos(weighted_sum(weights, maps, WHERE))
    expected = jnp.zeros(4).at[jnp.array(WHERE)].add(jnp.stack([jnp.vdot(slope, x) for x in maps]))
    close(by_weights, expected)
    close(by_maps, [weights[i] * slope for i in WHERE])


def second_order_cases():
    x, cotangent = normal(0, 5, 6, 7, 20, shift=0.3), normal(1, 5, 6, 7, 20)
    maps, fixed = [normal(k, 4, 3, 3, 5) for k in range(3)], normal(5, 4)
    return {
        "relu": (lambda x: jnp.sum(jnp.tanh(relu(x * x - 0.5)) * cotangent), (x,)),
        "weighted_sum": (mixed, (fixed, *maps)),
        "weighted_sum_of_moving_maps": (lambda *maps: mixed(fixed, *maps), tuple(maps)),
        "weighted_sum_with_moving_weights": (lambda weights: mixed(weights, *maps), (fixed,)),
        "fork": (lambda x: jnp.sum(jnp.prod(jnp.stack(fork(x, 3)), 0) * cotangent), (x,)),
    }


@needs_edges
@pytest.mark.parametrize("case", second_order_cases())
@pytest.mark.some(2)
def test_second_derivatives_by_kernels_equal_plain_jnp(case):
    second_derivatives_agree(*second_order_cases()[case])


# ---- mixtures -------------------------------------------------------------------------------------------------

POSITIONS = (5, 0, 3, 1, 6, 0, 2, 4)


def mixture_case(channels, normed, together=True):
    """A mixture of maps as a function of weights and maps, and its arguments."""

    def normalise(x):
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(axes) + 1e-5)

    def function(weights, *maps):
        if together:
            seen = [Unnormalised(x, *moments(x)) if norm else x for x, norm in zip(maps, normed, strict=True)]
            return mixture(weights, seen, POSITIONS[: len(maps)])
        seen = [normalise(x) if norm else x for x, norm in zip(maps, normed, strict=True)]
        return sum(weights[i] * x for i, x in zip(POSITIONS, seen, strict=False))

    maps = [normal(k, 5, 4, 3, channels, scale=1 + k, shift=k / 2) for k in range(len(normed))]
    return function, (normal(60, 7), *maps)


def same(case: Any, *arguments: Any, orders, tolerance):
    made: Any = (case(*arguments, together=how) for how in (True, False))
    found, expected = (derivatives(function, arrays, orders) for function, arrays in made)
    close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("channels", [1, pytest.param(5, marks=pytest.mark.slow), 16, 64])
@pytest.mark.some(2)
def test_a_mixture_and_its_derivatives(channels):
    normed = (True, False, True, True, False, True, True, True)
    same(mixture_case, channels, normed, orders=2 if channels == 5 else 1, tolerance=3e-4)


@pytest.mark.parametrize("normed", [(True,), (True, True), (False, True, True), (False, False)], ids=str)
@pytest.mark.some(2)
def test_mixtures_of_any_number_of_maps(normed):
    same(mixture_case, 8, normed, orders=1, tolerance=3e-4)


@needs_edges
def test_a_mixture_over_many_tasks():
    maps = [normal(k, 64, 20, 20, 16, shift=k) for k in range(3)]

    def run(weights, maps):
        seen = [maps[0], *(Unnormalised(x, *moments(x)) for x in maps[1:])]
        return jnp.sum(jnp.sin(mixture(weights, seen, (0, 1, 2))))

    gradients = jax.value_and_grad(run, (0, 1))
    close(
        gradients(normal(9, 3), maps),
        in_plain(gradients, normal(9, 3), maps),
        atol=2e-4,
        rtol=2e-4,
    )


@needs_edges
def test_nothing_of_a_mixture_is_left_for_xla_to_compile():
    function, arguments = mixture_case(16, (True, False, True))
    text = jax.jit(jax.grad(lambda *a: jnp.sum(function(*a) ** 2), (0, 1))).lower(*arguments).as_text()
    for target in ("mixture", "mixture_backward", "moments"):
        assert f"@nas_{target}(" in text
    assert "rsqrt" not in text


# ---- separable convolution ------------------------------------------------------------------------------------

SEPARABLE = {  # image, channels, features, kernel, stride, dilation
    "3x3": ((9, 8), 16, 16, 3, 1, 1),
    "5x5 on small images, which are copied": ((4, 4), 32, 64, 5, 1, 1),
    "dilated": ((11, 11), 8, 16, 5, 1, 2),
    "strided": ((9, 8), 16, 32, 3, 2, 1),
    "strided and dilated": ((8, 8), 4, 4, 3, 2, 2),
    "odd channels": ((6, 5), 7, 16, 3, 1, 1),
    "in bands": ((33, 32), 32, 16, 3, 1, 1),
}


def separable_case(case, together=True):
    """The function of a case and its arguments."""
    (rows, columns), channels, features, size, stride, dilation = SEPARABLE[case]
    around = dilation * (size - 1) // 2
    padding = ((around, around), (around, around))
    at = {"strides": (stride, stride), "padding": padding}

    def function(x, depthwise, pointwise):
        if together:
            return separable_conv2d(x, depthwise, pointwise, dilation=(dilation, dilation), **at)
        between = lax.conv_general_dilated(
            x,
            depthwise,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return jnp.einsum("bhwc,co->bhwo", between, pointwise[0, 0])

    return function, (
        normal(0, 19, rows, columns, channels),
        normal(1, size, size, 1, channels, scale=1 / size),
        normal(2, 1, 1, channels, features, scale=channels**-0.5),
    )


@pytest.mark.parametrize("case", SEPARABLE)
@pytest.mark.some(4)
def test_separable_convolution_and_its_derivatives(case):
    orders = 2 if case in ("3x3", "strided and dilated") else 1
    same(separable_case, case, orders=orders, tolerance=1e-4)


@needs_separable
def test_gradients_that_are_not_asked_for_are_not_computed():
    function, (x, depthwise, pointwise) = separable_case("3x3")

    def asked(*places):
        text = str(jax.make_jaxpr(jax.grad(lambda *a: function(*a).sum(), places))(x, depthwise, pointwise))
        assert text.count("nas_separable_backward") == 1
        return text.split("'asked', np.int64(")[1].split(")")[0]

    assert [asked(0), asked(1, 2), asked(0, 1, 2)] == ["1", "6", "7"]
    whole = jax.grad(lambda *a: function(*a).sum(), (0, 1, 2))(x, depthwise, pointwise)
    close(jax.grad(lambda p: function(x, depthwise, p).sum())(pointwise), whole[2])
    close(jax.grad(lambda w: function(x, w, pointwise).sum())(depthwise), whole[1])


AT = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}


@needs_separable
def test_the_kernels_are_used_where_they_can_be():
    def run(*arrays, groups=1):
        return separable_conv2d(*arrays, groups=groups, **AT)

    def used(*arrays, groups=1):
        return "@nas_separable" in jax.jit(lambda *a: run(*a, groups=groups)).lower(*arrays).as_text()

    x, depthwise, pointwise = normal(0, 2, 4, 4, 8), normal(1, 3, 3, 1, 8), normal(2, 1, 1, 8, 32)
    assert used(x, depthwise, pointwise)
    assert not used(x, depthwise, normal(2, 1, 1, 8, 20))  # not whole vectors
    assert not used(x, depthwise, normal(2, 1, 1, 4, 32), groups=2)
    half = [array.astype(jnp.bfloat16) for array in (x, depthwise, pointwise)]
    assert not used(*half)
    close(run(*half).astype(jnp.float32), run(x, depthwise, pointwise), atol=0.1, rtol=0.1)


def test_separable_convolutions_side_by_side():
    """Two of them in groups of channels are the two apart."""
    x, depthwise, pointwise = normal(0, 2, 5, 4, 8), normal(1, 3, 3, 1, 8), normal(2, 1, 1, 4, 6)
    parts = zip(*(jnp.split(array, 2, -1) for array in (x, depthwise, pointwise)), strict=True)
    apart = [separable_conv2d(*one, **AT) for one in parts]
    close(separable_conv2d(x, depthwise, pointwise, groups=2, **AT), jnp.concatenate(apart, -1))


def test_as_many_windows_as_fit():
    at = Windows((9, 8), (3, 3), (2, 1), ((1, 1), (2, 2)), (1, 2))
    assert at.output == (5, 8)


# ---- programs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_program_for_other_platforms_and_without_a_compiler(monkeypatch):
    function, arguments = separable_case("3x3")
    of_maps, maps = mixture_case(5, (True, False, True))

    def both(arguments, maps):
        return jax.grad(lambda a, m: function(*a).sum() + jnp.sin(of_maps(*m)).sum(), (0, 1))(arguments, maps)

    for platform in ("tpu", "cuda"):
        exported = in_plain(export.export(jax.jit(both), platforms=[platform]), arguments, maps)
        assert "@nas_" not in exported.mlir_module()
    expected = both(arguments, maps)
    monkeypatch.setattr(native, "available", lambda: False)
    jax.clear_caches()
    lowered = jax.jit(lambda *args: both(*args)).lower(arguments, maps)
    assert "@nas_" not in lowered.as_text()
    found = lowered.compile()(arguments, maps)
    monkeypatch.undo()
    jax.clear_caches()
    close(found, expected, atol=2e-4, rtol=2e-4)
