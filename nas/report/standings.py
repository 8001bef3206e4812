"""The result of a comparison over a table: one row a strategy, its notes, and the paired tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from nas.errors import InputError
from nas.record.comparison import Comparison, Search
from nas.report.result_table import NO_VALUE, csv_text, format_mean, format_percent
from nas.report.statistics import (
    FEWEST,
    FRACTION,
    CriticalDifference,
    Estimate,
    Interval,
    PairedTest,
    critical_difference,
    estimate,
    mean_interval,
    paired_tests,
    probability_of_improvement,
    regret,
)

BASELINE = "random"  # what the others are compared with, where it is among them


@dataclasses.dataclass(frozen=True)
class Standing:
    """The results of one strategy's searches. Accuracies and regrets are fractions, of the last incumbents.

    ``regret``: interquartile mean of the best test accuracy of the space less the search's. ``better``: the
    probability that a search is better than one of the comparison's baseline. ``mean_rank``: among the
    strategies, from each seed; 1 is best. ``found_best``: the part of the searches that end at the best.
    """

    strategy: str
    searches: int
    trials: float
    units: float
    cost_seconds: float
    valid_accuracy: float
    test_accuracy: Interval
    test_deviation: float
    regret: Estimate
    better: Estimate
    mean_rank: float
    found_best: float


@dataclasses.dataclass(frozen=True)
class Standings:
    """A comparison's rows in the order compared, with ranks and tests over all of them."""

    rows: tuple[Standing, ...]
    baseline: str
    ranks: CriticalDifference | None
    tests: tuple[PairedTest, ...]
    """Wilcoxon's signed ranks of the test accuracies from equal seeds, of all pairs, with Holm's correction."""


def finals(searches: Sequence[Search]) -> np.ndarray:
    """The test accuracies of the last incumbents: [searches]."""
    return np.array([search.test_accuracies[-1] for search in searches])


def standings(comparison: Comparison) -> Standings:
    """The rows, ranks and tests over the seeds that every strategy was searched from. InputError if there is none."""
    groups = comparison.complete()
    if not all(groups.values()):
        raise InputError(f"{comparison.folder}: no seed yet from which every strategy has been searched")
    tested = {name: finals(searches) for name, searches in groups.items()}
    baseline = BASELINE if BASELINE in tested else next(iter(tested))
    several = len(tested) > 1 and len(tested[baseline]) > 1
    ranks = critical_difference(tested) if several else None
    by_name = {} if ranks is None else dict(zip(ranks.names, ranks.mean_ranks.tolist(), strict=True))
    rows = []
    for name, searches in groups.items():
        test = tested[name]
        rows.append(
            Standing(
                strategy=name,
                searches=len(searches),
                trials=float(np.mean([search.trials for search in searches])),
                units=float(np.mean([search.units for search in searches])),
                cost_seconds=float(np.mean([search.cost_seconds for search in searches])),
                valid_accuracy=float(np.mean([search.valid_accuracies[-1] for search in searches])),
                test_accuracy=mean_interval(test, within=FRACTION),
                test_deviation=float(test.std(ddof=1)) if len(test) > 1 else math.nan,
                regret=estimate(regret(test, comparison.optimum)),
                better=probability_of_improvement(test, tested[baseline]),
                mean_rank=by_name.get(name, math.nan),
                found_best=float(np.mean(test >= comparison.optimum)),
            )
        )
    tests = paired_tests(tested) if several else ()
    return Standings(tuple(rows), baseline, ranks, tests)


