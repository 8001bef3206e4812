"""Two-dimensional convolution and its two gradients, as the primitives of `nas.ops.bilinear`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from nas.errors import InputError
from nas.cpu import native
from nas.ops.bilinear import by_member, close
from nas.ops.geometry import Padding, Pair, Windows, windows
from nas.ops.primitive import primitive, use_primitives


@dataclass(frozen=True)
class Convolution:
    """What the three primitives know beside their arrays.

    ``members`` convolutions run side by side, each with its own kernel: x is [members * B, H, W, C] and w is
    [members * kh, kw, C / groups, O]. Only ``vmap`` makes it other than 1.
    """

    windows: Windows
    groups: int = 1
    members: int = 1


def conv2d(
    x: jax.Array,
    w: jax.Array,
    *,
    strides: int | Pair = (1, 1),
    padding: Padding = "SAME",
    dilation: int | Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of images ``x`` [B, H, W, C] with ``w`` [kh, kw, C / groups, O]: [B, H', W', O].

    ``padding`` is "SAME", "VALID" or ((top, bottom), (left, right)) in pixels; ``dilation`` spreads the
    kernel; ``groups=C`` with O = C is a depthwise convolution. Value and gradients equal
    ``lax.conv_general_dilated``'s. ``InputError`` where the shapes disagree.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise InputError(
            f"conv2d: x {x.shape} and w {w.shape} are not [B, H, W, C] and [kh, kw, C / groups, O]"
        )
    if x.dtype != w.dtype:
        raise InputError(f"conv2d: x is {x.dtype} but w is {w.dtype}")
    if groups < 1 or x.shape[3] != w.shape[2] * groups or w.shape[3] % groups:
        raise InputError(f"conv2d: x {x.shape} and w {w.shape} do not divide into groups={groups}")
    at = Convolution(windows("conv2d", x.shape[1:3], w.shape[:2], strides, padding, dilation), groups)
    if not use_primitives(x, w):
        return _lax_conv(x, w, at=at)
    return conv_p.bind(x, w, at=at)


# ---- XLA's own convolution, for every platform but CPU -----------------------------------------------------


@by_member
def _lax_conv(x: jax.Array, w: jax.Array, *, at: Convolution) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        at.windows.strides,
        at.windows.padding,
        rhs_dilation=at.windows.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=at.groups,
    )


@by_member
def _lax_dx(dy: jax.Array, w: jax.Array, *, at: Convolution) -> jax.Array:
    x = jax.ShapeDtypeStruct(_dx_shape(dy.shape, w.shape, at), dy.dtype)
    return jax.linear_transpose(lambda x: _lax_conv(x, w, at=at), x)(dy)[0]


@by_member
def _lax_dw(x: jax.Array, dy: jax.Array, *, at: Convolution) -> jax.Array:
    w = jax.ShapeDtypeStruct(_dw_shape(x.shape, dy.shape, at), x.dtype)
    return jax.linear_transpose(lambda w: _lax_conv(x, w, at=at), w)(dy)[0]


# ---- CPU ---------------------------------------------------------------------------------------------------


def _is_depthwise(channels: int, outputs: int, at: Convolution) -> bool:
    return at.groups == channels == outputs and at.members == 1


def _portable_conv(x: jax.Array, w: jax.Array, *, at: Convolution) -> jax.Array:
    if _is_depthwise(x.shape[3], w.shape[3], at):
        return portable.depthwise(x, w, at.windows)
    return _lax_conv(x, w, at=at)


def _portable_dx(dy: jax.Array, w: jax.Array, *, at: Convolution) -> jax.Array:
    if _is_depthwise(at.groups * w.shape[2], w.shape[3], at) and at.windows.strides == (1, 1):
        return portable.depthwise_dx(dy, w, at.windows)
    return _lax_dx(dy, w, at=at)


def _portable_dw(x: jax.Array, dy: jax.Array, *, at: Convolution) -> jax.Array:
    if _is_depthwise(x.shape[3], dy.shape[3], at):
        return portable.depthwise_dw(x, dy, at.windows)
    return _lax_dw(x, dy, at=at)


def _native(target: str, shape: Callable[..., tuple[int, ...]]) -> Callable[..., jax.Array]:
    def call(a: jax.Array, b: jax.Array, *, at: Convolution) -> jax.Array:
        result = jax.ShapeDtypeStruct(shape(a.shape, b.shape, at), jnp.float32)
        out = native.call(target, result, a, b, windows=at.windows, groups=at.groups, members=at.members)
        return out.astype(a.dtype)

    return call


# ---- the primitives ----------------------------------------------------------------------------------------

Shape = Sequence[int]


def _conv_shape(x: Shape, w: Shape, at: Convolution) -> tuple[int, ...]:
    return (x[0], *at.windows.output, w[3])


def _dx_shape(dy: Shape, w: Shape, at: Convolution) -> tuple[int, ...]:
    return (dy[0], *at.windows.image, w[2] * at.groups)


def _dw_shape(x: Shape, dy: Shape, at: Convolution) -> tuple[int, ...]:
    rows, columns = at.windows.kernel
    return (at.members * rows, columns, x[3] // at.groups, dy[3])


conv_p = primitive(
    "nas_conv",
    _conv_shape,
    elsewhere=_lax_conv,
    fast=_native("nas_conv", _conv_shape),
    portable=_portable_conv,
)
conv_dx_p = primitive(
    "nas_conv_dx", _dx_shape, elsewhere=_lax_dx, fast=_native("nas_conv_dx", _dx_shape), portable=_portable_dx
)
conv_dw_p = primitive(
    "nas_conv_dw", _dw_shape, elsewhere=_lax_dw, fast=_native("nas_conv_dw", _dw_shape), portable=_portable_dw
)

close(conv_p, conv_dx_p, conv_dw_p)
