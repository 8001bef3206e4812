"""Incumbents of runs over what the runs cost, and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from nas.record import Run
from nas.report.statistics.intervals import FRACTION, mean_interval

Cost: TypeAlias = Literal["epochs", "seconds", "wall_seconds"]
"""What an anytime curve runs over: budget units, compute seconds (all workers') or wall-clock seconds."""


class Curve(NamedTuple):
    """Mean of ``n`` runs with a 95 % interval, at the points ``cost``; NaN interval for fewer than `FEWEST` runs.

    ``runs``: each run by itself [n, points].
    """

    cost: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    runs: np.ndarray


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
    intervals = np.asarray([mean_interval(column, within=FRACTION)[:3] for column in values.T])
    return Curve(grid, *intervals.T, n=len(traces), runs=values)


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
