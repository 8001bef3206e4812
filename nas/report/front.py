"""Fronts of searches for several objectives: hypervolume over cost, IGD+, attainment, and the tables of them.

All is of gains, the objectives turned so that more is better, scaled so that the reference point is 0 and the ideal
point (the best of each objective on the reference front) is 1. The reference front is a table's true one, or that of
all trials of the runs compared.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nas.pareto import hypervolume, igd_plus, nondominated
from nas.record import Run
from nas.record.fronts import FrontSearch
from nas.report import result_table
from nas.report.statistics import CriticalDifference, Estimate, critical_difference, estimate, paired_tests
from nas.trial import Final

LEVELS = (25, 50, 75)
"""Per cent of the searches whose attainment surfaces are drawn."""


class Scale(NamedTuple):
    """``goals`` by name with their signs; ``reference`` and ``front`` in gains."""

    goals: Mapping[str, int]
    reference: np.ndarray
    front: np.ndarray

    def __call__(self, gains: np.ndarray) -> np.ndarray:
        span = self.front.max(axis=0) - self.reference
        return (gains - self.reference) / np.where(span > 0, span, 1.0)

    @property
    def volume(self) -> float:
        """Of the whole front; 1 where that has none beyond the reference point."""
        return hypervolume(self(self.front), np.zeros(len(self.goals))) or 1.0


class Progress(NamedTuple):
    """One search: the share ``volumes`` [k] of the front's hypervolume that it had dominated from ``costs`` [k] on, as
    judged (with test accuracies, where there are some), the last of its ``points`` [n, objective], judged, and the
    last share as the search saw it."""

    costs: np.ndarray
    volumes: np.ndarray
    points: np.ndarray
    seen: float


def progress(search: FrontSearch, scale: Scale) -> Progress:
    """How a search's front grew. The front is of what the search saw; its points count as they are judged."""
    origin, whole = np.zeros(len(scale.goals)), scale.volume
    gains = np.array(search.gains, float).reshape(-1, len(scale.goals))
    tested = scale(np.array(search.tested, float).reshape(gains.shape))
    kept: list[int] = []
    volumes = []
    for k, new in enumerate(gains):
        kept = [j for j in kept if not (new >= gains[j]).all()] + [k]
        volumes.append(hypervolume(tested[kept], origin) / whole)
    seen = hypervolume(scale(gains[kept]), origin) / whole
    return Progress(np.array(search.costs_seconds), np.array(volumes), tested[kept], seen)


def at(held: Sequence[Progress], costs: np.ndarray) -> np.ndarray:
    """The shares of all searches at common costs: [search, cost]; 0 before the first."""
    rows = []
    for one in held:
        k = np.searchsorted(one.costs, costs, side="right")
        rows.append(np.concatenate([[0.0], one.volumes])[k])
    return np.stack(rows)


class Row(NamedTuple):
    """A line of the table; estimates are interquartile means with their 95 % bootstrap intervals.

    ``hypervolume`` is a share of the reference front's, as judged; ``seen`` the same as the searches saw it; ``igd`` is
    IGD+ in scaled objectives; ``points`` how many networks a front has.
    """

    strategy: str
    seeds: int
    trials: float
    hypervolume: Estimate
    seen: Estimate
    igd: Estimate
    points: float


def rows(groups: Mapping[str, Sequence[FrontSearch]], scale: Scale) -> list[Row]:
    """The best hypervolume first."""
    true = scale(scale.front)
    found = []
    for name, searches in groups.items():
        held = [progress(search, scale) for search in searches]
        volumes = np.array([one.volumes[-1] if len(one.volumes) else 0.0 for one in held])
        igd = np.array([igd_plus(one.points, true) if len(one.points) else math.nan for one in held])
        seen = np.array([one.seen for one in held])
        points = float(np.mean([len(one.points) for one in held]))
        trials = float(np.mean([search.trials for search in searches]))
        estimates = (estimate(volumes), estimate(seen), estimate(igd))
        found.append(Row(name, len(searches), trials, *estimates, points))
    return sorted(found, key=lambda row: -float(row.hypervolume.value))


