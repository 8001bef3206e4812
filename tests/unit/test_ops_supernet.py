"""Separable convolution and mixtures of maps still to be normalised, against lax's convolution and plain jnp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from nas import ops
from nas.errors import InputError
from nas.ops import fused, native

needs_native = pytest.mark.skipif(not native.available(), reason=native.native_status())


def normal(seed, *shape, scale=1.0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(shift, scale, shape), jnp.float32)


def close(found, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max())))


def derivatives(function, arguments, orders=2):
    """Value, gradients along a fixed cotangent, a tangent, the gradients' tangent and their gradient."""
    dots = tuple(normal(90 + k, *one.shape) for k, one in enumerate(arguments))
    places = tuple(range(len(arguments)))

    def scalar(*arguments):
        value = function(*arguments)
        return jnp.vdot(jnp.sin(value), normal(80, *value.shape))

    def run(arguments, dots):
        gradients = jax.grad(scalar, places)
        found = [function(*arguments), gradients(*arguments), jax.jvp(function, arguments, dots)[1]]
        if orders > 1:
            inner = lambda *arguments: sum(map(jnp.vdot, gradients(*arguments), dots))  # noqa: E731
            found += [jax.jvp(gradients, arguments, dots)[1], jax.grad(inner, places)(*arguments)]
        return found

    return jax.jit(run)(tuple(arguments), dots)


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


def separable(case, together=True):
    """The function of a case and its arguments."""
    (rows, columns), channels, features, size, stride, dilation = SEPARABLE[case]
    around = dilation * (size - 1) // 2
    padding = ((around, around), (around, around))

    def function(x, depthwise, pointwise):
        if together:
            at = {"strides": stride, "padding": padding, "dilation": dilation}
            return ops.separable_conv2d(x, depthwise, pointwise, **at)
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
def test_separable_convolution_and_its_derivatives(case):
    orders = 2 if case in ("3x3", "strided and dilated") else 1
    close(
        derivatives(*separable(case), orders),
        derivatives(*separable(case, together=False), orders),
        tolerance=1e-4,
    )


@needs_native
def test_gradients_that_are_not_asked_for_are_not_computed():
    function, (x, depthwise, pointwise) = separable("3x3")

    def asked(*places):
        text = str(jax.make_jaxpr(jax.grad(lambda *a: function(*a).sum(), places))(x, depthwise, pointwise))
        return text[text.index("nas_separable_backward") :].split("asked=")[1].split()[0]

    assert [asked(0), asked(1, 2), asked(0, 1, 2)] == ["1", "6", "7"]
    whole = jax.grad(lambda *a: function(*a).sum(), (0, 1, 2))(x, depthwise, pointwise)
    close(jax.grad(lambda p: function(x, depthwise, p).sum())(pointwise), whole[2])
    close(jax.grad(lambda w: function(x, w, pointwise).sum())(depthwise), whole[1])


@needs_native
def test_the_kernels_are_used_where_they_can_be():
    used = lambda *args: "@nas_separable" in jax.jit(ops.separable_conv2d).lower(*args).as_text()  # noqa: E731
    x, depthwise = normal(0, 2, 4, 4, 8), normal(1, 3, 3, 1, 8)
    assert used(x, depthwise, normal(2, 1, 1, 8, 32))
    assert not used(x, depthwise, normal(2, 1, 1, 8, 20))  # not whole vectors
    half = [array.astype(jnp.bfloat16) for array in (x, depthwise, normal(2, 1, 1, 8, 32))]
    assert not used(*half)
    close(
        ops.separable_conv2d(*half).astype(jnp.float32),
        ops.separable_conv2d(x, depthwise, normal(2, 1, 1, 8, 32)),
        0.1,
    )


def test_a_separable_convolution_counts_as_its_two():
    function, (x, depthwise, pointwise) = separable("strided")
    apart = lambda x, w, p: ops.conv2d(ops.conv2d(x, w, strides=2, padding=((1, 1), (1, 1)), groups=16), p)  # noqa: E731
    assert ops.count_macs(function, x, depthwise, pointwise) == ops.count_macs(apart, x, depthwise, pointwise)
    for places in ((0,), (1,), (0, 1, 2)):
        counts = [
            ops.count_macs(jax.grad(lambda *a, f=f: f(*a).sum(), places), x, depthwise, pointwise)
            for f in (function, apart)
        ]
        # The gradient of the pointwise kernel computes what is between the convolutions again.
        again = 19 * 5 * 4 * 16 * 9 if 2 in places else 0
        assert counts[0] == counts[1] + again


