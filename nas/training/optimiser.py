"""Optimisers with every rate an argument of the compiled update."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from nas import ops

Tree = Any

# Beside the six that `nas.ops.fused_update` does in one pass: optax's own, with decoupled weight decay.
OPTAX = {"lion": optax.scale_by_lion(), "radam": optax.scale_by_radam(), "yogi": optax.scale_by_yogi()}
OPTIMISERS = (*ops.OPTIMISERS, *OPTAX)


class Rates(NamedTuple):
    """What an update takes beside gradients; traced scalars, float32 but for ``step``."""

    learning_rate: ArrayLike
    weight_decay: ArrayLike
    clip_norm: ArrayLike  # global gradient norm above which gradients are scaled down; inf: never
    step: ArrayLike  # int32, updates made before this one
    own_weight_decay: tuple[ArrayLike, ...] = ()  # of modules that are not to have the common one


def init(optimiser: str, params: Tree) -> Tree:
    """The optimiser's slots for ``params``."""
    if optimiser in OPTAX:
        return OPTAX[optimiser].init(params)
    count = len(ops.optimiser_slots(optimiser, {}))
    # numpy's zeros: jnp's would compile a program for each shape
    return tuple(jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params) for _ in range(count))


def update(
    optimiser: str,
    params: Tree,
    grads: Tree,
    slots: Tree,
    rates: Rates,
    scale: ArrayLike = 1.0,
    own: Sequence[str] = (),
) -> tuple[Tree, Tree]:
    """One step; returns new ``(params, slots)``. Gradients are first multiplied by ``scale``.

    Weight decay acts on leaves of two or more axes (kernels, not biases or normalisation): added to the
    gradient (L2) in sgd, momentum, nesterov, rmsprop and adam, beside it (Loshchilov and Hutter 2019) in the
    others; times the learning rate in both. The modules ``own`` (keys of ``params``) have those of
    ``rates.own_weight_decay``.
    """
    decays = dict(zip(own, rates.own_weight_decay, strict=True))
    if optimiser in OPTAX:
        return _by_optax(optimiser, params, grads, slots, rates, scale, decays)
    if not decays:
        return _fused(optimiser, params, grads, slots, rates, scale)
    common = [name for name in params if name not in decays]
    found: list[dict[str, Any]] = [{} for _ in (params, *slots)]
    for names, decay in ((common, rates.weight_decay), *(([name], decays[name]) for name in own)):
        p, g, *s = ({name: tree[name] for name in names} for tree in (params, grads, *slots))
        p, s = _fused(optimiser, p, g, tuple(s), rates._replace(weight_decay=decay), scale)
        for whole, part in zip(found, (p, *s), strict=True):
            whole.update(part)
    new_params, *new_slots = ({name: tree[name] for name in params} for tree in found)
    return new_params, tuple(new_slots)


def _fused(
    optimiser: str, params: Tree, grads: Tree, slots: Tree, rates: Rates, scale: ArrayLike
) -> tuple[Tree, Tree]:
    scalars: dict[str, Array | float] = {
        "learning_rate": jnp.asarray(rates.learning_rate),
        "weight_decay": jnp.asarray(rates.weight_decay),
        "grad_scale": jnp.asarray(scale, jnp.float32),
        "step": jnp.asarray(rates.step),
    }
    return ops.fused_update(optimiser, params, grads, slots, scalars)


def _by_optax(
    optimiser: str,
    params: Tree,
    grads: Tree,
    slots: Tree,
    rates: Rates,
    scale: ArrayLike,
    decays: Mapping[str, ArrayLike],
) -> tuple[Tree, Tree]:
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates: Tree
    updates, slots = OPTAX[optimiser].update(grads, slots, params)

    def new(decay: ArrayLike, p: Array, u: Array) -> Array:
        return p - rates.learning_rate * (u + decay * p if p.ndim >= 2 else u)

    if not decays:
        return jax.tree.map(functools.partial(new, rates.weight_decay), params, updates), slots
    return {
        name: jax.tree.map(functools.partial(new, decays.get(name, rates.weight_decay)), tree, updates[name])
        for name, tree in params.items()
    }, slots