def volumes(groups: Mapping[str, Sequence[FrontSearch]], scale: Scale) -> dict[str, np.ndarray]:
    """Each search's hypervolume at its end: by strategy [seed]."""
    return {
        name: np.array([[0.0, *progress(search, scale).volumes][-1] for search in searches])
        for name, searches in groups.items()
    }


def ranking(held: Mapping[str, np.ndarray]) -> CriticalDifference | None:
    """Of the hypervolumes from equal seeds; None for fewer than two strategies or two seeds."""
    if len(held) < 2 or len({len(each) for each in held.values()}) > 1 or len(next(iter(held.values()))) < 2:
        return None
    return critical_difference(held)


def paired_cells(held: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The paired tests of the hypervolumes as text: their head, then a line a pair."""
    lines = [["First", "Second", "Wins", "Losses", "Ties", "Median difference (%)", "p", "p (Holm)"]]
    for t in paired_tests(held):
        counts = [f"{t.wins:,}", f"{t.losses:,}", f"{t.ties:,}"]
        lines.append(
            [t.first, t.second, *counts, f"{100 * t.difference:+.3f}", f"{t.p:.2g}", f"{t.p_holm:.2g}"]
        )
    return lines


def attainment(points: Sequence[np.ndarray], level: int) -> np.ndarray:
    """[n, objective]: the front that ``level`` per cent of the searches reach or exceed (the empirical attainment
    function; Fonseca and Fleming 1996), empty where fewer reach any. ``points`` [k, objective] are each search's front.
    """
    import moocore

    kept = [one for one in points if len(one)]
    of_kept = level * len(points) / max(len(kept), 1)  # who found nothing reaches nothing
    if of_kept > 100:
        return np.empty((0, 2))
    sets = np.concatenate([np.full(len(one), k) for k, one in enumerate(kept)])
    surface = moocore.eaf(-np.concatenate(kept), sets, percentiles=[of_kept])
    return -surface[:, :-1]


def cells(held: Sequence[Row], *, judged: str) -> list[list[str]]:
    """The table as text: its head, then a line a row. ``judged``: how hypervolumes are, such as test."""
    head = [
        "Strategy",
        "Seeds",
        "Trials",
        f"Hypervolume % ({judged})",
        "Hypervolume % (seen)",
        "IGD+",
        "Networks",
    ]
    lines = [head]
    for row in held:
        lines.append(
            [
                row.strategy,
                f"{row.seeds:,}",
                f"{row.trials:,.1f}",
                _ranged(row.hypervolume, 100, 2),
                _ranged(row.seen, 100, 2),
                _ranged(row.igd, 1, 4),
                f"{row.points:.1f}",
            ]
        )
    return lines


def to_csv(held: Sequence[Row]) -> str:
    """Every number in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for name in Row._fields if name not in ("hypervolume", "seen", "igd")]
    parts = [(name, part) for name in ("hypervolume", "seen", "igd") for part in Estimate._fields]
    writer.writerow([*names, *(f"{name}_{part}" for name, part in parts)])
    for row in held:
        numbers = (float(getattr(getattr(row, name), part)) for name, part in parts)
        writer.writerow([*(getattr(row, n) for n in names), *("" if math.isnan(x) else x for x in numbers)])
    return out.getvalue()


def scale_note(scale: Scale, whose: str) -> str:
    """The sentence that says what hypervolumes and IGD+ are of."""
    told = ", ".join(
        f"{name}={sign * value:.6g}"
        for (name, sign), value in zip(scale.goals.items(), scale.reference, strict=True)
    )
    return (
        f"Hypervolume: a share of that of {whose} ({len(scale.front)} networks), counted from the reference point "
        f"{told}; objectives are scaled so that this point is 0 and the best on that front 1. IGD+ is in these units."
    )


def _ranged(held: Estimate, scale: float, decimals: int) -> str:
    value, low, high = (scale * float(part) for part in held)
    if math.isnan(value):
        return result_table.NO_VALUE
    if math.isnan(low):
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


