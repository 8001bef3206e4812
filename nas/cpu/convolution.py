"""``lax.conv_general_dilated`` over images [B, H, W, C] on CPU, with its derivatives of any order.

JAX's derivative rules for the convolution give the same primitive again, with other dimension numbers. Let F(x, w) be
the forward convolution, DX(dy, w) the gradient of its image and DW(x, dy) that of its kernel: each derivative of one
of the three is one of the three, possibly with an operand or the result reversed over its pixels. These six forms
are told apart by the dimension numbers. What is none of them goes to XLA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nas.cpu import native
from nas.cpu.geometry import Windows
from nas.cpu.lowering import Function

_IMAGE_PIXELS, _KERNEL_PIXELS = (1, 2), (0, 1)
_SAME = (1, 1)


def choose(
    lhs: Any,
    rhs: Any,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> Function | None:
    """What a convolution is lowered to, by its operands' shapes and its parameters; None: as XLA does."""
    if lhs.ndim != 4:
        return None
    strides, spread, dilation = tuple(window_strides), tuple(lhs_dilation), tuple(rhs_dilation)
    left, right, out = (tuple(spec) for spec in dimension_numbers)
    left_size, right_size = _pixels(lhs, left), _pixels(rhs, right)
    out_size = _out_size(left_size, right_size, strides, padding, spread, dilation)
    low = [before for before, _ in padding]
    # For the gradients' forms: how far one operand reaches over the other, less what is padded, is the padding of F.
    reach = [(size - 1) * by for size, by in zip(right_size, dilation, strict=True)]
    far = [whole - before for whole, before in zip(reach, low, strict=True)]
    reach_out = [(size - 1) * by for size, by in zip(out_size, strides, strict=True)]
    far_out = [whole - before for whole, before in zip(reach_out, low, strict=True)]
    groups, members = feature_group_count, 1
    # Specs are (batch, feature, rows, columns) of images and (outputs, inputs, rows, columns) of kernels.
    match left, right, out:
        case (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2) if spread == _SAME and batch_group_count == 1:
            at = _windows(left_size, right_size, strides, low, dilation, out_size)
            return _lowering(_forward, at, left_size, out_size, groups)
        case (0, 3, 1, 2), (2, 3, 0, 1), (0, 3, 1, 2) if strides == _SAME and batch_group_count == 1:
            at = _windows(out_size, right_size, spread, far, dilation, left_size)
            return _lowering(_dx, at, out_size, left_size, groups, turned=_KERNEL_PIXELS)
        case (3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1) if spread == _SAME:
            at = _windows(left_size, out_size, dilation, low, strides, right_size)
            groups, members = batch_group_count, feature_group_count
            return _lowering(_dw, at, left_size, right_size, groups, members=members)
    if feature_group_count != 1 or batch_group_count != 1:
        return None
    match left, right, out:
        case (2, 3, 0, 1), (0, 3, 1, 2), (3, 0, 1, 2) if strides == _SAME:
            # DX(dy, w): the kernel on the left, dy reversed on the right
            at = _windows(out_size, left_size, dilation, far, spread, right_size)
            swapped = _of_swapped(_dx)
            return _lowering(swapped, at, out_size, right_size, turned=_IMAGE_PIXELS)
        case (3, 0, 1, 2), (3, 0, 1, 2), (3, 2, 0, 1) if dilation == _SAME:
            # DW(x, dy) reversed: dy on the left, x on the right
            at = _windows(right_size, out_size, spread, far_out, strides, left_size)
            return _lowering(_reversed(_of_swapped(_dw), _KERNEL_PIXELS), at, right_size, left_size)
        case (3, 2, 0, 1), (0, 3, 1, 2), (3, 0, 1, 2) if dilation == _SAME:
            # F(x, w) reversed: the kernel on the left, x on the right
            at = _windows(right_size, left_size, strides, far_out, spread, out_size)
            return _lowering(_reversed(_of_swapped(_forward), _IMAGE_PIXELS), at, right_size, out_size)
    return None


def _pixels(aval: Any, spec: Sequence[int]) -> tuple[int, int]:
    return aval.shape[spec[2]], aval.shape[spec[3]]


