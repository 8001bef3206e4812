"""What the script of a report's page draws: every trial with its architecture, cost and curve, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.record import Run
from nas.record.record import ERRORS
from nas.report.plots import line_styles
from nas.report.result_table import run_name
from nas.report.statistics import FEWEST, Attribution, Cost, anytime
from nas.trial import ScoreMeasurement, Trial

MOST_TRIALS = 20_000
"""A page with more would be slow to open; the record has them all."""
MOST_POINTS = 400  # of one learning curve
COSTS: tuple[Cost, ...] = ("epochs", "seconds", "wall_seconds")


def page_data(
    groups: Mapping[str, Sequence[Run]], mattered: Mapping[str, Attribution | None]
) -> dict[str, Any]:
    """The data of one page.

    ``rows``: name and colour of each row of the table; ``runs``: name and row; ``trials``: an object each;
    ``anytime``: by cost, the lines of the rows; ``importance``: by title.
    """
    rows = [
        {"name": label, "color": style.color} for label, style in zip(groups, line_styles(), strict=False)
    ]
    named = [(k, label, run) for k, (label, runs) in enumerate(groups.items()) for run in runs]
    trials = [
        trial_data(i, run, trial) for i, (_, _, run) in enumerate(named) for trial in run.trials.values()
    ]
    return {
        "rows": rows,
        "runs": [{"name": run_name(label, run), "row": k} for k, label, run in named],
        "trials": trials[:MOST_TRIALS],
        "left_out": max(0, len(trials) - MOST_TRIALS),
        "anytime": {cost: _anytime(groups, cost) for cost in COSTS},
        "importance": {title: _importance(of) for title, of in mattered.items() if of is not None},
        "fewest": FEWEST,
    }


def trial_data(run: int, of: Run, trial: Trial) -> dict[str, Any]:
    """One trial of the run numbered ``run``; accuracies are fractions, what is not known is null."""
    newest = trial.measurements[-1] if trial.measurements else None
    seconds = {
        name: _number(math.fsum(getattr(m, f"{name}_seconds") for m in trial.measurements))
        for name in ("compile", "train", "evaluate")
    }
    step = -(-len(trial.measurements) // MOST_POINTS) or 1
    shown = [m for k, m in enumerate(trial.measurements) if k % step == 0 or m is newest]
    data: dict[str, Any] = {
        "run": run,
        "id": trial.id,
        "arch": {name: _plain(value) for name, value in trial.arch.items()},
        "status": trial.status,
        "epochs": trial.spent,
        "valid": _number(trial.valid_accuracy),
        "params": trial.params,
        "macs": trial.macs_per_image,
        "seconds": seconds,
        "curve": [[m.budget, _number(m.valid_accuracy), _number(m.train_accuracy)] for m in shown],
    }
    if isinstance(newest, ScoreMeasurement):
        data["score"] = _number(newest.score)
    if trial.values:
        data["values"] = {name: _number(value) for name, value in trial.values.items()}
    if trial.chosen != trial.arch:
        data["derived"] = {name: _plain(value) for name, value in trial.chosen.items()}
    if trial.error:
        data["error"] = trial.error
        kept = of.folder / ERRORS / f"trial_{trial.id}.txt"
        if kept.is_file():
            data["traceback"] = kept.read_text(encoding="utf-8", errors="replace")[-6000:]
    return data


def _anytime(groups: Mapping[str, Sequence[Run]], cost: Cost) -> list[dict[str, Any]]:
    lines = []
    for k, runs in enumerate(groups.values()):
        curve = anytime(runs, cost, points=128)
        if curve is None or not curve.cost[-1]:
            continue
        lines.append(
            {
                "row": k,
                "n": curve.n,
                "x": _numbers(curve.cost),
                "y": _numbers(curve.mean),
                **({"low": _numbers(curve.low), "high": _numbers(curve.high)} if curve.n >= FEWEST else {}),
                **({"each": [_numbers(one) for one in curve.runs]} if 1 < curve.n < FEWEST else {}),
            }
        )
    return lines


def _importance(of: Attribution) -> dict[str, Any]:
    return {
        "budget": of.budget,
        "trials": of.trials,
        "warning": of.warning,
        "choices": [
            {"choice": one.choice, **{name: _number(getattr(one, name)) for name in one._fields[1:]}}
            for one in of.choices
        ],
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    """Five digits are more than a screen shows."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _number(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)
