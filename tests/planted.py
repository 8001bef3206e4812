"""Small benchmark tables with a planted optimum."""

from __future__ import annotations

import numpy as np

from nas.space import Architecture, SearchSpace
from nas.tables import Column, Curve, Size, Table, Task
from nas.tables.table import Cost

VALID = Column("planted", 9, "valid_accuracy")
TEST = Column("planted", 9, "test_accuracy")


def planted(
    space: SearchSpace,
    seed: int = 0,
    *,
    epochs: int = 9,
    repetitions: int = 2,
    noise: float = 0.0,
    within: tuple[str, ...] = (),
) -> tuple[Architecture, Table]:
    """An architecture of ``space``, and a table of all in which accuracies fall with the distance from it.

    Test accuracies are without noise. Curves rise at rates that differ, so that they cross; the best one's rises
    fastest, for where stopping early is misled always, nobody finds what it stops. Parameters rank as test
    accuracies do; multiply-adds are all equal.
    """
    every = list(space.enumerate())
    rng = np.random.default_rng(seed)
    planted_at = int(rng.integers(len(every)))
    best = every[planted_at]
    distance = np.array([np.abs(space.encode(arch) - space.encode(best)).mean() for arch in every])
    score = 0.9 - 0.8 * distance
    rate = rng.uniform(0.3, 0.8, len(every))
    rate[planted_at] = 0.3
    rise = 1 - rate[:, None] ** np.arange(1, epochs + 1)
    curves = np.repeat((score[:, None] * rise)[:, None], repetitions, axis=1)
    curves[:, :, -1] = score[:, None]
    curves += noise * rng.standard_normal(curves.shape)
    test = np.repeat(score[:, None, None], repetitions, axis=1)
    seconds = rng.uniform(1.0, 3.0, (len(every), repetitions))
    table = Table(
        name="planted",
        space=space.name,
        archs=tuple(map(space.to_string, every)),
        columns={
            VALID: Curve(tuple(range(1, epochs + 1)), curves.astype(np.float32)),
            TEST: Curve((9,), test.astype(np.float32)),
        },
        sizes={"planted": Size(np.rint(1e4 * score).astype(np.int64), np.full(len(every), 5))},
        costs={("planted", 9): Cost(seconds.astype(np.float32), np.full((len(every), 1), 0.25, np.float32))},
        tasks={"planted": Task(VALID, TEST)},
        within=within,
    )
    return best, table
