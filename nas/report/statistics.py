"""Statistics over runs: intervals, anytime curves, Pareto fronts, which choices mattered; and over hundreds of
repetitions: incumbents at equal cost, robust means with bootstrap intervals, ranks, tests, correlations.

The second half works on plain arrays, scores the higher the better. Its intervals are percentiles of 2,000
resamples drawn from a fixed seed: the same data, the same interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import scipy  # scipy.stats is imported where it is first used: its half a second is not every script's
import scipy.special

from nas.record import Run
from nas.record.comparison import Trace
from nas.trial import Trial

Cost: TypeAlias = Literal["epochs", "seconds", "wall_seconds"]
"""What an anytime curve runs over: budget units, compute seconds (all workers') or wall-clock seconds."""


class Interval(NamedTuple):
    """A mean of ``n`` values with its confidence interval; NaN where there are too few values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean and Student's t interval; NaN values are left out, and one value has no interval.

    The t interval holds its level for a handful of seeds, where bootstrap intervals are too narrow.
    """
    kept = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if len(kept) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(
        scipy.special.stdtrit(len(kept) - 1, (1 + level) / 2) * kept.std(ddof=1) / math.sqrt(len(kept))
    )
    return Interval(mean, mean - half, mean + half, len(kept))


class Curve(NamedTuple):
    """Mean of ``n`` runs with a 95 % interval, at the points ``cost``; NaN interval for one run."""

    cost: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def incumbent(run: Run, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """The best validation accuracy so far after each measurement of a run.

    Returns the cost spent and the best accuracy by then, both in the order recorded, from the first
    finite accuracy on. Measurements of trials that failed later cost, but are never the best. It never
    falls, so it may end above the accuracy of `Run.best`, which counts each trial's last measurement.
    """
    spent = dict.fromkeys(run.trials, 0)
    costs, values, total = [], [], 0.0
    for trial_id, measurement, elapsed_seconds in run.history:
        if cost == "epochs":
            total += measurement.budget - spent[trial_id]
            spent[trial_id] = measurement.budget
        elif cost == "seconds":
            total += measurement.seconds
        else:
            total = elapsed_seconds
        failed = run.trials[trial_id].status == "failed"
        costs.append(total)
        values.append(
            -math.inf if failed or math.isnan(measurement.valid_accuracy) else measurement.valid_accuracy
        )
    best = np.maximum.accumulate(np.asarray(values)) if values else np.empty(0)
    known = np.isfinite(best)
    return np.asarray(costs)[known], best[known]


def anytime(runs: Iterable[Run], cost: Cost, points: int = 256) -> Curve | None:
    """`incumbent` of several runs (seeds) of one strategy on a common grid of costs, with a t interval.

    The grid goes from where every run has an incumbent to the largest cost of any; a run that ended
    earlier keeps its last value. None where nothing was measured.
    """
    traces = [trace for run in runs if len((trace := incumbent(run, cost))[0])]
    if not traces:
        return None
    grid = np.linspace(max(costs[0] for costs, _ in traces), max(costs[-1] for costs, _ in traces), points)
    # The incumbent at cost x is the last one found at a cost of x or less.
    values = np.stack([best[np.searchsorted(costs, grid, side="right") - 1] for costs, best in traces])
    intervals = np.asarray([mean_interval(column)[:3] for column in values.T])
    return Curve(grid, *intervals.T, n=len(traces))


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Indices, by rising cost, of the points that none beats: cheaper or as cheap, and as good or better.

    Of equal points the first is kept; points with NaN are left out.
    """
    cost, value = np.asarray(costs, dtype=float), np.asarray(values, dtype=float)
    front: list[int] = []
    best = -math.inf
    for index in np.lexsort((-value, cost)):
        if not math.isnan(cost[index]) and value[index] > best:
            front.append(int(index))
            best = value[index]
    return np.asarray(front, dtype=int)


class Importance(NamedTuple):
    """How much of the variance of validation accuracy a choice explains by itself.

    ``share`` is the sum of squares between the choice's values over the whole sum of squares.
    ``chance_share`` is what a choice without any effect stays below in 95 of 100 cases.
    """

    choice: str
    share: float
    chance_share: float


class Attribution(NamedTuple):
    """`Importance` by choice, largest first, from ``trials`` trials compared at ``budget``."""

    budget: int
    trials: int
    choices: tuple[Importance, ...]


def which_choices_mattered(trials: Iterable[Trial], *, fewest: int = 8) -> Attribution | None:
    """Variance of validation accuracy explained by each choice alone (one-way, eta squared).

    Trials are compared at one budget, the largest that at least half of them reached, for an accuracy
    after one epoch says nothing beside one after nine. A choice is judged among the trials in which it is
    active, so that ``width_3`` does not take the credit for there being a third block. Numeric choices
    with more than six values are cut into four groups of equal size. Choices with one value are left out.

    What it cannot say: interactions are not seen; choices that a search set together share the credit; a
    search that adapts looks at good regions more closely, which hides what keeps the bad ones bad. With
    few trials and many values the share is large by chance: hence ``chance_share``, from the distribution
    of eta squared without an effect, Beta((k - 1) / 2, (n - k) / 2) for k groups of n normal values.

    Returns None with fewer than ``fewest`` trials to compare, or when their accuracies are all equal.
    """
    measured = [trial for trial in trials if math.isfinite(trial.score)]
    if not measured:
        return None
    budget = sorted((trial.spent for trial in measured), reverse=True)[(len(measured) - 1) // 2]
    compared = [
        (trial.arch, accuracy) for trial in measured if math.isfinite(accuracy := _accuracy_at(trial, budget))
    ]
    whole = _squares(np.asarray([accuracy for _, accuracy in compared]))
    if len(compared) < fewest or not whole:
        return None
    importances = []
    for choice in dict.fromkeys(name for arch, _ in compared for name in arch):
        active = [(arch[choice], accuracy) for arch, accuracy in compared if choice in arch]
        groups = _groups([value for value, _ in active])
        accuracies = np.asarray([accuracy for _, accuracy in active])
        count, within = int(groups.max()) + 1, len(groups) - int(groups.max()) - 1
        if count == 1 or not within:
            continue
        inside = sum(_squares(accuracies[groups == group]) for group in range(count))
        chance = float(scipy.special.betaincinv((count - 1) / 2, within / 2, 0.95))
        squares = _squares(accuracies)
        importances.append(Importance(choice, (squares - inside) / whole, chance * squares / whole))
    ranked = sorted(importances, key=lambda importance: (-importance.share, importance.choice))
    return Attribution(budget, len(compared), tuple(ranked))


def _squares(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


def _accuracy_at(trial: Trial, budget: int) -> float:
    """NaN for a trial that did not come as far."""
    if trial.spent < budget:
        return math.nan
    return next((m.valid_accuracy for m in reversed(trial.measurements) if m.budget <= budget), math.nan)


def _is_number(value: Hashable) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(values: Sequence[Hashable]) -> np.ndarray:
    """A group number for each value, counting from 0 without gaps."""
    numbers = [value for value in values if _is_number(value)]
    if len(set(numbers)) > 6:
        quartiles = np.quantile(numbers, [0.25, 0.5, 0.75])
        values = [int(np.searchsorted(quartiles, value)) if _is_number(value) else value for value in values]
    numbered = {value: number for number, value in enumerate(dict.fromkeys(map(repr, values)))}
    return np.asarray([numbered[repr(value)] for value in values])


# ------------------------------------------------------------------------------------- runs at equal cost


Values: TypeAlias = Sequence[float] | np.ndarray


def trace(costs: Values, valid: Values, test: Values | None = None) -> Trace:
    """Who leads a run, chosen by validation, and what a test would say of them.

    Inputs, one a measurement in the order made: what the run had cost by then, the validation accuracy (NaN
    or -inf where it failed), and the test accuracy to report of the architecture measured. The incumbent
    changes where validation accuracy is higher than ever before; test accuracy chooses nothing, so it may
    fall. NaN test where none is given.
    """
    value = np.asarray(valid, dtype=float)
    value = np.where(np.isnan(value), -math.inf, value)
    cost = np.asarray(costs, dtype=float)
    if (np.diff(cost) < 0).any():
        raise ValueError("trace: costs are not what was spent in all, they fall")
    best = np.maximum.accumulate(value) if len(value) else value
    leads = np.flatnonzero((value > np.concatenate([[-math.inf], best[:-1]])) if len(value) else value)
    reported = np.full(len(value), math.nan) if test is None else np.asarray(test, dtype=float)
    return Trace(cost[leads], value[leads], reported[leads])


def cost_grid(traces: Iterable[Trace], upto: float, points: int = 200, *, log: bool = False) -> np.ndarray:
    """``points`` costs from where every run has an incumbent to ``upto``, even, or even in the logarithm."""
    first = max((float(t.cost[0]) for t in traces if len(t.cost)), default=math.nan)
    if not first <= upto:
        raise ValueError(f"cost_grid: the last run has its first incumbent at {first}, after {upto}")
    return np.geomspace(first, upto, points) if log else np.linspace(first, upto, points)


def at_costs(traces: Iterable[Trace], costs: np.ndarray, of: Literal["valid", "test"] = "test") -> np.ndarray:
    """The accuracies of the incumbents of all runs at common costs: [runs, costs]; NaN before the first."""
    rows = []
    for t in traces:
        k = np.searchsorted(t.cost, costs, side="right") - 1
        values = np.append(getattr(t, of), math.nan)  # where k is -1
        rows.append(values[k])
    return np.stack(rows)


def regret(accuracies: np.ndarray, optimum: float) -> np.ndarray:
    """What the best possible accuracy is ahead by."""
    return optimum - np.asarray(accuracies)


def cost_to_reach(
    traces: Iterable[Trace], target: float, of: Literal["valid", "test"] = "test"
) -> np.ndarray:
    """What each run had cost when its incumbent was first as good as ``target``; inf where never: [runs]."""
    reached = ((t.cost, getattr(t, of) >= target) for t in traces)
    return np.array([cost[good.argmax()] if good.any() else math.inf for cost, good in reached])


# ------------------------------------------------------------------------------------- random experiments

DRAWS = 10_000


class Experiments(NamedTuple):
    """Experiments of ``size`` trials each, the trials of each in a row of its own.

    ``weights`` [experiments, size]: the chance that a trial is the best of its experiment. ``mean`` and
    ``deviation`` [experiments]: of the test accuracy of the best (Bergstra and Bengio, JMLR 13, 2012,
    equations 5 and 6). ``test`` and ``test_deviation`` [experiments, size]: of each trial.
    """

    size: int
    weights: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    test: np.ndarray
    test_deviation: np.ndarray

    def quantiles(self, levels: Values) -> np.ndarray:
        """Of the test accuracy that one such experiment comes to: [levels].

        It is distributed as any trial's true test accuracy with that trial's weight (section 2.1), averaged
        over the experiments (section 2.2).
        """
        center, width = self.test.ravel(), np.maximum(self.test_deviation.ravel(), 1e-12)
        weights = self.weights.ravel() / len(self.weights)
        wanted = np.asarray(levels, dtype=float)
        low = np.full_like(wanted, (center - 9 * width).min())
        high = np.full_like(wanted, (center + 9 * width).max())
        for _ in range(60):
            middle = (low + high) / 2
            below = scipy.special.ndtr((middle[:, None] - center) / width) @ weights < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


def accuracy_variance(accuracy: Values, images: int) -> np.ndarray:
    """Of an accuracy measured on so many images, as that of a Bernoulli variable's mean."""
    found = np.asarray(accuracy, dtype=float)
    return found * (1 - found) / (images - 1)


def chances_of_being_best(mean: np.ndarray, variance: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """How likely each of several normal variables is the largest: [experiments, trials], rows adding up to 1.

    Estimated from `DRAWS` draws, as in Bergstra and Bengio 2012, section 2.1; a tie is shared.
    """
    if mean.shape[1] == 1:
        return np.ones(mean.shape)
    draws = np.random.default_rng(seed).standard_normal((DRAWS, mean.shape[1]))
    chances = np.empty(mean.shape)
    for k, (center, width) in enumerate(zip(mean, np.sqrt(variance), strict=True)):
        scores = center + width * draws
        best = scores == scores.max(axis=1, keepdims=True)
        chances[k] = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return chances


def experiments(
    valid: Values,
    test: Values,
    *,
    valid_images: int,
    test_images: int,
    size: int | None = None,
    seed: int = 0,
) -> Experiments:
    """Independent trials as experiments of ``size`` trials (default: one of all), in the order given.

    Inputs: each trial's accuracy on validation and on test, and on how many images those were measured. What
    the best trial of an experiment is, is as uncertain as the validation accuracies are; its test accuracy is
    therefore a mixture of the trials' (Bergstra and Bengio 2012, section 2.1). Trials left over by ``size``
    are left out.
    """
    size = len(valid) if size is None else size
    count = len(valid) // size
    if count < 1:
        raise ValueError(f"experiments: size={size} is more than the {len(valid)} trials")
    chosen, reported = (
        np.asarray(values, dtype=float)[: count * size].reshape(count, size) for values in (valid, test)
    )
    weights = chances_of_being_best(chosen, accuracy_variance(chosen, valid_images), seed=seed)
    variance = accuracy_variance(reported, test_images)
    mean = (weights * reported).sum(axis=1)
    second = (weights * (reported**2 + variance)).sum(axis=1)
    deviation = np.sqrt(np.maximum(second - mean**2, 0))
    return Experiments(size, weights, mean, deviation, reported, np.sqrt(variance))


def efficiency_curve(
    valid: Values, test: Values, *, valid_images: int, test_images: int, seed: int = 0
) -> tuple[Experiments, ...]:
    """The random-experiment efficiency curve: `experiments` of 1, 2, 4, ... of the same trials, which must be
    independent and identically distributed (Bergstra and Bengio 2012, section 2.2 and figure 2)."""
    sizes = [2**k for k in range(len(valid).bit_length())]
    on = {"valid_images": valid_images, "test_images": test_images, "seed": seed}
    return tuple(experiments(valid, test, size=size, **on) for size in sizes)


# ------------------------------------------------------------------------ robust means and their intervals

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
    resampled within their task, points along further axes (costs) are estimated each by itself. The
    interval is NaN for one run. NaN scores give NaN.
    """
    held = _tasks(tasks)
    shape = held[0].shape[1:]
    columns = [scores.reshape(len(scores), -1) for scores in held]
    rng = np.random.default_rng(seed)
    counts = [_resampled(rng, len(scores), resamples) for scores in columns]
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
    return _estimate(value, drawn, level, shape, known=min(map(len, columns)) > 1)


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
        of_a, of_b = (_resampled(rng, len(scores), resamples).astype(float) for scores in (a, b))
        drawn.append(((of_a @ better) * of_b).sum(axis=1) / better.size)
    known = all(len(a) > 1 and len(b) > 1 for a, b in pairs)
    return _estimate(np.mean(values, keepdims=True), np.mean(drawn, axis=0)[:, None], level, (), known=known)


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
        drawn.append(_resampled(rng, len(scores), resamples) @ above / len(scores))
    known = min(map(len, held)) > 1
    return _estimate(
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
    return _estimate(value, drawn, level, (), known=min(len(slow), len(fast)) > 1)


def _tasks(tasks: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    held = [tasks] if isinstance(tasks, np.ndarray) else list(tasks)
    return [np.asarray(scores, dtype=float) for scores in held]


def _resampled(rng: np.random.Generator, runs: int, resamples: int) -> np.ndarray:
    """How often each run is in each resample: [resamples, runs]."""
    drawn = rng.integers(runs, size=(resamples, runs)) + runs * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * runs).reshape(resamples, runs)


def _order_weights(statistic: Statistic, n: int) -> np.ndarray:
    """The statistic as weights of ``n`` values in ascending order."""
    left_out = {"mean": 0, "iqm": n // 4, "median": (n - 1) // 2}[statistic]
    weights = np.zeros(n)
    weights[left_out : n - left_out] = 1 / (n - 2 * left_out)
    return weights


def _estimate(
    value: np.ndarray, drawn: np.ndarray, level: float, shape: tuple[int, ...], *, known: bool
) -> Estimate:
    """From a statistic [points] and that of resamples [resamples, points]."""
    k = math.floor((1 - level) / 2 * len(drawn))
    # Resamples themselves, not means of two of them: one may be inf. NaN is sorted last.
    low, high, last = np.partition(drawn, [k, len(drawn) - 1 - k, -1], axis=0)[[k, len(drawn) - 1 - k, -1]]
    low, high = np.where(np.isnan(last), math.nan, low), np.where(np.isnan(last), math.nan, high)
    if not known:
        low = high = np.full_like(value, math.nan)
    return Estimate(*(part.reshape(shape) for part in (value, low, high)))


# --------------------------------------------------------------------------------------- ranks and tests


class CriticalDifference(NamedTuple):
    """What a critical-difference diagram shows (Demšar, JMLR 7, 2006, section 3.2.2 and figure 1).

    ``names`` and ``mean_ranks`` [methods], the best first (rank 1: best on every block). ``statistic`` and
    ``p_value`` are Friedman's, that all are the same. ``difference``: mean ranks this far apart are told
    apart by Nemenyi's test at the level asked for. ``groups``: the largest sets of two or more, next to
    each other in rank, none of which are told apart: the bars of the diagram.
    """

    names: tuple[str, ...]
    mean_ranks: np.ndarray
    blocks: int
    statistic: float
    p_value: float
    difference: float
    groups: tuple[tuple[str, ...], ...]


def critical_difference(
    scores: Mapping[str, Values],
    alpha: float = 0.05,
    test: Literal["nemenyi", "wilcoxon"] = "nemenyi",
) -> CriticalDifference:
    """Ranks methods by their scores on common blocks (tasks, or seeds of one), higher being better.

    With ``test="wilcoxon"`` the groups are of methods that `paired_tests` does not tell apart after Holm's
    correction, which does not depend on which other methods are compared (Benavoli et al., JMLR 17, 2016).
    Friedman's statistic is corrected for ties. Needs two methods and two blocks.
    """
    names = list(scores)
    table = np.stack([np.asarray(scores[name], dtype=float) for name in names], axis=1)
    blocks, methods = table.shape
    if methods < 2 or blocks < 2 or np.isnan(table).any():
        raise ValueError("critical_difference: needs two methods and two blocks, and a score for each")
    ranks = scipy.stats.rankdata(-table, axis=1)
    spread = ((ranks - (methods + 1) / 2) ** 2).sum() / (blocks * (methods - 1))  # less where there are ties
    mean_ranks = ranks.mean(axis=0)
    between = blocks * ((mean_ranks - (methods + 1) / 2) ** 2).sum()
    statistic = between / spread if spread else 0.0
    order = np.argsort(mean_ranks, kind="stable")
    ranked = tuple(names[k] for k in order)
    difference = float(scipy.stats.studentized_range.isf(alpha, methods, math.inf)) * math.sqrt(
        methods * (methods + 1) / (12 * blocks)
    )
    if test == "nemenyi":
        gaps = mean_ranks[order][None, :] - mean_ranks[order][:, None]
        apart = np.abs(gaps) >= difference
    else:
        apart = np.zeros((methods, methods), dtype=bool)
        for pair in paired_tests(scores):
            i, j = ranked.index(pair.first), ranked.index(pair.second)
            apart[i, j] = apart[j, i] = pair.p_holm < alpha
    return CriticalDifference(
        ranked,
        mean_ranks[order],
        blocks,
        float(statistic),
        float(scipy.special.chdtrc(methods - 1, statistic)),
        difference,
        tuple(tuple(ranked[k] for k in range(i, j)) for i, j in _bars(apart)),
    )


def _bars(apart: np.ndarray) -> list[tuple[int, int]]:
    """The longest runs [i, j) of two or more in which no two are ``apart``."""
    bars: list[tuple[int, int]] = []
    for i in range(len(apart)):
        j = i + 1
        while j < len(apart) and not apart[i:j, j].any():
            j += 1
        if j > i + 1 and (not bars or j > bars[-1][1]):
            bars.append((i, j))
    return bars


class PairedTest(NamedTuple):
    """``first`` against ``second`` on common blocks; ``difference`` is the median of first less second."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    difference: float
    p: float
    p_holm: float
    """After Holm's correction for all tests made together."""


def paired_tests(
    scores: Mapping[str, Values],
    against: str | None = None,
    test: Literal["wilcoxon", "sign"] = "wilcoxon",
) -> tuple[PairedTest, ...]:
    """Tests, two-sided, that the scores of two methods on common blocks differ.

    Of all pairs, or of every other method with ``against``. Wilcoxon's signed ranks, with the ranks of equal
    scores split evenly (Demšar 2006, section 3.1.3), or the sign test on wins and losses alone.
    """
    if against is not None:
        pairs = [(name, against) for name in scores if name != against]
    else:
        pairs = list(itertools.combinations(scores, 2))
    tests: list[PairedTest] = []
    for first, second in pairs:
        gaps = np.asarray(scores[first], dtype=float) - np.asarray(scores[second], dtype=float)
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        if not wins + losses:
            p = 1.0
        elif test == "sign":
            p = scipy.stats.binomtest(wins, wins + losses).pvalue
        else:
            _, p = scipy.stats.wilcoxon(gaps, zero_method="zsplit")
        ties, difference = len(gaps) - wins - losses, float(np.median(gaps))
        tests.append(PairedTest(first, second, wins, losses, ties, difference, float(p), math.nan))
    corrected = holm([test.p for test in tests])
    return tuple(test._replace(p_holm=p) for test, p in zip(tests, corrected.tolist(), strict=True))


def holm(p_values: Values) -> np.ndarray:
    """P values corrected for being many (Holm 1979): each is significant at a level that it is below."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


# ------------------------------------------------------------------------------------------ correlations

_BY_PAIRS = 3000  # items up to which Kendall's resamples are products with all their pairs


def kendall(
    x: Values,
    y: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Kendall's tau-b with a bootstrap interval over items; pairs with a NaN are left out.

    NaN where one side has a single value. Where that is so in a resample it is left out of the interval.
    """
    a, b = _known(x, y)
    if len(a) < 2:
        return Estimate(*np.full(3, math.nan))
    value, _ = scipy.stats.kendalltau(a, b)
    rng = np.random.default_rng(seed)
    if len(a) > _BY_PAIRS:
        chosen = (rng.integers(len(a), size=len(a)) for _ in range(resamples))
        drawn = np.array([scipy.stats.kendalltau(a[k], b[k])[0] for k in chosen])
    else:
        # In a resample that has item i c_i times, the pairs that agree less those that do not are c S c / 2,
        # where S_ij is 1, 0 or -1; and so on for the pairs that are not tied on one side.
        counts = _resampled(rng, len(a), resamples).astype(np.float32)
        signs = [np.sign(v[:, None] - v[None, :]).astype(np.float32) for v in (a, b)]
        agree, *untied = (
            np.einsum("rj,rj->r", counts @ s, counts, dtype=float)
            for s in (signs[0] * signs[1], *map(abs, signs))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = agree / np.sqrt(untied[0] * untied[1])
    return _correlation(value, drawn, level)


def spearman(
    x: Values,
    y: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation, its interval and special cases as for `kendall`."""
    a, b = _known(x, y)
    if len(a) < 2:
        return Estimate(*np.full(3, math.nan))
    value, _ = scipy.stats.spearmanr(a, b) if np.ptp(a) and np.ptp(b) else (math.nan, 0)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, step := max(1, 2**22 // len(a))):
        counts = _resampled(rng, len(a), min(step, resamples - start))
        ranks = [_ranks(counts, v) for v in (a, b)]
        both, *each = (
            np.einsum("ri,ri,ri->r", counts, u, v) for u, v in (ranks, ranks[:1] * 2, ranks[1:] * 2)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(both / np.sqrt(each[0] * each[1]))
    return _correlation(value, np.concatenate(drawn), level)


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rank, from the middle, of each item in each resample: as ``counts``, [resamples, items]."""
    _, first, place = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    equal = np.add.reduceat(counts[:, order], first, axis=1)
    middle = np.cumsum(equal, axis=1) - equal / 2 - len(values) / 2
    back = np.empty(len(values), dtype=int)
    back[order] = place
    return middle[:, back]


def _known(x: Values, y: Values) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = ~(np.isnan(a) | np.isnan(b))
    return a[known], b[known]


def _correlation(value: float, drawn: np.ndarray, level: float) -> Estimate:
    if math.isnan(value):
        return Estimate(*np.full(3, math.nan))
    known = drawn[~np.isnan(drawn)]
    return _estimate(np.array([value]), known[:, None], level, (), known=True)