def _out_size(
    left: Any, right: Any, strides: Any, padding: Any, spread: Any, dilation: Any
) -> tuple[int, int]:
    rows, columns = (
        ((size - 1) * wide + 1 + sum(pad) - ((taps - 1) * by + 1)) // stride + 1
        for size, taps, stride, pad, wide, by in zip(
            left, right, strides, padding, spread, dilation, strict=True
        )
    )
    return rows, columns


def _windows(image: Any, kernel: Any, strides: Any, low: Any, dilation: Any, outputs: Any) -> Windows:
    """The windows of F: ``outputs`` many, the first ``low`` pixels before the image."""
    after = [
        max(0, (count - 1) * stride + (taps - 1) * by + 1 - size - before)
        for size, taps, stride, before, by, count in zip(
            image, kernel, strides, low, dilation, outputs, strict=True
        )
    ]
    padding = ((low[0], after[0]), (low[1], after[1]))
    return Windows(tuple(image), tuple(kernel), tuple(strides), padding, tuple(dilation))


def _lowering(
    function: Callable[..., jax.Array],
    at: Windows,
    image: tuple[int, int],
    outputs: tuple[int, int],
    groups: int = 1,
    *,
    members: int = 1,
    turned: tuple[int, ...] = (),
) -> Function | None:
    """None where padding cuts into the image, which kernels cannot do, or the windows are not those meant.

    ``turned``: axes of the right operand that JAX's rule has reversed. Reversed once more they are as they were, and
    XLA removes both.
    """
    if min(map(min, at.padding)) < 0 or at.output != outputs or min(image) < 1:
        return None
    if members > 1:
        function = _by_member(function, members)
    found = functools.partial(function, at=at, groups=groups)
    return (lambda a, b: found(a, jax.lax.rev(b, turned))) if turned else found


def _of_swapped(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda a, b, **parameters: function(b, a, **parameters)


def _reversed(function: Callable[..., jax.Array], axes: tuple[int, ...]) -> Callable[..., jax.Array]:
    return lambda a, b, **parameters: jax.lax.rev(function(a, b, **parameters), axes)


def _by_member(function: Callable[..., jax.Array], members: int) -> Callable[..., jax.Array]:
    """DW of each of ``members`` batches: x [members * B, H, W, C] and dy [B, H', W', members * O], as vmap has them."""

    def call(x: jax.Array, dy: jax.Array, *, at: Windows, groups: int) -> jax.Array:
        batch, rows, columns, features = dy.shape
        apart = dy.reshape(batch, rows, columns, members, features // members)
        dy = jnp.moveaxis(apart, 3, 0).reshape(-1, rows, columns, features // members)
        dw = function(x, dy, at=at, groups=groups, members=members)
        return jnp.moveaxis(dw.reshape(members, *at.kernel, *dw.shape[2:]), 0, 3).reshape(
            *at.kernel, dw.shape[2], features
        )

    return call


# ---- the three convolutions, float32 ----------------------------------------------------------------------------


def _forward(x: jax.Array, w: jax.Array, *, at: Windows, groups: int) -> jax.Array:
    """x [B, H, W, C], w [kh, kw, C / groups, O] -> [B, H', W', O]."""
    shape = (x.shape[0], *at.output, w.shape[3])
    return native.call("nas_conv", shape, x, w, at=at.numbers(groups))


def _dx(dy: jax.Array, w: jax.Array, *, at: Windows, groups: int) -> jax.Array:
    """dy [B, H', W', O], w [kh, kw, C, O / groups] -> [B, H, W, C]."""
    rows, columns, channels, outputs = w.shape
    if groups > 1:  # as F has its kernel: [kh, kw, C / groups, O]
        apart = w.reshape(rows, columns, groups, channels // groups, outputs)
        w = jnp.swapaxes(apart, 2, 3).reshape(rows, columns, channels // groups, groups * outputs)
    shape = (dy.shape[0], *at.image, channels)
    return native.call("nas_conv_dx", shape, dy, w, at=at.numbers(groups))


def _dw(x: jax.Array, dy: jax.Array, *, at: Windows, groups: int = 1, members: int = 1) -> jax.Array:
    """x [members * B, H, W, C], dy [members * B, H', W', O] -> [members * kh, kw, C / groups, O]."""
    shape = (members * at.kernel[0], at.kernel[1], x.shape[3] // groups, dy.shape[3])
    return native.call("nas_conv_dw", shape, x, dy, at=at.numbers(groups, members))
