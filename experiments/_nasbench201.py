"""What searches with shared weights on NAS-Bench-201's cell come to, looked up in the benchmark's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nas.errors import InputError
from nas.oneshot.monitor import Epoch, never, stopping
from nas.record import Run
from nas.space import Architecture
from nas.tables import Table
from nas.trial import SupernetMeasurement
from search_spaces.nasbench201 import to_text


class TableAccuracy(NamedTuple):
    """What the table has of an architecture: validation accuracy after 12 epochs, test accuracy after 200."""

    valid: float
    test: float


class Outcome(NamedTuple):
    """What one search came to; ``chosen_epoch`` (from 1) is the epoch whose architecture it gives."""

    stopped: bool
    epochs: int
    chosen_epoch: int
    skips: int
    accuracy: TableAccuracy
    seconds: float


class Lookup:
    """Looks an architecture up in ``table``, by the benchmark's protocol for CIFAR-10."""

    def __init__(self, table: Table) -> None:
        task = table.task("cifar10")
        self.rows = {arch: row for row, arch in enumerate(table.archs)}
        self.valid, self.test = table.mean(task.valid), table.mean(task.test)

    def __call__(self, arch: Architecture) -> TableAccuracy:
        row = self.rows[to_text(arch)]
        return TableAccuracy(float(self.valid[row]), float(self.test[row]))


def measurements(run: Run) -> list[SupernetMeasurement]:
    """The epochs of a search. Raises InputError where it failed."""
    (trial,) = run.trials.values()
    if trial.error is not None:
        raise InputError(f"{run.folder}: {trial.error}")
    return [m for m in trial.measurements if isinstance(m, SupernetMeasurement)]


def outcome(run: Run, lookup: Lookup, rule: Callable[[Sequence[Epoch]], int | None] = never) -> Outcome:
    """What a search came to, or would have, stopped by ``rule``."""
    epochs = measurements(run)
    stop = stopping(rule, [Epoch(m.skips, m.eigenvalue) for m in epochs])
    last, chosen = (len(epochs) - 1, len(epochs) - 1) if stop is None else stop
    measured = epochs[chosen]
    seconds = sum(m.seconds for m in epochs[: last + 1])
    return Outcome(stop is not None, last + 1, chosen + 1, measured.skips, lookup(measured.derived), seconds)