def cells(held: Standings) -> list[list[str]]:
    """The table as text: its head, then a line a strategy."""
    head = ["Strategy", "Seeds", "Trials", "Valid. %", "Test %", "Std", "Regret % (IQM)"]
    head += [f"P(> {held.baseline})", "Mean rank", "Best found %"]
    lines = [head]
    for row in held.rows:
        test = row.test_accuracy
        lines.append(
            [
                row.strategy,
                f"{row.searches:,}",
                format_mean(row.trials),
                format_percent(row.valid_accuracy),
                format_percent(test),
                NO_VALUE if math.isnan(row.test_deviation) else f"{100 * row.test_deviation:.2f}",
                _ranged(row.regret, 100, 3),
                NO_VALUE if row.strategy == held.baseline else _ranged(row.better, 1, 2),
                NO_VALUE if math.isnan(row.mean_rank) else f"{row.mean_rank:.2f}",
                f"{100 * row.found_best:.1f}",
            ]
        )
    return lines


def paired_cells(held: Standings) -> list[list[str]]:
    """The paired tests as text: their head, then a line a pair."""
    lines = [["First", "Second", "Wins", "Losses", "Ties", "Median difference (points)", "p", "p (Holm)"]]
    lines += [
        [
            test.first,
            test.second,
            f"{test.wins:,}",
            f"{test.losses:,}",
            f"{test.ties:,}",
            f"{100 * test.difference:+.3f}",
            f"{test.p:.2g}",
            f"{test.p_holm:.2g}",
        ]
        for test in held.tests
    ]
    return lines


def notes(comparison: Comparison, held: Standings) -> tuple[str, ...]:
    """What a reader of the table must know."""
    config = comparison.config
    said = [
        f"Every search has {comparison.budget_seconds:,.0f} simulated seconds of table {config['table']} "
        f"({comparison.budget_seconds / config['mean_training_seconds']:.1f} trainings of mean cost); seconds of "
        f"a training: {config['table_seconds'] or 'as measured for the table'}.",
        f"A search sees {config['valid']}. Its incumbent, the architecture with the highest one so far, is judged "
        f"by {config['test']}, averaged over repetitions; the best of {config['architectures']:,} architectures "
        f"has {100 * comparison.optimum:.2f} %.",
        "Test: mean with its 95 % t interval, and the standard deviation over searches. Regret: interquartile "
        f"mean with its 95 % bootstrap interval. P(> {held.baseline}): that a search is better than one of "
        f"{held.baseline}, equal ones half. Mean rank: over seeds, 1 is best.",
    ]
    if held.rows[0].searches < FEWEST:
        said[-1] = (
            "Test: mean with its number of searches, which are too few to say anything of their spread: intervals are "
            f"given from {FEWEST} seeds on."
        )
    if any("+" in name for name in comparison.strategies):
        said.append(
            f"STRATEGY+SCORE: each trial is the best by the score of {config['filter_candidates']} candidates "
            "of the strategy."
        )
    if config["left_out"]:
        said.append(
            f"Left out, because trials of at most {config['epochs']} of the table's units have no rung to stop at, "
            f"which makes them random search: {', '.join(config['left_out'])}."
        )
    short = [row.strategy for row in held.rows if row.cost_seconds < 0.9 * comparison.budget_seconds]
    if short:
        said.append(f"Ended before the budget did: {', '.join(short)}.")
    missing = len(comparison.planned) - len(comparison.searches)
    if missing:
        said.append(f"Incomplete, still running or interrupted: {missing:,} searches are to come.")
    return tuple(said)


def to_csv(held: Standings) -> str:
    """Every number in full, units in the names; empty where not known."""
    return csv_text([_flat(row) for row in held.rows])


def _flat(row: Standing) -> dict[str, object]:
    flat: dict[str, object] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval | Estimate):
            flat |= {f"{field.name}_{part}": number for part, number in value._asdict().items()}
        else:
            flat[field.name] = value
    return {
        name: "" if isinstance(value, float | np.ndarray) and np.isnan(value) else _plain(value)
        for name, value in flat.items()
    }


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.ndarray) else value


def _ranged(held: Estimate, scale: float, decimals: int) -> str:
    """``0.61 [0.58, 0.64]``."""
    value, low, high = (scale * float(part) for part in held)
    if math.isnan(low):
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"
