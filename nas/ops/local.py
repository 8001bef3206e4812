"""A locally connected layer, whose windows do not share weights, as the primitives of `nas.ops.bilinear`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nas.errors import InputError
from nas.cpu import native
from nas.ops.bilinear import by_member, close
from nas.ops.geometry import Padding, Pair, Windows, windows
from nas.ops.primitive import primitive, use_primitives


@dataclass(frozen=True)
class Local:
    """What the three primitives know beside their arrays.

    ``members`` layers run side by side, each with its own kernel: x is [members * B, H, W, C] and w is
    [members * H', W', kh, kw, C, O]. Only ``vmap`` makes it other than 1.
    """

    windows: Windows
    members: int = 1


def local2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Pair = (1, 1),
    padding: Padding = "SAME",
) -> jax.Array:
    """Cross-correlation whose every output unit has weights of its own: no two windows share any.

    Images ``x`` [B, H, W, C] and ``kernel`` [H', W', kh, kw, C, O] give [B, H', W', O], where H' and W' are
    what `conv2d` with a [kh, kw, C, O] kernel and the same ``strides`` and ``padding`` ("SAME", "VALID" or
    ((top, bottom), (left, right)) in pixels) gives. Weights that fall on padding meet zeros: they have no
    effect and their gradient is 0. ``InputError`` where the shapes disagree.
    """
    if x.ndim != 4 or kernel.ndim != 6:
        raise InputError(
            f"local2d: x {x.shape} and kernel {kernel.shape} are not [B, H, W, C] and [H', W', kh, kw, C, O]"
        )
    if x.dtype != kernel.dtype:
        raise InputError(f"local2d: x is {x.dtype} but kernel is {kernel.dtype}")
    if x.shape[3] != kernel.shape[4]:
        raise InputError(f"local2d: x {x.shape} and kernel {kernel.shape} differ in channels")
    at = Local(windows("local2d", x.shape[1:3], kernel.shape[2:4], strides, padding))
    if kernel.shape[:2] != at.windows.output:
        raise InputError(
            f"local2d: kernel {kernel.shape} has weights for {kernel.shape[:2]} windows,"
            f" x {x.shape} has {at.windows.output}"
        )
    if not use_primitives(x, kernel):
        return _by_slices(x, kernel, at=at)
    return local_p.bind(x, kernel, at=at)


# ---- in XLA's own ops: other platforms, and machines without a compiler ---------------------------------------


@by_member
def _by_slices(x: jax.Array, w: jax.Array, *, at: Local) -> jax.Array:
    """All windows side by side, [B, H', kh, W', kw, C], then one product of matrices for each window."""
    windows = jnp.pad(x, ((0, 0), *at.windows.padding, (0, 0)))
    for axis, (taps, stride, outputs) in zip(
        (1, 3), zip(at.windows.kernel, at.windows.strides, at.windows.output, strict=True), strict=True
    ):
        seen = [
            jax.lax.slice_in_dim(windows, tap, tap + (outputs - 1) * stride + 1, stride, axis)
            for tap in range(taps)
        ]
        windows = jnp.stack(seen, axis + 1)
    return jnp.einsum("bhiwjc,hwijco->bhwo", windows, w)


@by_member
def _dx_by_slices(dy: jax.Array, w: jax.Array, *, at: Local) -> jax.Array:
    x = jax.ShapeDtypeStruct(_dx_shape(dy.shape, w.shape, at), dy.dtype)
    return jax.linear_transpose(lambda x: _by_slices(x, w, at=at), x)(dy)[0]


@by_member
def _dw_by_slices(x: jax.Array, dy: jax.Array, *, at: Local) -> jax.Array:
    w = jax.ShapeDtypeStruct(_dw_shape(x.shape, dy.shape, at), x.dtype)
    return jax.linear_transpose(lambda w: _by_slices(x, w, at=at), w)(dy)[0]


# ---- the primitives -------------------------------------------------------------------------------------------

Shape = Sequence[int]


def _local_shape(x: Shape, w: Shape, at: Local) -> tuple[int, ...]:
    return (x[0], *at.windows.output, w[5])


def _dx_shape(dy: Shape, w: Shape, at: Local) -> tuple[int, ...]:
    return (dy[0], *at.windows.image, w[4])


def _dw_shape(x: Shape, dy: Shape, at: Local) -> tuple[int, ...]:
    rows, columns = at.windows.output
    return (at.members * rows, columns, *at.windows.kernel, x[3], dy[3])


def _native(target: str, shape: Callable[..., tuple[int, ...]]) -> Callable[..., jax.Array]:
    def call(a: jax.Array, b: jax.Array, *, at: Local) -> jax.Array:
        result = jax.ShapeDtypeStruct(shape(a.shape, b.shape, at), jnp.float32)
        return native.call(target, result, a, b, windows=at.windows, members=at.members).astype(a.dtype)

    return call


local_p = primitive(
    "nas_local",
    _local_shape,
    elsewhere=_by_slices,
    fast=_native("nas_local", _local_shape),
    portable=_by_slices,
)
local_dx_p = primitive(
    "nas_local_dx",
    _dx_shape,
    elsewhere=_dx_by_slices,
    fast=_native("nas_local_dx", _dx_shape),
    portable=_dx_by_slices,
)
local_dw_p = primitive(
    "nas_local_dw",
    _dw_shape,
    elsewhere=_dw_by_slices,
    fast=_native("nas_local_dw", _dw_shape),
    portable=_dw_by_slices,
)

close(local_p, local_dx_p, local_dw_p)
