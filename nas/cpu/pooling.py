"""Max and sum pooling of images [B, H, W, C] on CPU, with the primitives that JAX differentiates them by.

Max pooling is ``reduce_window_max``; its gradient ``select_and_scatter_add`` gives each window's cotangent to the
window's first maximum in row order, and its tangent ``select_and_gather_add`` takes the tangent from there. Average
pooling is ``reduce_window_sum`` and a division; the gradient of the sum is a ``pad`` and the same primitive.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from nas.cpu import native
from nas.cpu.geometry import Windows
from nas.cpu.lowering import Function


def choose_max(operand: Any, **parameters: Any) -> Function | None:
    at = _windows(operand.shape, **parameters)
    return None if at is None else functools.partial(_call, "nas_max_pool", at, at.output)


def choose_scatter(source: Any, operand: Any, *, select_prim: Any, **parameters: Any) -> Function | None:
    at = _windows(operand.shape, **parameters)
    if at is None or select_prim is not lax.ge_p:
        return None
    return lambda dy, x: _call("nas_max_pool_dx", at, at.image, x, dy)


def choose_gather(tangents: Any, operand: Any, *, select_prim: Any, **parameters: Any) -> Function | None:
    at = _windows(operand.shape, **parameters)
    if at is None or select_prim is not lax.ge_p:
        return None
    return lambda t, x: _call("nas_max_pool_gather", at, at.output, x, t)


def choose_sum(operand: Any, **parameters: Any) -> Function | None:
    at = _windows(operand.shape, **parameters)
    return None if at is None else functools.partial(_call, "nas_sum_pool", at, at.output)


def _windows(
    shape: Sequence[int],
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int] = (),
    window_dilation: Sequence[int] = (),
    **_: Any,
) -> Windows | None:
    """Windows over the two axes before the last; None where they reach over others or skip pixels."""
    axes = [len(shape) - 3, len(shape) - 2]
    others = [i for i in range(len(shape)) if i not in axes]
    if len(shape) < 4 or any(by != 1 for by in (*base_dilation, *window_dilation)):
        return None
    if any(window_dimensions[i] != 1 or window_strides[i] != 1 or any(padding[i]) for i in others):
        return None
    image, kernel, strides = (
        (values[axes[0]], values[axes[1]]) for values in (shape, window_dimensions, window_strides)
    )
    pads: Any = (tuple(padding[axes[0]]), tuple(padding[axes[1]]))
    if any(min(pad) < 0 or max(pad) >= taps for pad, taps in zip(pads, kernel, strict=True)):
        return None
    return Windows(image, kernel, strides, pads)


def _call(target: str, at: Windows, size: tuple[int, int], *arrays: jax.Array) -> jax.Array:
    """A kernel on arrays whose axes before the last three are one batch to it."""
    *leading, _, _, channels = arrays[0].shape
    flat = [array.reshape(-1, *array.shape[-3:]) for array in arrays]
    out = native.call(target, (flat[0].shape[0], *size, channels), *flat, at=at.numbers())
    return out.reshape(*leading, *size, channels)
