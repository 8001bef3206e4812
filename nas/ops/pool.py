"""Max and average pooling."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

from nas.errors import InputError
from nas.cpu import native
from nas.ops.geometry import Padding, Pair, Windows, windows
from nas.ops.primitive import primitive, use_primitives


@dataclass(frozen=True)
class Average:
    """Windows to average, and whether those that hang over an edge are divided by their full size."""

    windows: Windows
    count_include_pad: bool


def max_pool(x: jax.Array, window: int | Pair, strides: int | Pair, padding: Padding = "SAME") -> jax.Array:
    """Largest value in each window of ``x`` [B, H, W, C]; padding never wins.

    The gradient goes to the first maximum in row order, as ``lax.reduce_window``'s does.
    """
    at = _windows("max_pool", x, window, strides, padding)
    if not use_primitives(x):
        return _lax_max(x, at=at)
    return max_pool_p.bind(x, at=at)


def avg_pool(
    x: jax.Array,
    window: int | Pair,
    strides: int | Pair,
    padding: Padding = "SAME",
    *,
    count_include_pad: bool = False,
) -> jax.Array:
    """Mean of each window of ``x`` [B, H, W, C]; of its pixels in the image unless ``count_include_pad``."""
    at = Average(_windows("avg_pool", x, window, strides, padding), count_include_pad)
    if not use_primitives(x):
        return _lax_average(x, at=at)
    return avg_pool_p.bind(x, at=at)


def _windows(place: str, x: jax.Array, window: int | Pair, strides: int | Pair, padding: Padding) -> Windows:
    if x.ndim != 4:
        raise InputError(f"{place}: x {x.shape} is not [B, H, W, C]")
    kernel = (window, window) if isinstance(window, int) else window
    at = windows(place, x.shape[1:3], kernel, strides, padding)
    if any(max(side) >= taps for side, taps in zip(at.padding, at.kernel, strict=True)):
        raise InputError(f"{place}: padding={padding!r} holds whole windows of {at.kernel}")
    return at


# ---- XLA's own pooling, for every platform but CPU ---------------------------------------------------------


def _reduce(x: jax.Array, start: float, operation: Callable[..., Any], at: Windows) -> jax.Array:
    padding = ((0, 0), *at.padding, (0, 0))
    return lax.reduce_window(
        x, np.asarray(start, x.dtype), operation, (1, *at.kernel, 1), (1, *at.strides, 1), padding
    )


def _lax_max(x: jax.Array, *, at: Windows) -> jax.Array:
    return _reduce(x, -np.inf, lax.max, at)


def _lax_max_dx(x: jax.Array, dy: jax.Array, *, at: Windows) -> jax.Array:
    return jax.vjp(functools.partial(_lax_max, at=at), x)[1](dy)[0]


def _lax_average(x: jax.Array, *, at: Average) -> jax.Array:
    return _reduce(x, 0.0, lax.add, at.windows) * jnp.asarray(_weights(at), x.dtype)


def _lax_average_dx(dy: jax.Array, *, at: Average) -> jax.Array:
    x = jax.ShapeDtypeStruct(_image_shape(dy.shape, at.windows), dy.dtype)
    return jax.linear_transpose(functools.partial(_lax_average, at=at), x)(dy)[0]


def _weights(at: Average) -> np.ndarray:
    """One over the pixels each window counts: [H', W', 1]."""
    sizes = []
    for size, taps, stride, (before, _), outputs in zip(
        at.windows.image,
        at.windows.kernel,
        at.windows.strides,
        at.windows.padding,
        at.windows.output,
        strict=True,
    ):
        first = np.arange(outputs) * stride - before
        inside = np.minimum(first + taps, size) - np.maximum(first, 0)
        sizes.append(np.full(outputs, taps) if at.count_include_pad else inside)
    return 1.0 / np.multiply.outer(sizes[0], sizes[1])[..., None]


# ---- CPU ---------------------------------------------------------------------------------------------------


def _native_max(x: jax.Array, *, at: Windows) -> jax.Array:
    out = jax.ShapeDtypeStruct(_pooled_shape(x.shape, at), jnp.float32)
    return native.call("nas_max_pool", out, x, windows=at).astype(x.dtype)


def _native_max_dx(x: jax.Array, dy: jax.Array, *, at: Windows) -> jax.Array:
    out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return native.call("nas_max_pool_dx", out, x, dy, windows=at).astype(x.dtype)


def _native_max_gather(x: jax.Array, t: jax.Array, *, at: Windows) -> jax.Array:
    out = jax.ShapeDtypeStruct(_pooled_shape(x.shape, at), jnp.float32)
    return native.call("nas_max_pool_gather", out, x, t, windows=at).astype(x.dtype)


def _native_average(x: jax.Array, *, at: Average) -> jax.Array:
    out = jax.ShapeDtypeStruct(_pooled_shape(x.shape, at.windows), jnp.float32)
    return native.call("nas_avg_pool", out, x, windows=at.windows, whole=at.count_include_pad).astype(x.dtype)


def _native_average_dx(dy: jax.Array, *, at: Average) -> jax.Array:
    out = jax.ShapeDtypeStruct(_image_shape(dy.shape, at.windows), jnp.float32)
    return native.call("nas_avg_pool_dx", out, dy, windows=at.windows, whole=at.count_include_pad).astype(
        dy.dtype
    )


def _portable_max_dx(x: jax.Array, dy: jax.Array, *, at: Windows) -> jax.Array:
    return portable.max_pool_dx(x, dy, at)


def _max_gather(x: jax.Array, t: jax.Array, *, at: Windows) -> jax.Array:
    """For every platform: of equal values XLA's own tangents take another one than its gradient does."""
    return portable.max_pool_gather(x, t, at)


