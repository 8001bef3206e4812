"""Grid search: every combination of the choices' values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    FullBudget,
    PlannedBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    check_at_least,
)
from nas.trial import Trial

LISTED = 100_000  # grids up to this size are held in memory and shuffled exactly


@dataclasses.dataclass(frozen=True)
class GridConfig(StrategyConfig):
    grid_points: int = 2
    """values taken of each continuous choice"""
    grid_shuffle: bool = True
    """in an order drawn by the seed, so that a grid cut short has still seen every choice vary"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("grid_points", self.grid_points, 1)


def points(space: SearchSpace, config: GridConfig) -> Iterator[Architecture]:
    """The grid's architectures in the order tried; each once.

    ``config.grid_points`` values of each continuous choice, all values of the others. Shuffled by
    ``config.seed`` unless ``config.grid_shuffle`` is off: a grid cut short in the order of enumeration
    would have varied the last choices alone. A grid too large to list is shuffled by drawing from it.
    Raises ``InputError``, at once, where the grid is empty.
    """
    listed = _listed(space, config.grid_points, LISTED)
    if listed is None:
        grid = space.discretise(config.grid_points)
        return _drawn(grid, config.seed) if config.grid_shuffle else grid.enumerate()
    if not listed:
        texts = "; ".join(constraint.text for constraint in space.constraints)
        raise InputError(f"{space.name}: the grid is empty: no point of it meets the constraints: {texts}")
    if not config.grid_shuffle:
        return iter(listed)
    return (listed[k] for k in np.random.default_rng(config.seed).permutation(len(listed)))


@functools.lru_cache(maxsize=2)  # for the next seed
def _listed(space: SearchSpace, grid_points: int, most: int) -> tuple[Architecture, ...] | None:
    """The whole grid in the order of enumeration; None where it is more than ``most``."""
    grid = space.discretise(grid_points)
    return None if grid.size().value > most else tuple(grid.enumerate())


def _drawn(grid: SearchSpace, seed: int) -> Iterator[Architecture]:
    seen: set[Architecture] = set()
    for k in itertools.count():
        arch = grid.sample((seed, k))
        if arch not in seen:
            seen.add(arch)
            yield arch


class _Order:
    """The points still to be tried; one that is tried before its turn changes places with whose turn it was."""

    def __init__(self, points: Iterator[Architecture]) -> None:
        self._points = points
        self._read: deque[Architecture] = deque()  # but not yet tried

    def ahead(self) -> Iterator[Architecture]:
        yield from tuple(self._read)
        for arch in self._points:
            self._read.append(arch)
            yield arch

    def take(self, trial: Trial) -> None:
        if next(self.ahead(), None) is None:  # an architecture given to a trial beyond the grid
            return
        whose_turn = self._read.popleft()
        if trial.arch != whose_turn and trial.arch in self._read:
            self._read[self._read.index(trial.arch)] = whose_turn


def grid(space: SearchSpace, config: GridConfig) -> Strategy:
    """The grid (see ``points``), or its first ``config.trials`` points, each for the whole budget."""
    order = _Order(points(space, config))
    return FullBudget(space, config, lambda i: order.ahead(), take=order.take)


def planned_budget(config: GridConfig, space: SearchSpace) -> PlannedBudget:
    trials = config.trials or space.size(config.grid_points).value
    return PlannedBudget(trials, trials * config.epochs)


RECORD = StrategyRecord(grid, GridConfig, planned_budget, objectives="any")
