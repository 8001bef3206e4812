"""CPU lowerings in XLA's own ops, for machines without a C++ compiler.

XLA runs depthwise convolution and select-and-scatter several times slower than these forms, whose gradients
are written out because those of slices become chains of pads.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from nas.ops.geometry import Pair, Windows


def _taps(at: Windows) -> Iterator[Pair]:
    return ((row, column) for row in range(at.kernel[0]) for column in range(at.kernel[1]))


def _padded(x: jax.Array, at: Windows, value: float = 0.0) -> jax.Array:
    return jnp.pad(x, ((0, 0), *at.padding, (0, 0)), constant_values=value)


def _shift(padded: jax.Array, tap: tuple[int | jax.Array, int | jax.Array], at: Windows) -> jax.Array:
    """What the ``tap`` of each window sees: [B, H', W', C]."""
    rows, columns = at.output
    (down, across), (dilation_down, dilation_across) = at.strides, at.dilation
    extent = ((rows - 1) * down + 1, (columns - 1) * across + 1)
    start = (0, tap[0] * dilation_down, tap[1] * dilation_across, 0)
    seen = lax.dynamic_slice(padded, start, (padded.shape[0], *extent, padded.shape[3]))
    return seen[:, ::down, ::across]


def depthwise(x: jax.Array, w: jax.Array, at: Windows) -> jax.Array:
    """Depthwise convolution as a sum of shifted products; w is [kh, kw, 1, C]."""
    padded = _padded(x, at)
    first, *others = _taps(at)
    total = _shift(padded, first, at) * w[first][0]
    for tap in others:
        total += _shift(padded, tap, at) * w[tap][0]
    return total


def depthwise_dx(dy: jax.Array, w: jax.Array, at: Windows) -> jax.Array:
    """Input gradient of ``depthwise`` with stride 1: the same sum with the kernel flipped."""
    extent = tuple((taps - 1) * dilation for taps, dilation in zip(at.kernel, at.dilation, strict=True))
    sides = [
        (reach - before, size + before - outputs)
        for reach, (before, _), size, outputs in zip(extent, at.padding, at.image, at.output, strict=True)
    ]
    wide = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *((a, b, 0) for a, b in sides), (0, 0, 0)))
    flipped = Windows((wide.shape[1], wide.shape[2]), at.kernel, (1, 1), ((0, 0), (0, 0)), at.dilation)
    return depthwise(wide, w[::-1, ::-1], flipped)


def depthwise_dw(x: jax.Array, dy: jax.Array, at: Windows) -> jax.Array:
    """Weight gradient of ``depthwise``: one reduction a tap, mapped over the taps."""
    padded = _padded(x, at)
    taps = jnp.asarray(list(_taps(at)))
    sums = lax.map(lambda tap: jnp.sum(_shift(padded, (tap[0], tap[1]), at) * dy, axis=(0, 1, 2)), taps)
    return sums.reshape(*at.kernel, 1, x.shape[3])


def first_maxima(x: jax.Array, at: Windows) -> jax.Array:
    """The number of the first tap of each window that equals its maximum: [B, H', W', C]."""
    padded = _padded(x, at, -jnp.inf)
    first, *others = _taps(at)
    best = _shift(padded, first, at)
    chosen = jnp.zeros(best.shape, jnp.int32)
    for number, tap in enumerate(others, 1):
        seen = _shift(padded, tap, at)
        better = seen > best
        best, chosen = jnp.where(better, seen, best), jnp.where(better, number, chosen)
    return chosen


def max_pool_dx(x: jax.Array, dy: jax.Array, at: Windows) -> jax.Array:
    """Gradient of max pooling: the first maximum of each window gets its ``dy``."""
    chosen, nothing = first_maxima(x, at), jnp.zeros((), dy.dtype)
    (down, across), (rows, columns) = at.strides, at.output
    height, width = (size + sum(pad) for size, pad in zip(at.image, at.padding, strict=True))
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), dy.dtype)
    for number, (row, column) in enumerate(_taps(at)):
        below = height - row - (rows - 1) * down - 1
        right = width - column - (columns - 1) * across - 1
        total += lax.pad(
            jnp.where(chosen == number, dy, nothing),
            nothing,
            ((0, 0, 0), (row, below, down - 1), (column, right, across - 1), (0, 0, 0)),
        )
    (top, _), (left, _) = at.padding
    return total[:, top : top + at.image[0], left : left + at.image[1]]


def max_pool_gather(x: jax.Array, t: jax.Array, at: Windows) -> jax.Array:
    """The transpose of ``max_pool_dx``: what ``t`` holds where each window of ``x`` has its first maximum."""
    chosen, padded = first_maxima(x, at), _padded(t, at)
    taken = jnp.zeros(chosen.shape, t.dtype)
    for number, tap in enumerate(_taps(at)):
        taken = jnp.where(chosen == number, _shift(padded, tap, at), taken)
    return taken