# ---- the primitives ----------------------------------------------------------------------------------------


def _pooled_shape(x: Sequence[int], at: Windows) -> tuple[int, ...]:
    return (x[0], *at.output, x[3])


def _image_shape(dy: Sequence[int], at: Windows) -> tuple[int, ...]:
    return (dy[0], *at.image, dy[3])


max_pool_p = primitive("nas_max_pool", _pooled_shape, elsewhere=_lax_max, fast=_native_max, portable=_lax_max)
# These are linear in their second array: gradients given to each window's maximum, tangents taken from it.
max_pool_dx_p = primitive(
    "nas_max_pool_dx",
    lambda x, dy, at: x,
    elsewhere=_lax_max_dx,
    fast=_native_max_dx,
    portable=_portable_max_dx,
)
max_pool_gather_p = primitive(
    "nas_max_pool_gather",
    lambda x, t, at: _pooled_shape(x, at),
    elsewhere=_max_gather,
    fast=_native_max_gather,
    portable=_max_gather,
)
avg_pool_p = primitive(
    "nas_avg_pool",
    lambda x, at: _pooled_shape(x, at.windows),
    elsewhere=_lax_average,
    fast=_native_average,
    portable=_lax_average,
)
avg_pool_dx_p = primitive(
    "nas_avg_pool_dx",
    lambda dy, at: _image_shape(dy, at.windows),
    elsewhere=_lax_average_dx,
    fast=_native_average_dx,
    portable=_lax_average_dx,
)


def _routes(bound: Any, transposed: Any) -> None:
    """Differentiation of ``bound(x, t)``, linear in t and piecewise constant in x."""

    def transpose(cotangent: Any, x: jax.Array, t: Any, *, at: Windows) -> tuple[None, Any]:
        if type(cotangent) is ad.Zero:
            return None, ad.Zero(t.aval)
        return None, transposed.bind(x, cotangent, at=at)

    ad.defjvp(bound, None, lambda tangent, x, t, at: bound.bind(x, tangent, at=at))
    ad.primitive_transposes[bound] = transpose


ad.defjvp(max_pool_p, lambda tangent, x, at: max_pool_gather_p.bind(x, tangent, at=at))
_routes(max_pool_gather_p, max_pool_dx_p)
_routes(max_pool_dx_p, max_pool_gather_p)
ad.deflinear2(avg_pool_p, lambda cotangent, x, at: [avg_pool_dx_p.bind(cotangent, at=at)])
ad.deflinear2(avg_pool_dx_p, lambda cotangent, dy, at: [avg_pool_p.bind(cotangent, at=at)])


def _batch(bound: Any, arrays: Sequence[jax.Array], dims: Sequence[Any], *, at: Any) -> Any:
    """vmap: members join the batch of images."""
    size = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
    whole = (batching.bdim_at_front(array, dim, size) for array, dim in zip(arrays, dims, strict=True))
    out = bound.bind(*(array.reshape(-1, *array.shape[2:]) for array in whole), at=at)
    return out.reshape(size, -1, *out.shape[1:]), 0


for _pool_p in (max_pool_p, max_pool_dx_p, max_pool_gather_p, avg_pool_p, avg_pool_dx_p):
    batching.primitive_batchers[_pool_p] = functools.partial(_batch, _pool_p)
