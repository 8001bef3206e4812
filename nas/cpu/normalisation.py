"""Batch normalisation with an activation: one kernel forward, one backward.

As plain ``jnp`` it is a dozen fusions for XLA to generate code for; docs/ablation.md has what the kernels are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nas.cpu.function import Arrays, differentiated, kernel, named, relu_is_visible, static, use_kernel

FUSED: dict[str, Callable[[Array], Array]] = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
}
"""The activations that the kernels apply, in the order of their numbers."""
_NUMBERS = {name: number for number, name in enumerate(FUSED)}
IDENTITY = _NUMBERS["identity"]
_LINEAR_BETWEEN = {"identity": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


@named("activation", "eps")
def batch_norm(
    x: Array, scale: Array, bias: Array, *, activation: str = "identity", eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """``act((x - mean) / sqrt(var + eps) * scale + bias)``, mean and var (Ioffe and Szegedy 2015).

    ``x`` [..., C]; ``scale``, ``bias``, and the batch's ``mean`` and biased ``var`` [C]; ``activation`` is one of
    `FUSED`. Gradients flow through the first result alone: mean and var are there for running statistics.
    """
    native = use_kernel("normalisation", x, scale, bias)
    if activation != "identity" and (not native or relu_is_visible()):
        y, mean, var = batch_norm(x, scale, bias, eps=eps)
        return FUSED[activation](y), mean, var
    if native:
        return _batch_norm_call(static(activation=_NUMBERS[activation], eps=float(eps)), x, scale, bias)
    y, mean, var = _batch_norm(x, scale, bias, activation=_NUMBERS[activation], eps=eps)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x [..., C]; no gradient flows through them."""
    x = jax.lax.stop_gradient(x)
    mean, var = _moments_kernel((), x) if use_kernel("normalisation", x) else _moments(x)
    return mean, var


@named("eps")
def batch_norm_inference(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, *, eps: float = 1e-5
) -> Array:
    """`batch_norm`'s first result with given statistics, such as running ones."""
    return ((x - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias).astype(x.dtype)


def _moments(x: Array) -> Arrays:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    if x.dtype.itemsize < 4:
        # One pass over memory, as Flax's: 16 bits have few digits to lose in float32 squares.
        return mean, jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0)
    return mean, jnp.square(wide - mean).mean(axes)


def _batch_norm(x: Array, scale: Array, bias: Array, *, activation: int, eps: float) -> Arrays:
    mean, var = _moments(x)
    y = batch_norm_inference(x, scale, bias, mean, var, eps=eps)
    return _function(activation)(y), mean, var


def _function(activation: int) -> Callable[[Array], Array]:
    return tuple(FUSED.values())[activation]


def _linear_between(activation: int) -> tuple[float, float] | None:
    """Where it is linear, being constant elsewhere; None for a curved one, whose second derivatives have no kernel."""
    return _LINEAR_BETWEEN.get(tuple(FUSED)[activation])


def _backward(
    dy: Array, x: Array, mean: Array, var: Array, scale: Array, bias: Array, *, activation: int, eps: float
) -> Arrays:
    # From x again rather than from mean and var, so that derivatives of this see all that depends on x.
    del mean, var
    return jax.vjp(lambda *args: _batch_norm(*args, activation=activation, eps=eps)[0], x, scale, bias)[1](dy)


def _gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], *, activation: int, eps: float
) -> Sequence[Array]:
    x, scale, bias = primals
    return batch_norm_backward_kernel(static(activation=activation, eps=eps), dy, x, *outs[1:], scale, bias)


def _tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, activation: int, eps: float
) -> Arrays | None:
    """Along x alone: the derivative of normalisation is symmetric, so that its gradient is its tangent too."""
    x, scale, bias = primals
    y, mean, var = outs
    linear = _linear_between(activation)
    if linear is None or dots[0] is None or any(dot is not None for dot in dots[1:]):
        return None
    identity = static(activation=IDENTITY, eps=eps)
    along = batch_norm_backward_kernel(identity, dots[0], x, mean, var, scale, bias)[0]
    if linear != _LINEAR_BETWEEN["identity"]:
        along = jnp.where((y > linear[0]) & (y < linear[1]), along, 0)
    # Nothing is differentiated through mean and var: see `batch_norm`.
    return along, jnp.zeros_like(mean), jnp.zeros_like(var)


def _backward_along(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    ddy: Array,
    dx: Array,
    **parameters: Any,
) -> Arrays:
    """The tangents of `_backward`'s results along ddy and dx, tangents of dy and x."""

    def along(dy: Array, x: Array) -> tuple[Array, ...]:
        return tuple(_backward(dy, x, mean, var, scale, bias, **parameters))

    return jax.jvp(along, (dy, x), (ddy, dx))[1]


def _backward_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, activation: int, eps: float
) -> Arrays | None:
    # mean and var come with x: what depends on x depends on them, but the derivative by x has that already.
    if _linear_between(activation) is None or any(dot is not None for dot in dots[4:]):
        return None
    along = [jnp.zeros_like(x) if dot is None else dot for x, dot in zip(primals[:2], dots[:2], strict=True)]
    return _backward_tangent_kernel(static(activation=activation, eps=eps), *primals, *along)


_moments_kernel = kernel("nas_moments", _moments, lambda x: [jax.ShapeDtypeStruct(x.shape[-1:], x.dtype)] * 2)
batch_norm_kernel = kernel(
    "nas_batch_norm", _batch_norm, lambda x, scale, *_, **__: [x, scale, scale], tangents=_tangents
)
_backward_tangent_kernel = kernel(
    "nas_batch_norm_backward_tangent", _backward_along, lambda dy, x, mean, var, *_, **__: [x, mean, var]
)
batch_norm_backward_kernel = kernel(
    "nas_batch_norm_backward",
    _backward,
    lambda dy, x, mean, var, *_, **__: [x, mean, var],
    tangents=_backward_tangents,
)
_batch_norm_call = differentiated(batch_norm_kernel, _gradient)
