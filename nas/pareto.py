"""Fronts of several objectives: who dominates whom, how much is dominated, and which points stand for many.

Everything here is of gains, [n, objectives], all to be maximised. Hypervolumes and sorting are moocore's, which is
imported when first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nas.trial import Trial


def nondominated(gains: Any) -> np.ndarray:
    """bool [n]: no other row is at least as good in every objective and better in one; of equal rows the first."""
    import moocore

    gains = np.asarray(gains, float)
    return moocore.is_nondominated(gains, maximise=True) if len(gains) else np.zeros(0, bool)


def ranks(gains: Any) -> np.ndarray:
    """int [n]: 0 for the front, 1 for the front of the others, and so on (Deb et al. 2002, section III A)."""
    import moocore

    gains = np.asarray(gains, float)
    if not len(gains):
        return np.zeros(0, int)
    if gains.shape[1] == 1:
        return np.unique(-gains[:, 0], return_inverse=True)[1]
    return moocore.pareto_rank(gains, maximise=True)


def hypervolume(gains: Any, reference: Any) -> float:
    """How much the rows dominate of what is better than ``reference`` [objectives] (Zitzler and Thiele 1998)."""
    import moocore

    gains = np.asarray(gains, float)
    return (
        float(moocore.hypervolume(gains, ref=np.asarray(reference, float), maximise=True))
        if len(gains)
        else 0.0
    )


def igd_plus(gains: Any, true_front: Any) -> float:
    """The mean distance from ``true_front`` to what the rows leave undominated (Ishibuchi et al. 2015); 0 is best."""
    import moocore

    return float(moocore.igd_plus(np.asarray(gains, float), ref=np.asarray(true_front, float), maximise=True))


def crowding(gains: np.ndarray) -> np.ndarray:
    """float [n]: the crowding distances of one front (Deb et al. 2002, section III B); infinite at its ends."""
    n, objectives = gains.shape
    distances = np.zeros(n)
    for k in range(objectives):
        order = np.argsort(gains[:, k], kind="stable")
        column = gains[order, k]
        distances[order[[0, -1]]] = np.inf
        span = column[-1] - column[0]
        if span > 0:
            distances[order[1:-1]] += (column[2:] - column[:-2]) / span
    return distances


def epsilon_net(gains: np.ndarray, first: int = 0) -> np.ndarray:
    """int [n]: an order of rows in which each next one is the farthest from all before it, beginning with ``first``.

    The greedy epsilon-net of Schmucker et al. 2021 (section 3), in objectives scaled to [0, 1].
    """
    span = np.ptp(gains, axis=0)
    scaled = (gains - gains.min(axis=0)) / np.where(span > 0, span, 1)
    order, left = [first], np.linalg.norm(scaled - scaled[first], axis=1)
    left[first] = -1
    for _ in range(len(gains) - 1):
        following = int(left.argmax())
        order.append(following)
        left = np.minimum(left, np.linalg.norm(scaled - scaled[following], axis=1))
        left[order] = -1
    return np.array(order)


def scaled(gains: np.ndarray) -> np.ndarray:
    """Each objective to [0, 1] over the rows; 1 where all are equal."""
    low, span = gains.min(axis=0), np.ptp(gains, axis=0)
    return np.where(span > 0, (gains - low) / np.where(span > 0, span, 1), 1.0)


def front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that no other dominates among those that keep the constraints, the best first objective first.

    An architecture that was tried twice stands there once, by the lower id.
    """
    kept = [trial for trial in trials if trial.feasible]
    if not kept:
        return ()
    best = [
        trial for trial, is_best in zip(kept, nondominated([t.gains for t in kept]), strict=True) if is_best
    ]
    once = {trial.arch: trial for trial in sorted(best, key=lambda trial: -trial.id)}
    return tuple(sorted(once.values(), key=lambda trial: (tuple(-g for g in trial.gains), trial.id)))


def spread(front: Sequence[Trial], n: int | None) -> tuple[Trial, ...]:
    """``n`` trials that stand for the ``front``: its ends, then each time the one that adds the most hypervolume.

    All of it where there are no more than ``n``, or ``n`` is None.
    """
    if n is None or len(front) <= n:
        return tuple(front)
    gains = scaled(np.array([trial.gains for trial in front]))
    reference = np.full(gains.shape[1], -0.1)
    chosen = list(dict.fromkeys(gains.argmax(axis=0).tolist()))[:n]
    while len(chosen) < n:
        others = [k for k in range(len(front)) if k not in chosen]
        chosen.append(max(others, key=lambda k: hypervolume(gains[[*chosen, k]], reference)))
    return tuple(front[k] for k in sorted(chosen))
