"""Grid search: every combination of the choices' values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, SearchSpace
from nas.strategies.base import FullBudget, Strategy, StrategyConfig

LISTED = 100_000  # grids up to this size are held in memory and shuffled exactly


def points(space: SearchSpace, config: StrategyConfig) -> Iterator[Architecture]:
    """The grid's architectures in the order tried; each once.

    ``config.grid_points`` values of each continuous choice, all values of the others. Shuffled by
    ``config.seed`` unless ``config.grid_shuffle`` is off: a grid cut short in the order of enumeration
    would have varied the last choices alone. A grid too large to list is shuffled by drawing from it.
    Raises ``InputError``, at once, where the grid is empty.
    """
    grid = space.discretise(config.grid_points)
    if grid.size().value > LISTED:
        return _drawn(grid, config.seed) if config.grid_shuffle else grid.enumerate()
    listed = list(grid.enumerate())
    if not listed:
        texts = "; ".join(constraint.text for constraint in space.constraints)
        raise InputError(f"{space.name}: the grid is empty: no point of it meets the constraints: {texts}")
    if not config.grid_shuffle:
        return iter(listed)
    return (listed[k] for k in np.random.default_rng(config.seed).permutation(len(listed)))


def _drawn(grid: SearchSpace, seed: int) -> Iterator[Architecture]:
    seen: set[Architecture] = set()
    for k in itertools.count():
        arch = grid.sample((seed, k))
        if arch not in seen:
            seen.add(arch)
            yield arch


def grid(space: SearchSpace, config: StrategyConfig) -> Strategy:
    """The grid (see ``points``), or its first ``config.trials`` points, each for the whole budget."""
    order = points(space, config)
    passed = 0

    def propose(i: int) -> Architecture | None:
        nonlocal passed
        arch = next(itertools.islice(order, i - passed, None), None)
        passed = i if arch is None else i + 1
        return arch

    return FullBudget(space, config, propose)
