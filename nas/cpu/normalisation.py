"""Batch and layer normalisation with shortcut and activation: one kernel forward, one backward.

As plain ``jnp`` each is a dozen fusions for XLA to generate code for, which in a search of many networks takes longer
than their training gains; `scripts/bench_ablation.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nas.cpu.function import (
    ACTIVATIONS,
    PIECEWISE_LINEAR,
    SLOPES,
    Arrays,
    differentiated,
    fused,
    kernel,
    named,
    static,
    use_kernel,
)


@named("activation", "eps")
def batch_norm_act(
    x: Array,
    scale: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """``activation((x - mean) / sqrt(var + eps) * scale + bias [+ residual])``, mean and var (Ioffe, Szegedy 2015).

    ``x`` and ``residual`` [..., C]; ``scale``, ``bias``, and the batch's ``mean`` and biased ``var`` [C]. Gradients
    flow through the first result alone: mean and var are there for running statistics.
    """
    if not fused(activation):
        y, mean, var = batch_norm_act(x, scale, bias, eps=eps)
        return ACTIVATIONS[activation](y if residual is None else y + residual), mean, var
    arrays = [x, scale, bias, *([] if residual is None else [residual])]
    if use_kernel("normalisation", *arrays):
        return _batch_norm_call(static(activation=activation, eps=float(eps)), *arrays)
    y, mean, var = _batch_norm(*arrays, activation=activation, eps=eps)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x [..., C]; no gradient flows through them."""
    x = jax.lax.stop_gradient(x)
    mean, var = _moments_kernel((), x) if use_kernel("normalisation", x) else _moments(x)
    return mean, var


@named("activation", "eps")
def batch_norm_inference(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-5,
) -> Array:
    """``batch_norm_act``'s first result with given statistics, such as running ones."""
    y = (x - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias
    return ACTIVATIONS[activation](y if residual is None else y + residual).astype(x.dtype)


@named("activation", "eps")
def layer_norm_act(
    x: Array,
    scale: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-6,
) -> Array:
    """``activation(normalised x * scale + bias [+ residual])``, each pixel over its channels (Ba et al. 2016).

    ``x``, ``residual`` and the result [..., C]; ``scale`` and ``bias`` [C].
    """
    if not fused(activation):
        y = layer_norm_act(x, scale, bias, eps=eps)
        return ACTIVATIONS[activation](y if residual is None else y + residual)
    arrays = [x, scale, bias, *([] if residual is None else [residual])]
    if use_kernel("normalisation", *arrays):
        return _layer_norm_call(static(activation=activation, eps=float(eps)), *arrays)[0]
    return _layer_norm(*arrays, activation=activation, eps=eps)[0]


# ---- batch normalisation ---------------------------------------------------------------------------------------


def _moments(x: Array) -> Arrays:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    return mean, jnp.square(wide - mean).mean(axes)


def _batch_norm(x: Array, scale: Array, bias: Array, *residual: Array, activation: str, eps: float) -> Arrays:
    mean, var = _moments(x)
    y = batch_norm_inference(x, scale, bias, mean, var, *residual, activation=activation, eps=eps)
    return y, mean, var


def _batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    *kept: Array,
    activation: str,
    eps: float,
) -> Arrays:
    # From x again rather than from mean and var, so that derivatives of this see all that depends on x.
    del mean, var
    z, back = jax.vjp(lambda *args: _batch_norm(*args, activation="identity", eps=eps)[0], x, scale, bias)
    g = _through(dy, lambda: z, kept, activation)
    return [*back(g), *([g] if kept else [])]


def _batch_norm_gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], *, activation: str, eps: float
) -> Sequence[Array]:
    x, scale, bias, *residual = primals
    y, mean, var = outs
    kept = _kept(activation, residual, y)
    parameters = static(activation=activation, eps=eps)
    found = batch_norm_backward_kernel(parameters, dy, x, mean, var, scale, bias, *kept)
    return found if kept or not residual else [*found, dy]


def _batch_norm_backward_along(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    ddy: Array,
    dx: Array,
    *,
    activation: str,
    eps: float,
) -> Arrays:
    """The tangents of `_batch_norm_backward`'s results along ddy and dx, tangents of dy and x."""

    def along(dy: Array, x: Array) -> tuple[Array, ...]:
        return tuple(_batch_norm_backward(dy, x, mean, var, scale, bias, activation=activation, eps=eps))

    return jax.jvp(along, (dy, x), (ddy, dx))[1]


