"""Plain functions of arrays that are one native kernel on CPU, and ``jnp`` on every other platform.

Whether the kernel is called is decided when the function is traced: on CPU, for float32, in a program of one device.
What a kernel computes is given by a reference in ``jnp``, of which derivatives that have no kernel are taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from nas.cpu import native
from nas.cpu.geometry import Windows

Static = tuple[tuple[str, Any], ...]  # keyword arguments that are not traced, hashable
Arrays = Sequence[Array]

_mode = jax.make_user_context(default_value="kernels")  # part of the key of every jitted function


def plain() -> contextlib.AbstractContextManager[Any]:
    """Within it functions are traced as their references: for programs of another platform, to count what they do."""
    return _mode("plain")


def visible_relu() -> contextlib.AbstractContextManager[Any]:
    """Within it rectifiers are traced as `jax.nn.relu`, apart from the normalisation before them.

    For who looks for them in a traced program; normalisations alone keep their kernels.
    """
    return _mode("visible")


def for_cpu() -> bool:
    """Whether what is traced now will run on CPU: JAX's default platform, but not within `plain`."""
    return jax.default_backend() == "cpu" and _mode.value != "plain"


def relu_is_visible() -> bool:
    return _mode.value == "visible"


def named(*static_argnames: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: a jitted function, by whose name it is known in a program that is traced to be looked into.

    In ordinary programs it is just called: tracing a jitted function costs a few milliseconds more each time.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        jitted = jax.jit(function, static_argnames=static_argnames)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (function if _mode.value == "kernels" else jitted)(*args, **kwargs)

        return call

    return decorate


def use_kernel(name: str, *arrays: Any) -> bool:
    """Whether a function of ``arrays`` calls its kernel; ``name`` as in `native.enabled`."""
    wanted = _mode.value == "kernels" or (relu_is_visible() and name == "normalisation")
    suits = wanted and all(array.dtype == jnp.float32 and array.size for array in arrays)
    return suits and jax.default_backend() == "cpu" and jax.device_count() == 1 and native.enabled(name)


def kernel(
    target: str,
    reference: Callable[..., Arrays],
    results: Callable[..., Sequence[Any]],
    *,
    tangents: Callable[..., Arrays | None] | None = None,
    vmap_method: str = "sequential",
) -> Callable[..., Any]:
    """``call(static, *arrays)``: the results of ``reference(*arrays, **static)`` by the kernel ``target``.

    ``results(*arrays, **static)`` are arrays, or anything else with a shape, shaped like the results: tracing the
    reference for that would take longer than all the rest. ``tangents(primals, outs, dots, **static)`` gives the
    results' tangents by other kernels, a dot being None where an array does not change; None where it cannot: then
    those of the reference are taken. With it, derivatives of the second order are the last: what is kept for them has
    no tangent.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def call(static: Static, *arrays: Array) -> tuple[Array, ...]:
        parameters = dict(static)
        shapes = [jax.ShapeDtypeStruct(one.shape, jnp.float32) for one in results(*arrays, **parameters)]
        found = jax.ffi.ffi_call(target, shapes, vmap_method=vmap_method)(
            *arrays, **{key: _attribute(value) for key, value in static}
        )
        return tuple(found)

    def jvp(static: Static, primals: Arrays, given: Sequence[Any]) -> Any:
        outs = call(static, *primals)
        moving = [i for i, dot in enumerate(given) if not isinstance(dot, SymbolicZero)]

        def spread(some: Sequence[Any], fill: Callable[[Any], Any]) -> list[Any]:
            every = [fill(x) for x in primals]
            for i, dot in zip(moving, some, strict=True):
                every[i] = dot
            return every

        def along(kept: Any, some: Sequence[Array]) -> tuple[Array, ...]:
            """The reference's tangents."""
            primals, _ = kept
            of = functools.partial(reference, **dict(static))
            dots = spread(some, lambda x: jnp.zeros(x.shape, x.dtype))
            return tuple(jax.jvp(lambda *arrays: tuple(of(*arrays)), tuple(primals), tuple(dots))[1])

        def quick(kept: Any, some: Sequence[Array]) -> tuple[Array, ...]:
            """The same by kernels."""
            primals, outs = kept
            assert tangents is not None
            found = tangents(primals, outs, spread(some, lambda x: None), **dict(static))
            return along(kept, some) if found is None else tuple(found)

        def transposed(kept: Any, cotangents: Any) -> list[Array]:
            shapes = [jax.ShapeDtypeStruct(kept[0][i].shape, kept[0][i].dtype) for i in moving]
            return list(jax.linear_transpose(lambda *some: along(kept, some), *shapes)(tuple(cotangents)))

        some = [given[i] for i in moving]
        if tangents is None:
            return outs, along((primals, outs), some)
        return outs, jax.custom_derivatives.linear_call(quick, transposed, (tuple(primals), outs), some)

    call.defjvp(jvp, symbolic_zeros=True)
    return call


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Asked:
    """Which arrays a gradient is asked for."""

    flags: tuple[bool, ...]


def differentiated(
    forward: Callable[..., Any], gradient: Callable[..., Sequence[Array | None]]
) -> Callable[..., Any]:
    """``forward`` with reverse mode by ``gradient(primals, outs, cotangent, asked, **static)``.

    Forward mode over that is defined too, but not forward mode alone, of which JAX says so: it is taken within `plain`.

    ``cotangent`` is the first result's: the others are for statistics, and nothing is differentiated through them.
    ``asked`` has a flag for each array; the gradients of the others may be None.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def call(static: Static, *arrays: Array) -> Any:
        return forward(static, *arrays)

    def run(static: Static, *given: Any) -> Any:
        arrays = tuple(one.value for one in given)
        outs = forward(static, *arrays)
        return outs, (arrays, outs, Asked(tuple(one.perturbed for one in given)))

    def back(static: Static, kept: Any, cotangents: Any) -> Any:
        arrays, outs, asked = kept
        if isinstance(cotangents[0], SymbolicZero):
            return (None,) * len(arrays)
        return tuple(gradient(arrays, outs, cotangents[0], asked.flags, **dict(static)))

    call.defvjp(run, back, symbolic_zeros=True)
    return call


def static(**parameters: Any) -> Static:
    return tuple(sorted(parameters.items()))


def _attribute(value: Any) -> Any:
    if isinstance(value, Windows):
        return value.numbers()
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    return np.float64(value) if isinstance(value, float) else np.int64(value)
