"""Incumbents of many searches at equal cost: traces, regret, cost to reach an accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from nas.record.comparison import Trace
from nas.report.statistics.bootstrap import Values


def trace(costs: Values, valid: Values, test: Values | None = None) -> Trace:
    """The incumbents of a run, chosen by validation accuracy, with their test accuracies.

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
    """The best possible accuracy less each of ``accuracies``."""
    return optimum - np.asarray(accuracies)


def cost_to_reach(
    traces: Iterable[Trace], target: float, of: Literal["valid", "test"] = "test"
) -> np.ndarray:
    """What each run had cost when its incumbent was first as good as ``target``; inf where never: [runs]."""
    reached = ((t.cost, getattr(t, of) >= target) for t in traces)
    return np.array([cost[good.argmax()] if good.any() else math.inf for cost, good in reached])
