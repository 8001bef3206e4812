"""Layers that are bilinear in images and weights, as three primitives closed under differentiation and vmap.

With ``y = layer(x, w)``, ``dx = layer_dx(dy, w)`` and ``dw = layer_dw(x, dy)`` each is bilinear, and a transpose
of either other one, so that derivatives of any order in either mode need nothing else. Their one parameter
``at`` is a frozen dataclass with ``members``: so many layers run side by side, each with its own weights, x being
[members * B, …] and w [members * n, …]. Only ``vmap`` makes it other than 1.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching


def by_member(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Run a function of one member's arrays on arrays of several, members folded into their first axis."""

    @functools.wraps(function)
    def folded(a: jax.Array, b: jax.Array, *, at: Any) -> jax.Array:
        if at.members == 1:
            return function(a, b, at=at)
        one = replace(at, members=1)
        out = jax.vmap(lambda a, b: function(a, b, at=one))(_unfold(a, at.members), _unfold(b, at.members))
        return out.reshape(-1, *out.shape[2:])

    return folded


def _unfold(array: jax.Array, members: int) -> jax.Array:
    return array.reshape(members, array.shape[0] // members, *array.shape[1:])


def close(layer: core.Primitive, dx: core.Primitive, dw: core.Primitive) -> None:
    """Give the three primitives of a layer their derivatives and their vmap."""
    ad.defbilinear(
        layer,
        lambda ct, x, w, at: dx.bind(ct, w, at=at),
        lambda ct, x, w, at: dw.bind(x, ct, at=at),
    )
    ad.defbilinear(
        dx,
        lambda ct, dy, w, at: layer.bind(ct, w, at=at),
        lambda ct, dy, w, at: dw.bind(ct, dy, at=at),
    )
    ad.defbilinear(
        dw,
        lambda ct, x, dy, at: dx.bind(dy, ct, at=at),
        lambda ct, x, dy, at: layer.bind(x, ct, at=at),
    )
    batching.primitive_batchers[layer] = functools.partial(_batch_images, layer)
    batching.primitive_batchers[dx] = functools.partial(_batch_images, dx)
    batching.primitive_batchers[dw] = functools.partial(_batch_members, dw)


def _batch_images(bound: Any, arrays: Sequence[jax.Array], dims: Sequence[Any], *, at: Any) -> Any:
    """vmap of a layer and its dx: images alone join the batch, weights make members."""
    images, weights = arrays
    if dims[1] is not None:
        return _batch_members(bound, arrays, dims, at=at)
    size = images.shape[dims[0]]
    images = batching.bdim_at_front(images, dims[0], size)
    apart = images.reshape(size, at.members, -1, *images.shape[2:])
    joined = jnp.moveaxis(apart, 0, 1).reshape(-1, *images.shape[2:])
    out = bound.bind(joined, weights, at=at)
    out = out.reshape(at.members, size, -1, *out.shape[1:])
    return jnp.moveaxis(out, 1, 0).reshape(size, -1, *out.shape[3:]), 0


def _batch_members(bound: Any, arrays: Sequence[jax.Array], dims: Sequence[Any], *, at: Any) -> Any:
    size = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
    whole = (batching.bdim_at_front(array, dim, size) for array, dim in zip(arrays, dims, strict=True))
    out = bound.bind(
        *(array.reshape(-1, *array.shape[2:]) for array in whole), at=replace(at, members=at.members * size)
    )
    return out.reshape(size, -1, *out.shape[1:]), 0
