"""Statistics over runs: intervals, anytime curves, Pareto fronts, and which choices mattered."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import scipy.special

from nas.results.record import Run
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
