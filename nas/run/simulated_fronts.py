"""Comparisons over a table by several objectives: each search's front over its simulated cost."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import InputError, one_of
from nas.objectives.table_goals import TableGoals
from nas.record.comparison import Job, planned
from nas.record.fronts import FrontComparison, FrontSearch, FrontSearches, read_fronts
from nas.run import simulated
from nas.run.methods import foreign_options
from nas.run.simulated import Benchmark, Spaces, TableOptions
from nas.run.simulated_cluster import execute
from nas.strategies import STRATEGIES
from nas.trial import Measurement, MeasurementWithValues, Trial


@dataclasses.dataclass(frozen=True)
class FrontOptions:
    """What a comparison is told beside `TableOptions` where it has several objectives."""

    objectives: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FrontBenchmark:
    """What every search of such a comparison has in common."""

    shared: Benchmark
    objective: TableGoals

    def search(self, job: Job) -> FrontSearch:
        """One search, from its start to the end of its budget."""
        record, shared = STRATEGIES[job.strategy], self.shared
        config = record.own(dataclasses.replace(shared.plan, seed=job.seed, epochs=shared.epochs))
        archive = Archive(self.objective)
        found = execute(
            record(self.objective.space, config.without_end()),
            self.objective,  # type: ignore[arg-type]
            job,
            shared.budget_seconds,
            workers=shared.workers,
            cluster=shared.cluster,
            on_measured=archive,
        )
        costs = tuple(min(cost, shared.budget_seconds) for cost in archive.costs)
        return FrontSearch(
            job.strategy,
            job.seed,
            found.trials,
            found.units,
            found.cost_seconds,
            costs,
            tuple(archive.gains),
            tuple(archive.tested),
            tuple(archive.archs),
        )


class Archive:
    """Hears of every measurement, and keeps those that no earlier one dominates."""

    def __init__(self, objective: TableGoals) -> None:
        self._objective = objective
        self._best: list[tuple[float, ...]] = []
        self.costs: list[float] = []
        self.gains: list[tuple[float, ...]] = []
        self.tested: list[tuple[float, ...]] = []
        self.archs: list[str] = []

    def __call__(self, trial: Trial, measurement: Measurement, cost_seconds: float) -> None:
        assert isinstance(measurement, MeasurementWithValues)
        new = measurement.signed
        if measurement.violated or any(
            all(a >= b for a, b in zip(old, new, strict=True)) for old in self._best
        ):
            return
        self._best = [old for old in self._best if not all(a >= b for a, b in zip(new, old, strict=True))]
        self._best.append(new)
        self.costs.append(cost_seconds)
        self.gains.append(new)
        self.tested.append(self._objective.tested(trial.arch).gains)
        self.archs.append(self._objective.text(trial.arch))


def front_benchmark(options: TableOptions, fronts: FrontOptions, spaces: Spaces) -> FrontBenchmark:
    """The table with its objectives. Raises InputError."""
    shared = simulated.benchmark(options, spaces)
    return FrontBenchmark(shared, TableGoals(shared.objective, fronts.objectives, fronts.constraints))


def reference_of(objective: TableGoals, texts: Sequence[str]) -> np.ndarray:
    """The reference point of hypervolumes, in gains: what ``texts`` say of each objective (``latency_ms:fpga=20``),
    else the worst value on the table's true front; where that leaves the front no hypervolume, as with one objective,
    the worst of all architectures that keep the constraints. Raises InputError."""
    worst = objective.front.min(axis=0)
    if not (objective.front > worst).all(axis=1).any():
        worst = objective.feasible.min(axis=0)
    names = [goal.name for goal in objective.goals.objectives]
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or name not in names:
            raise one_of("reference: objective", name or text, names)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"reference: {text}: {value!r} is not a number")
        worst[names.index(name)] = objective.goals.objectives[names.index(name)].sign * number
    return worst


def compared(options: TableOptions, made: FrontBenchmark) -> tuple[str, ...]:
    """The strategies that the options mean; by default all for several objectives, and random search. InputError."""
    shared = made.shared
    plan = dataclasses.replace(shared.plan, epochs=shared.epochs)
    kept = simulated.sensible(shared.objective.space, plan)
    one = len(made.objective.goals.objectives) == 1  # under constraints, which every strategy takes
    several = tuple(name for name, record in STRATEGIES.items() if one or record.objectives != "one")
    for name in options.strategies:
        if name.partition("+")[0] not in STRATEGIES or "+" in name:
            raise one_of("strategies", name, several)
        if name not in several:
            raise InputError(
                f"strategies: {name} takes one objective; for several there are {', '.join(several)}"
            )
        if name not in kept:
            raise InputError(
                f"strategies: {name} with trials of at most {shared.epochs} of the table's units "
                f"({shared.objective.valid}) has no rung to stop at: it would be random search"
            )
    # A grid's order has nothing to do with what is good.
    return options.strategies or tuple(name for name in several if name in kept and name != "grid")


def compare(
    options: TableOptions, fronts: FrontOptions, spaces: Spaces, out: Path, *, resume: bool = False
) -> FrontComparison:
    """Search with every strategy from every seed; all of it recorded in ``out``. See `simulated.compare`."""
    if len(options.workers) > 1:
        raise InputError(
            f"workers: {' '.join(map(str, options.workers))}: one number with several objectives"
        )
    made = front_benchmark(options, fronts, spaces)
    shared, objective = made.shared, made.objective
    strategies = compared(options, made)
    jobs = planned(strategies, options.plan.seed, options.seeds)
    config: dict[str, Any] = simulated.config_of(options, shared, strategies) | {
        "strategies": strategies,
        "goals": {goal.name: goal.sign for goal in objective.goals.objectives},
        "constraint": [str(limit) for limit in objective.goals.limits],
        "reference": reference_of(objective, fronts.reference).tolist(),
        "front": objective.front.tolist(),
        "front_of": objective.front_of,
    }
    if resume:
        may_differ = (*simulated.MAY_DIFFER, "front_of", *foreign_options(strategies))
        opened = FrontSearches.resume(out, config, may_differ=may_differ)
    else:
        opened = FrontSearches.create(out, config)
    make = functools.partial(front_benchmark, options, fronts, spaces)
    simulated.carry_out(jobs, opened, make, made, out, options.processes)
    return read_fronts(out)