def _batch_norm_backward_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, activation: str, eps: float
) -> Arrays | None:
    # mean and var come with x: what depends on x depends on them, but the derivative by x has that already.
    del outs
    if len(primals) > 6 or any(dot is not None for dot in dots[4:]) or activation not in PIECEWISE_LINEAR:
        return None
    along = [jnp.zeros_like(x) if dot is None else dot for x, dot in zip(primals[:2], dots[:2], strict=True)]
    return _batch_norm_backward_tangent_kernel(static(activation=activation, eps=eps), *primals, *along)


def _batch_norm_tangents(
    primals: Arrays, outs: Arrays, dots: Sequence[Array | None], *, activation: str, eps: float
) -> Arrays | None:
    """Along x alone: the derivative of normalisation is symmetric, so that its gradient is its tangent too."""
    x, scale, bias, *residual = primals
    y, mean, var = outs
    if residual or dots[0] is None or any(dot is not None for dot in dots[1:]):
        return None
    if activation not in PIECEWISE_LINEAR:
        return None
    identity = static(activation="identity", eps=eps)
    along = batch_norm_backward_kernel(identity, dots[0], x, mean, var, scale, bias)[0]
    masked = along if activation == "identity" else along * SLOPES[activation](y)
    # Nothing is differentiated through mean and var: see `batch_norm_act`.
    return masked, jnp.zeros_like(mean), jnp.zeros_like(var)


def _backward_results(dy: Array, x: Array, mean: Array, var: Array, *arrays: Array, **_: Any) -> Arrays:
    """Shaped as the gradients of x, scale and bias, and of a shortcut where there was one."""
    return [x, mean, var, *([x] if len(arrays) > 2 else [])]


_moments_kernel = kernel("nas_moments", _moments, lambda x: [jax.ShapeDtypeStruct(x.shape[-1:], x.dtype)] * 2)
batch_norm_kernel = kernel(
    "nas_batch_norm", _batch_norm, lambda x, scale, *_, **__: [x, scale, scale], tangents=_batch_norm_tangents
)
_batch_norm_backward_tangent_kernel = kernel(
    "nas_batch_norm_backward_tangent",
    _batch_norm_backward_along,
    lambda dy, x, mean, var, *_, **__: [x, mean, var],
)
batch_norm_backward_kernel = kernel(
    "nas_batch_norm_backward",
    _batch_norm_backward,
    _backward_results,
    tangents=_batch_norm_backward_tangents,
)
_batch_norm_call = differentiated(batch_norm_kernel, _batch_norm_gradient)


# ---- layer normalisation ---------------------------------------------------------------------------------------


def _layer_norm(x: Array, scale: Array, bias: Array, *residual: Array, activation: str, eps: float) -> Arrays:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    var = jnp.square(wide - mean).mean(-1, keepdims=True)
    y = (wide - mean) * jax.lax.rsqrt(var + eps) * scale + bias
    return [ACTIVATIONS[activation](sum(residual, start=y)).astype(x.dtype)]


def _layer_norm_backward(
    dy: Array, x: Array, scale: Array, bias: Array, *kept: Array, activation: str, eps: float
) -> Arrays:
    z, back = jax.vjp(lambda *args: _layer_norm(*args, activation="identity", eps=eps)[0], x, scale, bias)
    g = _through(dy, lambda: z, kept, activation)
    return [*back(g), *([g] if kept else [])]


def _layer_norm_gradient(
    primals: Arrays, outs: Arrays, dy: Array, asked: Sequence[bool], *, activation: str, eps: float
) -> Sequence[Array]:
    x, scale, bias, *residual = primals
    kept = _kept(activation, residual, outs[0])
    parameters = static(activation=activation, eps=eps)
    found = _layer_norm_backward_kernel(parameters, dy, x, scale, bias, *kept)
    return found if kept or not residual else [*found, dy]


_layer_norm_backward_kernel = kernel(
    "nas_layer_norm_backward",
    _layer_norm_backward,
    lambda dy, x, scale, bias, *kept, **_: [x, scale, bias, *([x] if kept else [])],
)
_layer_norm_call = differentiated(
    kernel("nas_layer_norm", _layer_norm, lambda x, *_, **__: [x]), _layer_norm_gradient
)


# ---- the activation behind a normalisation ---------------------------------------------------------------------


def _through(dy: Array, z: Callable[[], Array], kept: Sequence[Array], activation: str) -> Array:
    """The gradient before the activation; ``kept`` is its output where the slope follows from it, else added to z."""
    if kept and activation in SLOPES:
        return dy * SLOPES[activation](kept[0])
    before: Any = sum(kept, start=z())
    return jax.vjp(ACTIVATIONS[activation], before)[1](dy)[0]


def _kept(activation: str, residual: Sequence[Array], y: Array) -> Sequence[Array]:
    """What ``_through`` needs when there was a residual."""
    if not residual or activation == "identity":
        return ()
    return (y,) if activation in SLOPES else tuple(residual)
