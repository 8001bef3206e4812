"""Trials compared by several objectives, under constraints (Deb et al., "A fast and elitist multiobjective genetic
algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 2002, section VI): one that keeps the constraints
before one that does not; of those that do not, the less violated first; of those that do, by fronts."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nas.pareto import crowding, ranks
from nas.space import Architecture
from nas.trial import Trial


class Point(NamedTuple):
    """A told trial: its objectives, all to be maximised, and by how much it violates the constraints."""

    id: int
    arch: Architecture
    gains: tuple[float, ...]
    violation: float


def point(trial: Trial) -> Point | None:
    """``trial`` up to its budget; None where it failed or was not measured."""
    reached = [m for m in trial.measurements if m.budget <= trial.budget]
    if trial.status == "failed" or not reached or math.isnan(reached[-1].value):
        return None
    return Point(trial.id, trial.arch, reached[-1].gains, reached[-1].violation)


def insert(points: list[Point], new: Point) -> None:
    """Keeps ``points`` in the order of their ids."""
    bisect.insort(points, new, key=lambda held: held.id)


def keys(points: Sequence[Point]) -> list[tuple[float, float]]:
    """For each point its front, counted from 0, and its crowding distance with the sign turned: less is better.

    Behind all fronts come the points that violate a constraint, the less the earlier.
    """
    found: list[tuple[float, float]] = [(math.inf, 0.0)] * len(points)
    kept = [k for k, held in enumerate(points) if held.violation == 0]
    gains = np.array([points[k].gains for k in kept], float)
    fronts = ranks(gains)
    for rank in range(int(fronts.max(initial=-1)) + 1):
        here = np.flatnonzero(fronts == rank)
        for k, distance in zip(here, crowding(gains[here]).tolist(), strict=True):
            found[kept[k]] = (float(rank), -distance)
    behind = float(fronts.max(initial=-1)) + 1
    return [
        (behind + held.violation, 0.0) if held.violation > 0 else key
        for held, key in zip(points, found, strict=True)
    ]


def best(points: Sequence[Point], n: int) -> list[Point]:
    """The ``n`` best, by `keys`, ties to the lower id; in the order of their ids."""
    if len(points) <= n:
        return list(points)
    order = sorted(zip(keys(points), points, strict=True), key=lambda held: (held[0], held[1].id))
    return sorted((held for _, held in order[:n]), key=lambda held: held.id)


def front(points: Sequence[Point]) -> list[Point]:
    """Those of the first front; where none keeps the constraints those that violate them least."""
    kept = [held for held in points if held.violation == 0]
    if not kept:
        least = min((held.violation for held in points), default=0.0)
        return [held for held in points if held.violation == least]
    first = ranks(np.array([held.gains for held in kept], float)) == 0
    return [held for held, is_first in zip(kept, first.tolist(), strict=True) if is_first]