# ------------------------------------------------------------------------------------------------------ real runs


def goals_of(run: Run) -> Mapping[str, int] | None:
    """The several objectives of a run with their signs; None where it has one."""
    goals = run.config.get("goals")
    return goals if isinstance(goals, dict) and len(goals) > 1 else None


def of_run(label: str, run: Run) -> FrontSearch:
    """A run's measured networks over its compute seconds; what they are judged by is what the search saw."""
    costs, gains, archs, spent = [], [], [], 0.0
    for seen in run.history:
        spent += seen.measurement.seconds
        trial = run.trials[seen.trial_id]
        if seen.measurement.violation == 0 and trial.status != "failed" and len(seen.measurement.gains) > 1:
            costs.append(spent)
            gains.append(seen.measurement.gains)
            archs.append(str(seen.trial_id))
    best: list[int] = []
    for k, new in enumerate(gains):
        if not any(all(a >= b for a, b in zip(gains[j], new, strict=True)) for j in best):
            best.append(k)
    kept = tuple(gains[k] for k in best)
    return FrontSearch(
        label,
        run.seed or 0,
        len(run.trials),
        run.epochs_spent,
        spent,
        tuple(costs[k] for k in best),
        kept,
        kept,
        tuple(archs[k] for k in best),
    )


def scale_of(goals: Mapping[str, int], searches: Sequence[FrontSearch], worst: np.ndarray) -> Scale | None:
    """The scale of runs: their common front, from the ``worst`` value of each objective; None where nothing is."""
    gains = np.array([row for search in searches for row in search.gains], float)
    if not len(gains):
        return None
    return Scale(goals, worst, gains[nondominated(gains)])


def worst_of(runs: Sequence[Run]) -> np.ndarray:
    """Of each objective over all measured trials that keep the constraints, in gains."""
    gains = [trial.gains for run in runs for trial in run.trials.values() if trial.feasible]
    return np.array(gains, float).min(axis=0) if gains else np.empty(0)


def front_cells(label: str, run: Run, text: Mapping[int, str]) -> list[list[str]]:
    """The front of a run as text, a line a network: its values with what was measured beside them, and its tests."""
    goals = goals_of(run) or {}
    finals: dict[object, list[Final]] = {}
    for final in run.finals:
        if final.error is None:
            finals.setdefault(final.arch, []).append(final)
    lines = [["Run", "Trial", *goals, "Test %", "Params", "Mult-adds", "Network"]]
    for trial in run.front:
        tests = [final.test_accuracy for final in finals.get(trial.arch, [])]
        shown = []
        for name in goals:
            low, high = trial.values.get(f"{name}_low"), trial.values.get(f"{name}_high")
            interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
            shown.append(f"{trial.values.get(name, math.nan):.5g}{interval}")
        sizes = (trial.params, trial.macs_per_image)
        counts = [result_table.format_count(math.nan if size is None else float(size)) for size in sizes]
        tested = result_table.NO_VALUE
        if tests:
            spread = f" ± {100 * float(np.std(tests, ddof=1)):.2f}" if len(tests) > 1 else ""
            tested = f"{100 * float(np.mean(tests)):.2f}{spread}"
        lines.append([label, str(trial.id), *shown, tested, *counts, text.get(trial.id, "")])
    return lines


def networks_csv(lines: Sequence[Sequence[str]]) -> str:
    """The table of `front_cells` as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def latency_note(run: Run) -> str:
    """How the latencies of a run were measured; empty where none were."""
    config = run.config
    if "latency_repetitions" not in config:
        return ""
    device = config.get("latency_device") or "the device that trains"
    threads = config.get("latency_threads")
    where = f"{device}, {threads} thread on a core of its own" if threads else device
    return (
        f"latency_ms: batch {config['latency_batch']} on {where}, warm; the median of the fastest rounds of "
        f"{config['latency_repetitions']} calls, in brackets from the lowest to the highest bound of any round's 95 % "
        "interval."
    )
