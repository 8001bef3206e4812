"""How strategies scale with the number of simulated workers: times, speed-ups, utilisation, from records alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nas.record.comparison import Comparison, Search
from nas.report.result_table import NO_VALUE, csv_text, format_mean, format_percent, format_seconds
from nas.report.standings import finals
from nas.report.statistics import (
    Estimate,
    Interval,
    at_costs,
    cost_to_reach,
    estimate,
    mean_interval,
    regret,
    speed_up,
)

HALF = 0.5
"""Of a linear speed-up: where a strategy has less, it has stopped scaling."""
HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One strategy on one number of workers; seconds are on the simulated clock, of the median search.

    ``cost``: of all workers from the start of a search to its end, in ``unit``. ``utilisation``: the part of that
    time in which a worker is at work, ``lost`` the part whose work a failure or a preemption undid. ``all_speed_up``:
    how many times faster than with the fewest workers compared the whole budget is worked off;
    ``speed_up``: how many times faster the incumbent is as good as ``target_regret``, which takes
    ``target_seconds``: half of the searches with the fewest workers are as good at half of the budget. ``efficiency``:
    that speed-up over the one that is linear in workers.
    """

    strategy: str
    workers: int
    searches: int
    trials: float
    test_accuracy: Interval
    regret: Estimate
    wall_seconds: float
    cost: float
    utilisation: float
    lost: float
    all_speed_up: Estimate
    target_regret: float
    target_seconds: float
    target_reached: float
    speed_up: Estimate
    efficiency: float


def price(comparison: Comparison) -> tuple[float, str]:
    """What a worker costs an hour, and the unit of that."""
    known = comparison.config.get("price_per_worker_hour")
    return (1.0, "worker-hours") if known is None else (float(known), "price")


def price_of(comparisons: Sequence[Comparison]) -> tuple[float, str]:
    """`price`, where one worker's comparison may have none."""
    return price(comparisons[-1])


def scaling(comparisons: Sequence[Comparison]) -> tuple[Scaling, ...]:
    """By strategy, then by rising number of workers: ``comparisons`` are those of `read_workers`."""
    a_second = price_of(comparisons)[0] / HOUR
    groups = [(comparison.workers, comparison.complete()) for comparison in comparisons]
    fewest, first = groups[0]
    optimum, budget = comparisons[0].optimum, comparisons[0].budget_seconds
    rows = []
    for name in comparisons[0].strategies:
        target = target_regret(first[name], optimum, budget)
        to_target = {
            workers: cost_to_reach([s.wall_trace for s in group[name]], optimum - target - 1e-9)
            for workers, group in groups
        }
        walls = {workers: np.array([s.wall_seconds for s in group[name]]) for workers, group in groups}
        for workers, group in groups:
            searches, wall, reached = group[name], walls[workers], to_target[workers]
            gain = speed_up(to_target[fewest], reached)
            tested = finals(searches)
            rows.append(
                Scaling(
                    strategy=name,
                    workers=workers,
                    searches=len(searches),
                    trials=float(np.mean([s.trials for s in searches])),
                    test_accuracy=mean_interval(tested),
                    regret=estimate(regret(tested, optimum)),
                    wall_seconds=float(np.median(wall)),
                    cost=float(np.median(wall)) * workers * a_second,
                    utilisation=float(np.mean([s.cost_seconds for s in searches] / (workers * wall))),
                    lost=float(np.mean([_lost(s) for s in searches] / (workers * wall))),
                    all_speed_up=speed_up(walls[fewest], wall),
                    target_regret=target,
                    target_seconds=float(np.median(reached)),
                    target_reached=float(np.isfinite(reached).mean()),
                    speed_up=gain,
                    efficiency=float(np.ravel(gain.value)[0]) * fewest / workers,
                )
            )
    return tuple(rows)


def _lost(search: Search) -> float:
    return 0.0 if search.cluster is None else search.cluster.lost_seconds


def target_regret(searches: Sequence[Search], optimum: float, budget_seconds: float) -> float:
    """The median test regret of the incumbents at half of the budget, or, of a search, at its first incumbent."""
    half = np.array([HALF * budget_seconds])
    tested = [at_costs([s.trace], np.maximum(half, s.costs_seconds[0]))[0, 0] for s in searches]
    return float(np.median(optimum - np.array(tested)))


def stops(rows: Sequence[Scaling]) -> int | None:
    """Of one strategy's ``rows``, the largest number of workers up to which it scales; None: it never stopped.

    The rule: it scales to N workers if at N, and at every smaller number compared, half of the searches come to the
    target and do so at least `HALF` as much faster as there are more workers.
    """
    for before, row in itertools.pairwise(rows):
        if not row.efficiency >= HALF:
            return before.workers
    return None


def by_strategy(rows: Sequence[Scaling]) -> dict[str, tuple[Scaling, ...]]:
    return {
        name: tuple(r for r in rows if r.strategy == name) for name in dict.fromkeys(r.strategy for r in rows)
    }


def stops_said(rows: Sequence[Scaling]) -> str:
    """Where each strategy stops scaling, in a sentence."""
    most, fewest = rows[-1].workers, rows[0].workers
    said = []
    for name, own in by_strategy(rows).items():
        last = stops(own)
        if last is None:
            said.append(f"{name} scales to all {most:,}")
        elif last == fewest:
            said.append(f"{name} not beyond {last:,}")
        else:
            said.append(f"{name} to {last:,}")
    return "; ".join(said)


