"""What is watched in a search, and when it is stopped: skip connections and the curvature of the alphas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from nas.errors import InputError
from nas.oneshot.bilevel import Derivatives, Point, Problem

HessianVector = Callable[[np.ndarray], np.ndarray]


def count(arch: Mapping[str, Any], value: Any, prefix: str = "") -> int:
    """How many choices, of those whose names start with ``prefix``, are ``value``: skip connections of a cell."""
    return sum(chosen == value for name, chosen in arch.items() if name.startswith(prefix))


def hessian_vector(
    of: Derivatives, problem: Problem, at: Point, alphas: Array, *, exact: bool = False, length: float = 1e-2
) -> HessianVector:
    """``u -> H u`` with H the second derivatives of the loss at ``at`` by the alphas (at fixed weights).

    Without noise: of the relaxation's expected mixing (Zela et al. 2020, section 3.2). ``exact``: forward over
    reverse, else a central difference of gradients with alphas moved by ``length`` in u's direction; that calls only
    what a first-order search compiles anyway.
    """
    layout, expected = problem.layout, problem.relaxation.expected

    @jax.jit
    def back(alphas: Array, by_mixing: Array) -> Array:
        return jax.vjp(lambda alphas: expected(layout, alphas), alphas)[1](by_mixing)[0]

    def gradient(alphas: Array) -> Array:
        mixing = _expected(problem, alphas)
        return back(alphas, of.by_mixing(at._replace(mixing=mixing))[1])

    if exact:
        mixing = _expected(problem, alphas)
        by_mixing = of.by_mixing(at._replace(mixing=mixing))[1]

        @jax.jit
        def bend(along: Array) -> tuple[Array, Array]:
            moved = jax.jvp(lambda alphas: expected(layout, alphas), (alphas,), (along,))[1]
            return moved, jax.jvp(lambda alphas: back(alphas, by_mixing), (alphas,), (along,))[1]

        def product(along: np.ndarray) -> np.ndarray:
            moved, bent = bend(jax.numpy.asarray(along, alphas.dtype))
            curved = of.curvature(at._replace(mixing=mixing), moved)
            return np.asarray(back(alphas, curved) + bent, np.float64)

        return product

    def difference(along: np.ndarray) -> np.ndarray:
        size = float(np.linalg.norm(along))
        if not size:
            return np.zeros(along.shape)
        offset = jax.numpy.asarray(along * (length / size), alphas.dtype)
        above, below = gradient(alphas + offset), gradient(alphas - offset)
        return (np.asarray(above, np.float64) - np.asarray(below, np.float64)) * (size / (2 * length))

    return difference


def _expected(problem: Problem, alphas: Array) -> Array:
    return jax.jit(problem.relaxation.expected, static_argnums=0)(problem.layout, alphas)


def dominant_eigenvalue(product: HessianVector, size: int, *, steps: int = 10, seed: int = 0) -> float:
    """The largest eigenvalue of a symmetric matrix of ``size`` by Lanczos, from ``product``: u -> H u.

    ``steps`` products, each basis vector made orthogonal to all before it; exact at ``steps = size``. NaN where a
    product is not finite.
    """
    basis: list[np.ndarray] = []
    vector = np.random.default_rng(seed).standard_normal(size)
    images: list[np.ndarray] = []
    for _ in range(min(steps, size)):
        for other in basis * 2:  # twice: once leaves rounding errors
            vector = vector - other @ vector * other
        length = np.linalg.norm(vector)
        if length < 1e-10 * max(1.0, *(float(np.linalg.norm(image)) for image in images), 1.0):
            break
        basis.append(vector / length)
        images.append(product(basis[-1]))
        vector = images[-1]
        if not np.isfinite(vector).all():
            return math.nan
    small = np.array(basis) @ np.array(images).T
    return float(np.linalg.eigvalsh((small + small.T) / 2)[-1])


# --------------------------------------------------------------------------------------------- early stopping


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What a rule sees of an epoch: skip connections of the derived normal cell, dominant eigenvalue."""

    skips: int
    eigenvalue: float | None = None


def stop_on_skips(epochs: Sequence[Epoch], most: int = 2) -> int | None:
    """DARTS+ (Liang et al. 2019, criterion 1): stop once a normal cell has ``most`` skip connections or more.

    Returns the number (from 0) of the epoch whose architecture counts, the last one before; None: go on.
    """
    if epochs and epochs[-1].skips >= most:
        return max(len(epochs) - 2, 0)
    return None


def stop_on_curvature(
    epochs: Sequence[Epoch], window: int = 5, ratio: float = 0.75, start: int = 10
) -> int | None:
    """RobustDARTS (Zela et al. 2020, section 4.2): stop when the eigenvalue, averaged over ``window`` epochs, has
    grown so that its value ``window`` epochs ago is below ``ratio`` of it; the architecture of that epoch counts.

    No epoch counts whose number (from 0) is below ``start``: so the authors' code, not the paper. InputError
    where an epoch has no eigenvalue.
    """
    values = [epoch.eigenvalue for epoch in epochs]
    if any(value is None for value in values):
        raise InputError("early stop: an epoch has no eigenvalue to stop by")
    last = len(values) - 1
    if last - window < start:
        return None

    def smooth(k: int) -> float:
        of = [value for value in values[max(0, k - window + 1) : k + 1] if value is not None]
        return sum(of) / len(of)

    now, before = smooth(last), smooth(last - window)
    return last - window if now > 0 and before / now < ratio else None


class Stopping(NamedTuple):
    """Numbers (from 0) of the epoch behind which a rule stops a search, and of the one whose architecture counts."""

    last: int
    counts: int


def stopping(rule: Callable[[Sequence[Epoch]], int | None], epochs: Sequence[Epoch]) -> Stopping | None:
    """Where ``rule``, asked behind each of ``epochs``, would have stopped first; None: nowhere.

    A rule reads what an epoch showed and changes nothing else, so that this is the search that stops by it.
    """
    for last in range(len(epochs)):
        counts = rule(epochs[: last + 1])
        if counts is not None:
            return Stopping(last, counts)
    return None


def never(epochs: Sequence[Epoch]) -> int | None:
    return None


STOPS: dict[str, Callable[..., int | None]] = {
    "none": never,
    "skips": stop_on_skips,
    "curvature": stop_on_curvature,
}
