"""Arrays for tests of native functions, and comparisons of a function's kernels with its plain form."""

import jax
import jax.numpy as jnp
import numpy as np

from nas.cpu.function import plain


def normal(seed, *shape, scale=1.0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(shift, scale, shape), jnp.float32)


def close(found, expected, *, atol=2e-5, rtol=2e-5, case=""):
    """Leaves equal up to rounding, measured by each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        size = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * size, err_msg=str(case))


def in_plain(function, *args):
    """``function(*args)`` traced without native kernels."""
    with plain():
        return function(*args)


def value_and_gradients(function, arrays, cotangent):
    """``function``'s value and its gradients by all arrays along ``cotangent``, jitted."""

    def run(arrays, cotangent):
        value, backward = jax.vjp(function, *arrays)
        return value, backward(cotangent)

    return jax.jit(run)(arrays, cotangent)


def agree(cases, **tolerance):
    """Every ``function, arrays, cotangent`` has with native kernels the value and gradients of its plain form.

    The plain forms are compiled in one program: that is quicker.
    """
    found = {
        name: value_and_gradients(function, arrays, cotangent)
        for name, (function, arrays, cotangent) in cases.items()
    }

    def run(values):
        return {name: value_and_gradients(cases[name][0], *value) for name, value in values.items()}

    expected = in_plain(jax.jit(run), {name: case[1:] for name, case in cases.items()})
    for name in cases:
        close(found[name], expected[name], case=name, **tolerance)


def second_derivatives_agree(function, arguments):
    """Forward over reverse and reverse over reverse by kernels equal those of the plain form."""
    places = tuple(range(len(arguments)))
    dots = tuple(normal(50 + k, *one.shape) for k, one in enumerate(arguments))

    def gradients(*arguments):
        return jax.grad(function, places)(*arguments)

    def derivatives():
        def run(arguments, dots):
            forward = jax.jvp(gradients, arguments, dots)[1]
            inner = lambda *arguments: sum(map(jnp.vdot, gradients(*arguments), dots))  # noqa: E731
            return forward, jax.grad(inner, places)(*arguments)

        return jax.jit(run)(arguments, dots)

    forward, reverse = derivatives()
    expected, _ = in_plain(derivatives)
    for found in (forward, reverse):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