def cells(rows: Sequence[Scaling], unit: str) -> list[list[str]]:
    """The table as text: its head, then a line a strategy and number of workers."""
    cost = "Cost" if unit == "price" else "Worker-hours"
    head = [
        "Strategy",
        "Workers",
        "Seeds",
        "Trials",
        "Test %",
        "Regret % (IQM)",
        "Wall s",
        cost,
        "Utilised %",
    ]
    head += [
        "Speed-up, all",
        "Target regret %",
        "Target s",
        "Reached %",
        "Speed-up to target",
        "Efficiency %",
    ]
    lines = [head]
    fewest = rows[0].workers
    for row in rows:
        lines.append(
            [
                row.strategy,
                f"{row.workers:,}",
                f"{row.searches:,}",
                format_mean(row.trials),
                format_percent(row.test_accuracy),
                f"{100 * float(row.regret.value):.3f}",
                format_seconds(row.wall_seconds),
                f"{row.cost:,.3g}" if row.cost < 1000 else f"{row.cost:,.0f}",
                f"{100 * row.utilisation:.1f}",
                "1" if row.workers == fewest else _times(row.all_speed_up),
                f"{100 * row.target_regret:.3f}",
                "∞" if row.target_seconds == math.inf else format_seconds(row.target_seconds),
                f"{100 * row.target_reached:.0f}",
                "1" if row.workers == fewest else _times(row.speed_up),
                NO_VALUE if math.isnan(row.efficiency) else f"{100 * row.efficiency:.0f}",
            ]
        )
    return lines


def _times(held: Estimate) -> str:
    """``12.3 [11.0, 14.2]``."""
    value, low, high = (float(np.ravel(part)[0]) for part in held)
    if math.isnan(value):
        return NO_VALUE
    if math.isnan(low) or math.isnan(high):
        return f"{value:.1f}"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def notes(comparisons: Sequence[Comparison], rows: Sequence[Scaling]) -> tuple[str, ...]:
    """What a reader of the table must know."""
    config, fewest = comparisons[-1].config, rows[0].workers
    budget, mean = comparisons[0].budget_seconds, float(config["mean_training_seconds"])
    several = "one worker's" if fewest == 1 else f"{fewest:,} workers'"
    said = [
        f"Every search has {budget:,.0f} worker-seconds of table {config['table']}, which all its workers together are "
        f"at work ({budget / mean:.1f} trainings of mean cost); it ends with the first unit that would take more.",
        "Wall: simulated seconds from the start to the end of the last unit, of the median search. "
        + ("Cost: all workers for so long at their price. " if "price_per_worker_hour" in config and
           config["price_per_worker_hour"] is not None else "Worker-hours: all workers for so long. ")
        + "Utilised: the part of it in which a worker is at work.",
        f"Speed-up, all: {several} wall seconds over these. Speed-up to target: the same of the median time until the "
        "incumbent's test regret is the target, which half of the searches with the fewest workers have at half of the "
        "budget; ∞ where less than half of the searches come there. 95 % bootstrap intervals.",
    ]  # fmt: skip
    if len(comparisons) > 1:
        said.append(
            f"Scaling, by the rule that a strategy scales to N workers if its efficiency (speed-up to target over N/"
            f"{fewest}) is at least {HALF:.0%} at N and at every smaller number: {stops_said(rows)}."
        )
    if cluster := cluster_said(config):
        said.append(f"The workers: {cluster}.")
    idle = [row.workers for row in rows if row.workers > row.trials]
    if idle:
        said.append(
            f"With {min(idle):,} workers or more a budget of {budget / mean:.0f} trainings leaves some without work, "
            "and what is tried does not depend on what was found: --budget-trainings gives more."
        )
    missing = sum(len(comparison.planned) - len(comparison.searches) for comparison in comparisons)
    if missing:
        said.append(f"Incomplete, still running or interrupted: {missing:,} searches are to come.")
    return tuple(said)


def cluster_said(config: Mapping[str, object]) -> str:
    """What the simulated workers were like, where not all alike and always well."""
    said = []
    speeds = config.get("worker_speeds")
    if isinstance(speeds, list) and any(speed != 1 for speed in speeds):
        said.append(f"speeds {' '.join(f'{speed:g}' for speed in speeds)} in turn")
    if config.get("straggler_rate"):
        said.append(
            f"{config['straggler_rate']:.3g} of the pieces of work {config['straggler_factor']:g} times slower"
        )
    if config.get("failure_rate"):
        said.append(f"{config['failure_rate']:g} failures an hour at work")
    if config.get("preemption_rate"):
        said.append(f"{config['preemption_rate']:g} preemptions an hour at work")
    if config.get("startup_seconds"):
        said.append(f"{config['startup_seconds']:g} s to start")
    if config.get("price_per_worker_hour"):
        said.append(f"{config['price_per_worker_hour']:g} an hour each")
    return ", ".join(said)


def to_csv(rows: Sequence[Scaling]) -> str:
    """Every number in full, units in the names; empty where not known."""
    return csv_text([_flat(row) for row in rows])


def _flat(row: Scaling) -> dict[str, object]:
    flat: dict[str, object] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval | Estimate):
            for part, number in value._asdict().items():
                number = float(np.ravel(number)[0])
                flat[f"{field.name}_{part}"] = "" if math.isnan(number) else number
        else:
            flat[field.name] = "" if isinstance(value, float) and math.isnan(value) else value
    return flat
