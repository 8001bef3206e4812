"""Robust means, probabilities of improvement and profiles with bootstrap intervals.

Scores are the higher the better. Intervals are percentiles of 2,000 resamples drawn from a fixed seed: the same
data, the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from nas.report.statistics.intervals import FEWEST

Values: TypeAlias = Sequence[float] | np.ndarray

RESAMPLES = 2000

Statistic: TypeAlias = Literal["iqm", "mean", "median"]
"""Interquartile mean: of the middle half. The mean of all. The median."""


class Estimate(NamedTuple):
    """A statistic with its bootstrap interval, numbers or arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean without the lowest and the highest quarter (of n values n // 4 each)."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=axis)
    return np.tensordot(_order_weights("iqm", ordered.shape[axis]), ordered, axes=(0, axis))


def estimate(
    tasks: np.ndarray | Sequence[np.ndarray],
    statistic: Statistic = "iqm",
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of all runs on all tasks, with a stratified bootstrap interval (Agarwal et al., "Deep
    reinforcement learning at the edge of the statistical precipice", NeurIPS 2021, sections 4.1 and 4.3).

    Inputs: ``tasks``, the scores on each task [runs, ...], or those of a single one as an array; runs are
    resample_counts within their task, points along further axes (costs) are estimated each by itself. The
    interval is NaN for fewer than `FEWEST` runs. NaN scores give NaN.
    """
    held = _tasks(tasks)
    shape = held[0].shape[1:]
    columns = [scores.reshape(len(scores), -1) for scores in held]
    rng = np.random.default_rng(seed)
    counts = [resample_counts(rng, len(scores), resamples) for scores in columns]
    runs = sum(map(len, columns))
    pooled = np.concatenate(columns)
    weights = _order_weights(statistic, runs)
    order = np.argsort(pooled, axis=0, kind="stable")
    ordered = np.take_along_axis(pooled, order, axis=0)
    value = weights @ ordered
    upto = np.concatenate([[0.0], np.cumsum(weights)])
    if len(columns) == 1:
        # How often a rank is drawn has the same distribution at every point, and points are estimated each by
        # itself: so the draws may be of ranks, and all points of a resample one product of matrices.
        drawn = np.diff(upto[np.cumsum(counts[0], axis=1)], axis=1, prepend=0.0) @ ordered
    else:
        together = np.ascontiguousarray(np.concatenate(counts, axis=1, dtype=np.int32).T)
        drawn = np.empty((resamples, pooled.shape[1]))
        for k in range(pooled.shape[1]):
            # The sum of weights times values, as a sum over the steps from value to value.
            weighed = upto[np.cumsum(together[order[:-1, k]], axis=0, dtype=np.int32)]
            drawn[:, k] = ordered[-1, k] - np.diff(ordered[:, k]) @ weighed
    return with_interval(value, drawn, level, shape, known=min(map(len, columns)) >= FEWEST)


def probability_of_improvement(
    first: np.ndarray | Sequence[np.ndarray],
    second: np.ndarray | Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How often a run of ``first`` is better than one of ``second`` (equal: half), averaged over tasks.

    The Mann-Whitney statistic of each task over its number of pairs (Agarwal et al. 2021, section 4.3).
    Inputs: as for `estimate`, [runs] for each task.
    """
    rng = np.random.default_rng(seed)
    values, drawn = [], []
    pairs = list(zip(_tasks(first), _tasks(second), strict=True))
    for a, b in pairs:
        better = np.heaviside(a[:, None] - b[None, :], 0.5)
        values.append(better.mean())
        of_a, of_b = (resample_counts(rng, len(scores), resamples).astype(float) for scores in (a, b))
        drawn.append(((of_a @ better) * of_b).sum(axis=1) / better.size)
    known = all(min(len(a), len(b)) >= FEWEST for a, b in pairs)
    return with_interval(
        np.mean(values, keepdims=True), np.mean(drawn, axis=0)[:, None], level, (), known=known
    )


def performance_profile(
    tasks: np.ndarray | Sequence[np.ndarray],
    thresholds: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The part of the runs above each of ``thresholds``, averaged over tasks: the tail distribution of scores
    (Agarwal et al. 2021, section 4.2). Inputs: as for `estimate`, [runs] for each task."""
    rng = np.random.default_rng(seed)
    values, drawn = [], []
    for scores in (held := _tasks(tasks)):
        above = (scores[:, None] > np.asarray(thresholds)).astype(float)
        values.append(above.mean(axis=0))
        drawn.append(resample_counts(rng, len(scores), resamples) @ above / len(scores))
    known = min(map(len, held)) >= FEWEST
    return with_interval(
        np.mean(values, axis=0), np.mean(drawn, axis=0), level, np.shape(thresholds), known=known
    )


def speed_up(
    slow: np.ndarray, fast: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Estimate:
    """How many times the median cost of ``fast`` [runs] that of ``slow`` [runs] is.

    Costs may be inf, where a run did not come to its target (see `cost_to_reach`): a median is known as long
    as half of the runs did. Inf where only ``fast`` has one, 0 where only ``slow`` has, NaN where neither.
    """
    rng = np.random.default_rng(seed)
    medians = [
        np.median(costs[rng.integers(len(costs), size=(resamples, len(costs)))], axis=1)
        for costs in (slow, fast)
    ]
    with np.errstate(invalid="ignore"):
        value = np.atleast_1d(np.median(slow) / np.median(fast))
        drawn = (medians[0] / medians[1])[:, None]
    return with_interval(value, drawn, level, (), known=min(len(slow), len(fast)) >= FEWEST)


def _tasks(tasks: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    held = [tasks] if isinstance(tasks, np.ndarray) else list(tasks)
    return [np.asarray(scores, dtype=float) for scores in held]


def resample_counts(rng: np.random.Generator, runs: int, resamples: int) -> np.ndarray:
    """How often each run is in each resample: [resamples, runs]."""
    drawn = rng.integers(runs, size=(resamples, runs)) + runs * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * runs).reshape(resamples, runs)


def _order_weights(statistic: Statistic, n: int) -> np.ndarray:
    """The statistic as weights of ``n`` values in ascending order."""
    left_out = {"mean": 0, "iqm": n // 4, "median": (n - 1) // 2}[statistic]
    weights = np.zeros(n)
    weights[left_out : n - left_out] = 1 / (n - 2 * left_out)
    return weights


def with_interval(
    value: np.ndarray, drawn: np.ndarray, level: float, shape: tuple[int, ...], *, known: bool
) -> Estimate:
    """The percentile interval of a statistic [points] from its values on resamples [resamples, points].

    NaN interval unless ``known``. ``shape``: of the result.
    """
    k = math.floor((1 - level) / 2 * len(drawn))
    # Resamples themselves, not means of two of them: one may be inf. NaN is sorted last.
    low, high, last = np.partition(drawn, [k, len(drawn) - 1 - k, -1], axis=0)[[k, len(drawn) - 1 - k, -1]]
    low, high = np.where(np.isnan(last), math.nan, low), np.where(np.isnan(last), math.nan, high)
    if not known:
        low = high = np.full_like(value, math.nan)
    return Estimate(*(part.reshape(shape) for part in (value, low, high)))
