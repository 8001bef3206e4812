"""Rematerialisation: a function whose gradient computes it again instead of keeping what it computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nas.cpu.function import for_cpu

Tree = Any


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(waiting, *inputs)``, which keeps its arguments alone for the gradient and computes all else anew.

    Elsewhere than on CPU it is `jax.checkpoint`, whose barriers are gone on CPU when XLA merges equal
    computations: measured, not a byte is saved. There, the second time ``waiting`` waits for a cotangent, which XLA
    cannot know to change nothing; what needs ``inputs`` alone is kept, and it has no forward mode.
    """

    @jax.custom_vjp
    def run(waiting: Tree, *inputs: Any) -> Any:
        return function(waiting, *inputs)

    def forward(waiting: Tree, *inputs: Any) -> tuple[Any, Any]:
        return function(waiting, *inputs), (waiting, inputs)

    def backward(kept: Any, cotangents: Any) -> Any:
        waiting, inputs = kept
        return jax.vjp(function, _after(waiting, jax.tree.leaves(cotangents)[0]), *inputs)[1](cotangents)

    run.defvjp(forward, backward)

    def call(waiting: Tree, *inputs: Any) -> Any:
        return (run if for_cpu() else jax.checkpoint(function))(waiting, *inputs)

    return call


def _after(tree: Tree, cotangent: Array) -> Tree:
    """``tree`` unchanged, but not before ``cotangent`` is there: a zero is added that follows from it."""
    zero = jnp.minimum(jnp.abs(cotangent[(0,) * cotangent.ndim]), 0)
    return jax.tree.map(lambda one: one + zero.astype(one.dtype), tree)
