"""A benchmark table as an objective: what a training showed and cost when somebody ran it, in microseconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.space import Architecture, SearchSpace
from nas.tables import Column, Curve, DeviceColumn, DeviceValue, Table
from nas.trial import Final, Measurement, Trial

_KEPT = 2**19  # measurements made once and kept for the next search


class TableObjective:
    """Answers trials of ``space`` from ``table``, at the cost the table says.

    A budget unit is one step along ``epochs``: by default all epochs that the validation column has, in which
    case a unit is an epoch where it has every epoch, and a whole training where it has the last one alone.
    ``measurement.budget`` counts units; ``epochs[budget - 1]`` is the epoch. A unit costs the training from the
    one epoch to the other and one validation.

    The noise is the table's: of n repetitions of a training a trial sees number ``seed % n``, in all its units.

    Inputs:
      valid: the column a search sees, a ``valid_accuracy``; test: what a chosen architecture is judged by, a
        ``test_accuracy``. None: the table's own protocol for ``dataset`` (None: its first).
      epochs: rising ones of the validation column's, the steps of the budget; None: all.
      test_epoch: of the test column, what ``regret`` and ``final_epochs`` mean; None: its last.

    Raises InputError: a column or epoch that the table does not have (the message names those that it has), a
    validation column without costs, another space's table.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: Table,
        dataset: str | None = None,
        *,
        valid: Column | None = None,
        test: Column | None = None,
        epochs: Sequence[int] | None = None,
        test_epoch: int | None = None,
    ) -> None:
        if table.space != space.name:
            raise InputError(f"table {table.name}: is of the space {table.space}, not {space.name}")
        if valid is None or test is None:
            task = table.task(dataset)
            valid, test = valid or task.valid, test or task.test
        if valid.quantity != "valid_accuracy":
            raise InputError(f"table {table.name}: a search sees a valid_accuracy, not {valid}")
        if test.quantity != "test_accuracy":
            raise InputError(f"table {table.name}: a choice is judged by a test_accuracy, not {test}")
        self.space, self.table, self.valid, self.test = space, table, valid, test
        self.epochs = self._steps(table.require(valid), epochs)
        known = table.require(test, test_epoch)
        self.final_epochs = known[-1] if test_epoch is None else test_epoch
        self._training = (valid.dataset, valid.trained)
        if self._training not in table.costs:
            trained = ", ".join(f"{name}/{number}" for name, number in table.costs) or "nothing"
            raise InputError(
                f"table {table.name}: has no seconds of {valid.dataset}/{valid.trained}, only of {trained}: "
                f"{table.notes.get('seconds', 'its notes do not say why')}"
            )
        self._rows = _rows(space, table)
        self._devices: dict[str, DeviceColumn] = {}
        self._measured = functools.lru_cache(maxsize=max(1, _KEPT // self.units))(self._measure)

    def _steps(self, known: tuple[int, ...], wanted: Sequence[int] | None) -> tuple[int, ...]:
        if wanted is None:
            return known
        for epoch in wanted:
            self.table.require(self.valid, epoch)
        if not wanted or list(wanted) != sorted(set(wanted)):
            raise InputError(f"table {self.table.name}: epochs={list(wanted)} are not rising epochs")
        return tuple(wanted)

    @property
    def units(self) -> int:
        """The most budget that a trial can have."""
        return len(self.epochs)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Those of the space that the table has, in its order."""
        return tuple(self._rows)

    @functools.cached_property
    def mean_training_seconds(self) -> float:
        """What a trial of the whole budget costs, averaged over the space and its repetitions."""
        train, evaluate = (seconds[list(self._rows.values())] for seconds in self.table.costs[self._training])
        return float(np.nanmean(train) * self.epochs[-1] + np.nanmean(evaluate) * self.units)

    @property
    def optimum(self) -> float:
        """The best mean test accuracy of the space."""
        return self._best

    # ---------------------------------------------------------------------------------------------- a search

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        """See `nas.objectives.base.Objective`. TrialFailed where the table does not have the architecture."""
        if trial.budget > self.units:
            raise InputError(
                f"table {self.table.name}: a budget of {trial.budget} is more than the {self.units} units "
                f"of {self.valid}"
            )
        yield from self.measurements(trial.arch, trial.seed)[trial.spent : trial.budget]

    def measurements(self, arch: Architecture, seed: int) -> tuple[Measurement, ...]:
        """What all units of a trial show, the first ``budget`` of which are its; made once for all searches."""
        row = self.row(arch)
        return self._measured(row, seed % self._repetitions[row])

    def describe(self, trial: Trial) -> tuple[int | None, int | None]:
        """Parameters and multiply-adds as the table has them."""
        return self.size(trial.arch)

    def size(self, arch: Architecture) -> tuple[int | None, int | None]:
        """Parameters and multiply-adds of an image; None where the table does not say."""
        size = self.table.sizes.get(self.valid.dataset)
        if size is None:
            return None, None
        row = self.row(arch)
        return int(size.params[row]), int(size.macs_per_image[row])

    def device_value(self, arch: Architecture, name: str) -> DeviceValue:
        """What a network costs on a device by the table's column ``name``, such as ``latency_ms:edgegpu``, with its
        unit and its direction (1: more is better, -1: less); the value is NaN where nobody measured it.

        InputError where the table has no such column (it names those that there are), TrialFailed where it does not
        have the architecture.
        """
        column = self.device_column(name)
        return DeviceValue(float(column.values[self.row(arch)]), column.unit, column.direction)

    def device_column(self, name: str) -> DeviceColumn:
        """The whole column, for the data set that the search is of. Raises InputError."""
        if name not in self._devices:
            self._devices[name] = self.table.device(name, self.test.dataset if self.table.devices else None)
        return self._devices[name]

    def row(self, arch: Architecture) -> int:
        """The architecture's row in the table; TrialFailed where it has none."""
        try:
            return self._rows[arch]
        except KeyError:
            raise TrialFailed(
                f"table {self.table.name}: has no {self.space.to_string(arch)} among its {len(self._rows)}"
            ) from None

    # ------------------------------------------------------------------------------------------ the judgement

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """The test accuracy after ``epochs`` epochs (as the test column counts them) of repetition ``seed``.

        InputError where the test column does not have that epoch.
        """
        accuracy = self.table.at(self.test, epochs)
        try:
            row = self.row(arch)
        except TrialFailed as failure:
            return Final(arch, seed, epochs, error=str(failure))
        known = np.flatnonzero(~np.isnan(accuracy[row]))
        if not len(known):
            return Final(
                arch, seed, epochs, error=f"table {self.table.name}: {self.test}@{epochs} is not known"
            )
        repetition = int(known[seed % len(known)])

        def sibling(quantity: str) -> float:
            column = self.test.sibling(quantity)
            try:
                return _shortest(self.table.at(column, epochs)[row, repetition])
            except InputError:
                return math.nan

        cost = self.table.costs.get((self.test.dataset, self.test.trained))
        train, evaluate = (0.0, 0.0)
        if cost is not None:
            train, evaluate = (float(_of(seconds, row, repetition)) for seconds in cost)
        params, macs_per_image = self.size(arch)
        return Final(
            arch,
            seed,
            epochs,
            test_accuracy=_shortest(accuracy[row, repetition]),
            test_loss=sibling("test_loss"),
            valid_accuracy=sibling("valid_accuracy"),
            valid_loss=sibling("valid_loss"),
            params=params,
            macs_per_image=macs_per_image,
            train_seconds=train * epochs,
            evaluate_seconds=evaluate,
        )

    @functools.cached_property
    def test_accuracies(self) -> np.ndarray:
        """float64 [row]: the test accuracy at ``final_epochs``, averaged over repetitions; NaN outside the space."""
        accuracies = np.full(len(self.table.archs), math.nan)
        rows = list(self._rows.values())
        accuracies[rows] = self.table.mean(self.test, self.final_epochs)[rows]
        return accuracies

    def regret(self, arch: Architecture) -> float:
        """How far ``arch`` is, in mean test accuracy, from the best of the space."""
        return float(self._best - self.test_accuracies[self.row(arch)])

    @functools.cached_property
    def _best(self) -> float:
        return float(np.nanmax(self.test_accuracies))

    # --------------------------------------------------------------------------------------------- the numbers

    @functools.cached_property
    def _curves(self) -> tuple[np.ndarray, ...]:
        """float32 [row, repetition, unit] each, in the order of Measurement's fields; a column not there is NaN."""
        curve = self.table.curve(self.valid)
        steps = [curve.epochs.index(epoch) for epoch in self.epochs]
        valid = curve.values[:, :, steps]

        def sibling(quantity: str) -> np.ndarray:
            column = self.valid.sibling(quantity)
            if column not in self.table.columns:
                return np.broadcast_to(np.float32(np.nan), valid.shape)
            return _along(self.table.curve(column), self.epochs)

        return (valid, sibling("valid_loss"), sibling("train_accuracy"), sibling("train_loss"))

    @functools.cached_property
    def _repetitions(self) -> list[int]:
        """Of each row; at least 1, so that a row without any fails by what it holds."""
        known = (~np.isnan(self._curves[0])).all(axis=2)
        return np.maximum(known.sum(axis=1), 1).tolist()

    def _measure(self, row: int, repetition: int) -> tuple[Measurement, ...]:
        cost = self.table.costs[self._training]
        train, evaluate = (_shortest(_of(seconds, row, repetition)) for seconds in cost)
        before = (0, *self.epochs)
        if np.isnan(self._curves[0][row, repetition]).any():
            raise TrialFailed(
                f"table {self.table.name}: {self.valid} of {self.table.archs[row]} is not known"
            )
        values = zip(*(_shortest_all(curve[row, repetition]) for curve in self._curves), strict=True)
        return tuple(
            Measurement(
                unit + 1, *shown, train_seconds=train * (epoch - before[unit]), evaluate_seconds=evaluate
            )
            for unit, (epoch, shown) in enumerate(zip(self.epochs, values, strict=True))
        )


def _rows(space: SearchSpace, table: Table) -> dict[Architecture, int]:
    """The rows of the architectures that ``space`` holds: it may be narrower than the table."""
    rows, wrong = {}, None
    for row, text in enumerate(table.archs):
        try:
            rows[space.from_string(text)] = row
        except InputError as error:
            wrong = error
    if not rows:
        raise InputError(
            f"table {table.name}: holds no architecture of {space.name}: {wrong or 'it is empty'}"
        )
    return rows


def _along(curve: Curve, epochs: tuple[int, ...]) -> np.ndarray:
    """The curve at ``epochs``, NaN where it does not have them."""
    at = {epoch: i for i, epoch in enumerate(curve.epochs)}
    values = np.full((*curve.values.shape[:2], len(epochs)), np.nan, np.float32)
    for unit, epoch in enumerate(epochs):
        if epoch in at:
            values[:, :, unit] = curve.values[:, :, at[epoch]]
    return values


def _of(seconds: np.ndarray, row: int, repetition: int) -> float:
    """One training's seconds; a table may have them once for all repetitions."""
    return seconds[row, min(repetition, seconds.shape[1] - 1)]


def _shortest(value: float) -> float:
    """A float32 as the Python number that people wrote: 0.9437, not 0.9437000155."""
    return round(float(value), 7)


def _shortest_all(values: np.ndarray) -> list[float]:
    return [round(value, 7) for value in values.tolist()]
