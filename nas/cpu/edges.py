"""What supernets consist of beside convolutions: sums over edges, rectifiers on edges, separable convolutions.

A supernet has a thousand of them, and XLA takes longer to generate code for each than the kernel takes to run;
docs/ablation.md has what the kernels are worth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from nas.cpu.function import Arrays, differentiated, kernel, static, use_kernel
from nas.cpu.geometry import Pair, Windows
from nas.cpu.normalisation import IDENTITY, batch_norm, batch_norm_backward_kernel, batch_norm_kernel

_EDGES = "edges"


# ---- rectifier -------------------------------------------------------------------------------------------------


def relu(x: Array) -> Array:
    """`jax.nn.relu`."""
    return _relu_call((), x)[0] if x.ndim and use_kernel(_EDGES, x) else jax.nn.relu(x)


def _relu_backward(dy: Array, x: Array) -> Arrays:
    return [jnp.where(x > 0, dy, 0)]


_relu_kernel = kernel(
    "nas_relu",
    lambda x: [jax.nn.relu(x)],
    lambda x: [x],
    tangents=lambda primals, outs, dots: _relu_backward_kernel((), dots[0], primals[0]),
    vmap_method="broadcast_all",
)
_relu_backward_kernel = kernel(
    "nas_relu_backward",
    _relu_backward,
    lambda dy, x: [x],
    tangents=lambda primals, outs, dots: (
        [jnp.zeros_like(primals[1])] if dots[0] is None else _relu_backward_kernel((), dots[0], primals[1])
    ),
    vmap_method="broadcast_all",
)
_relu_call = differentiated(
    _relu_kernel, lambda primals, outs, dy, asked: _relu_backward_kernel((), dy, primals[0])
)


# ---- sums ------------------------------------------------------------------------------------------------------


def add(*arrays: Array) -> Array:
    """The sum of arrays of one shape."""
    if len(arrays) == 1:
        return arrays[0]
    return _add_by_kernel(*arrays) if use_kernel(_EDGES, *arrays) else functools.reduce(jnp.add, arrays)


@jax.custom_jvp
def _add_by_kernel(*arrays: Array) -> Array:
    result = jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)
    return jax.ffi.ffi_call("nas_add", result, vmap_method="broadcast_all")(*arrays)


@functools.partial(_add_by_kernel.defjvp, symbolic_zeros=True)
def _add_jvp(primals: Arrays, given: Sequence[Any]) -> tuple[Array, Array]:
    dots = [dot for dot in given if not isinstance(dot, SymbolicZero)]
    back = lambda _, cotangent: [cotangent] * len(dots)  # noqa: E731
    along = jax.custom_derivatives.linear_call(lambda _, dots: add(*dots), back, (), dots)
    return _add_by_kernel(*primals), along


def fork(x: Array, readers: int) -> tuple[Array, ...]:
    """``x`` once for each of its readers; the gradients they send back are added by one call of `add`.

    Reading ``x`` itself several times gives the same numbers, but leaves the additions to XLA to compile.
    """
    if readers < 2 or not use_kernel(_EDGES, x):
        return (x,) * readers
    return _fork(readers, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fork(readers: int, x: Array) -> tuple[Array, ...]:
    return (x,) * readers


_fork.defvjp(lambda readers, x: ((x,) * readers, None), lambda readers, _, cotangents: (add(*cotangents),))


def weighted_sum(weights: Array, arrays: Sequence[Array], positions: Sequence[int]) -> Array:
    """``sum_k weights[positions[k]] * arrays[k]``: float32 ``weights`` [n], arrays of one shape.

    The mixture of a supernet's operations (Liu et al. 2019, equation 2).
    """
    if not use_kernel(_EDGES, weights, *arrays):
        return _weighted_sum(weights, *arrays, positions=tuple(positions))[0]
    return _weighted_sum_call(static(positions=tuple(positions)), weights, *arrays)[0]


def _weighted_sum(weights: Array, *arrays: Array, positions: tuple[int, ...]) -> Arrays:
    terms = [weights[i].astype(array.dtype) * array for i, array in zip(positions, arrays, strict=True)]
    return [functools.reduce(jnp.add, terms)]


def _weighted_sum_backward(dy: Array, weights: Array, *arrays: Array, positions: tuple[int, ...]) -> Arrays:
    dots = jnp.stack([jnp.sum(dy * array) for array in arrays])
    of_weights = jnp.zeros_like(weights).at[np.array(positions)].add(dots.astype(weights.dtype))
    return [of_weights, *(weights[i].astype(dy.dtype) * dy for i in positions)]


def _weighted_sum_gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], *, positions: tuple[int, ...]
) -> Arrays:
    return _weighted_sum_backward_kernel(static(positions=positions), dy, *primals)


def _weighted_sum_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, positions: tuple[int, ...]
) -> Arrays:
    """Another weighted sum: of the arrays by the weights' tangents, of the arrays' tangents by the weights."""
    weights, *arrays = primals
    terms: list[tuple[int, Array]] = []
    if dots[0] is not None:
        terms += zip(positions, arrays, strict=True)
    moved = [(i + len(weights), dot) for i, dot in zip(positions, dots[1:], strict=True) if dot is not None]
    both = jnp.concatenate([weights if dots[0] is None else dots[0], weights])
    places, maps = zip(*terms, *moved, strict=True)
    return _weighted_sum_kernel(static(positions=places), both, *maps)


def _weighted_sum_backward_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, positions: tuple[int, ...]
) -> Arrays:
    """Bilinear in dy and (weights, arrays)."""
    dy, weights, *arrays = primals
    ddy, dweights, *moved = dots
    back = functools.partial(_weighted_sum_backward_kernel, static(positions=positions))
    found = [] if ddy is None else back(ddy, weights, *arrays)
    if dweights is None and all(dot is None for dot in moved):
        return found
    along = [jnp.zeros_like(a) if dot is None else dot for a, dot in zip(arrays, moved, strict=True)]
    more = back(dy, jnp.zeros_like(weights) if dweights is None else dweights, *along)
    if not found:
        return more
    if dweights is None:  # the gradients by the arrays do not depend on the arrays
        return [found[0] + more[0], *found[1:]]
    return [found[0] + more[0], *(add(a, b) for a, b in zip(found[1:], more[1:], strict=True))]


_weighted_sum_kernel = kernel(
    "nas_weighted_sum", _weighted_sum, lambda weights, x, *_, **__: [x], tangents=_weighted_sum_tangents
)
_weighted_sum_backward_kernel = kernel(
    "nas_weighted_sum_backward",
    _weighted_sum_backward,
    lambda dy, *arrays, **_: arrays,
    tangents=_weighted_sum_backward_tangents,
)
_weighted_sum_call = differentiated(_weighted_sum_kernel, _weighted_sum_gradient)


class Unnormalised(NamedTuple):
    """A map [..., C] that `mixture` is to normalise, by its mean and variance [C] over the batch (`moments`)."""

    map: Array
    mean: Array
    var: Array


def mixture(
    weights: Array, maps: Sequence[Array | Unnormalised], positions: Sequence[int], *, eps: float = 1e-5
) -> Array:
    """`weighted_sum` of maps of which some are normalised only here: ``(map - mean) / sqrt(var + eps)``.

    Values and gradients are those of `batch_norm` and `weighted_sum` one after the other, but no normalised map
    is written to memory or kept for the gradient.
    """
    arrays = [one.map if isinstance(one, Unnormalised) else one for one in maps]
    normed = tuple(isinstance(one, Unnormalised) for one in maps)
    if not any(normed) or not use_kernel(_EDGES, weights, *arrays):
        plain = [_normalised(x, eps) if norm else x for x, norm in zip(arrays, normed, strict=True)]
        return weighted_sum(weights, plain, positions)
    statistics = [array for one in maps if isinstance(one, Unnormalised) for array in one[1:]]
    parameters = static(positions=tuple(positions), normed=normed, eps=float(eps))
    return _mixture_call(parameters, weights, *arrays, *statistics)[0]


def _normalised(x: Array, eps: float) -> Array:
    return batch_norm(x, *_ones_and_zeros(x), eps=eps)[0]


def _ones_and_zeros(x: Array) -> tuple[Array, Array]:
    return jnp.asarray(np.ones(x.shape[-1], np.float32)), jnp.asarray(np.zeros(x.shape[-1], np.float32))


def _by_batch(x: Array, eps: float) -> Arrays:
    """x normalised, and the mean and variance of its batch."""
    return batch_norm_kernel(static(activation=IDENTITY, eps=eps), x, *_ones_and_zeros(x))


def _mixture(
    weights: Array, *arrays: Array, positions: tuple[int, ...], normed: tuple[bool, ...], eps: float
) -> Arrays:
    # From the maps alone, not from their statistics, so that derivatives of this see all that depends on them.
    pairs = zip(arrays[: len(normed)], normed, strict=True)
    seen = [_by_batch(x, eps)[0] if norm else x for x, norm in pairs]
    return _weighted_sum_kernel(static(positions=positions), weights, *seen)


def _mixture_backward(
    dy: Array,
    weights: Array,
    *arrays: Array,
    positions: tuple[int, ...],
    normed: tuple[bool, ...],
    eps: float,
) -> Arrays:
    maps = arrays[: len(normed)]
    through = [_by_batch(x, eps) if norm else (x,) for x, norm in zip(maps, normed, strict=True)]
    seen = [one[0] for one in through]
    parameters = static(positions=positions)
    of_weights, *of_maps = _weighted_sum_backward_kernel(parameters, dy, weights, *seen)
    identity = static(activation=IDENTITY, eps=eps)
    return [
        of_weights,
        *(
            batch_norm_backward_kernel(identity, given, x, *one[1:], *_ones_and_zeros(x))[0]
            if norm
            else given
            for given, x, one, norm in zip(of_maps, maps, through, normed, strict=True)
        ),
    ]


def _mixture_gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], **parameters: Any
) -> Sequence[Array | None]:
    found = _mixture_backward_kernel(static(**parameters), dy, *primals)
    return [*found, *[None] * (len(primals) - len(found))]


_mixture_backward_kernel = kernel(
    "nas_mixture_backward",
    _mixture_backward,
    lambda dy, weights, *arrays, normed, **_: [weights, *arrays[: len(normed)]],
)
_mixture_call = differentiated(
    kernel("nas_mixture", _mixture, lambda weights, x, *_, **__: [x]), _mixture_gradient
)


# ---- separable convolution -------------------------------------------------------------------------------------


def separable_conv2d(
    x: Array,
    depthwise: Array,
    pointwise: Array,
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int = 1,
) -> Array:
    """A depthwise convolution of x [B, H, W, C] and then a 1x1 convolution: [B, H', W', O].

    ``depthwise`` [kh, kw, 1, C], ``pointwise`` [1, 1, C / groups, O]; ``padding`` ((top, bottom), (left, right)).
    """
    kernel_size = (depthwise.shape[0], depthwise.shape[1])
    at = Windows((x.shape[1], x.shape[2]), kernel_size, strides, padding, dilation)
    features = pointwise.shape[3]
    whole = features in (4, 8) or features % 16 == 0  # the kernel writes whole vectors
    whole = whole and groups == 1 and x.shape[-1] > 1
    if not whole or not use_kernel("separable", x, depthwise, pointwise):
        return _separable(x, depthwise, pointwise, at=at, groups=groups)[0]
    return _separable_call(static(at=at), x, depthwise, pointwise)[0]


def _conv(x: Array, w: Array, at: Windows, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x, w, at.strides, at.padding, rhs_dilation=at.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def _separable(x: Array, depthwise: Array, pointwise: Array, *, at: Windows, groups: int = 1) -> Arrays:
    between = _conv(x, depthwise, at, x.shape[-1])
    return [_conv(between, pointwise, Windows(at.output, (1, 1), (1, 1), ((0, 0), (0, 0))), groups)]


def _separable_backward(
    dy: Array, x: Array, depthwise: Array, pointwise: Array, *, at: Windows, asked: int
) -> Arrays:
    found = jax.vjp(lambda *args: _separable(*args, at=at)[0], x, depthwise, pointwise)[1](dy)
    return [one for i, one in enumerate(found) if asked >> i & 1]


def _separable_gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], *, at: Windows
) -> Sequence[Array | None]:
    bits = sum(1 << i for i, flag in enumerate(asked) if flag)
    found = iter(_separable_backward_kernel(static(at=at, asked=bits), dy, *primals))
    return [next(found) if flag else None for flag in asked]


def _separable_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, at: Windows
) -> Arrays:
    """Linear in each array."""
    terms = [
        _separable_kernel(static(at=at), *primals[:i], dot, *primals[i + 1 :])[0]
        for i, dot in enumerate(dots)
        if dot is not None
    ]
    return [add(*terms)]


def _separable_result(x: Array, depthwise: Array, pointwise: Array, *, at: Windows) -> Sequence[Any]:
    return [jax.ShapeDtypeStruct((x.shape[0], *at.output, pointwise.shape[3]), x.dtype)]


_separable_kernel = kernel("nas_separable", _separable, _separable_result, tangents=_separable_tangents)
_separable_backward_kernel = kernel(
    "nas_separable_backward",
    _separable_backward,
    lambda dy, *arrays, asked, **_: [one for i, one in enumerate(arrays) if asked >> i & 1],
)
_separable_call = differentiated(_separable_kernel, _separable_gradient)