def test_separable_kernels_that_do_not_fit():
    x, depthwise, pointwise = normal(0, 2, 4, 4, 8), normal(1, 3, 3, 1, 8), normal(2, 1, 1, 8, 16)
    for wrong in (
        (x[0], depthwise, pointwise),
        (x, depthwise[..., :4], pointwise),
        (x, depthwise, pointwise[:, :, :4]),
    ):
        with pytest.raises(InputError, match="conv2d: "):
            ops.separable_conv2d(*wrong)


# ---- mixtures ---------------------------------------------------------------------------------------------------

POSITIONS = (5, 0, 3, 1, 6, 0, 2, 4)


def mixed(channels, normed, together=True):
    """A mixture of eight maps as a function of weights and maps, and its arguments."""

    def normalise(x):
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(axes) + 1e-5)

    def function(weights, *maps):
        if together:
            seen = [
                ops.Deferred(x, *ops.moments(x)) if norm else x for x, norm in zip(maps, normed, strict=True)
            ]
            return ops.mixture(weights, seen, POSITIONS[: len(maps)])
        seen = [normalise(x) if norm else x for x, norm in zip(maps, normed, strict=True)]
        return sum(weights[i] * x for i, x in zip(POSITIONS, seen, strict=False))

    maps = [normal(k, 5, 4, 3, channels, scale=1 + k, shift=k / 2) for k in range(len(normed))]
    return function, (normal(60, 7), *maps)


@pytest.mark.parametrize("channels", [1, 5, 16, 64])
def test_a_mixture_and_its_derivatives(channels):
    normed = (True, False, True, True, False, True, True, True)
    orders = 2 if channels == 5 else 1
    close(
        derivatives(*mixed(channels, normed), orders),
        derivatives(*mixed(channels, normed, together=False), orders),
        tolerance=3e-4,
    )


def test_mixtures_of_any_number_of_maps():
    for normed in ((True,), (True, True), (False, True, True), (False, False)):
        close(
            derivatives(*mixed(8, normed), orders=1),
            derivatives(*mixed(8, normed, together=False), orders=1),
            tolerance=3e-4,
        )


@needs_native
def test_a_mixture_over_many_tasks(monkeypatch):
    maps = [normal(k, 64, 20, 20, 16, shift=k) for k in range(3)]

    def run(weights, maps):
        seen = [maps[0], *(ops.Deferred(x, *ops.moments(x)) for x in maps[1:])]
        return jnp.sum(jnp.sin(ops.mixture(weights, seen, (0, 1, 2))))

    found = jax.value_and_grad(run, (0, 1))(normal(9, 3), maps)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_use_native", lambda *arrays: False)
        expected = jax.value_and_grad(run, (0, 1))(normal(9, 3), maps)
    close(found, expected, tolerance=2e-4)


def test_moments_carry_no_gradient():
    x = normal(0, 6, 5, 4, shift=2)
    mean, var = ops.moments(x)
    close((mean, var), (x.mean((0, 1)), x.var((0, 1))))
    assert not jnp.any(jax.grad(lambda x: sum(map(jnp.sum, ops.moments(x))))(x))


def test_one_program_for_other_platforms_and_without_a_compiler(monkeypatch):
    function, arguments = separable("3x3")
    mixture, maps = mixed(5, (True, False, True))

    def both(arguments, maps):
        return jax.grad(lambda a, m: function(*a).sum() + jnp.sin(mixture(*m)).sum(), (0, 1))(arguments, maps)

    exported = export.export(jax.jit(both), platforms=["tpu", "cuda"])(arguments, maps)
    assert "@nas_" not in exported.mlir_module()
    monkeypatch.setattr(native, "available", lambda: False)
    lowered = jax.jit(lambda *args: both(*args)).lower(arguments, maps)
    assert "@nas_" not in lowered.as_text()
    monkeypatch.undo()
    close(lowered.compile()(arguments, maps), both(arguments, maps), tolerance=2e-4)
