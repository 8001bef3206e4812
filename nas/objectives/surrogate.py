"""Searches where a table has but a sample of its space: among its rows alone, or with models fitted to them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InputError
from nas.objectives.table import TableObjective
from nas.space import Architecture, Integer, SearchSpace
from nas.tables import DeviceColumn, DeviceValue, Table
from nas.tables.devices import unit_of
from nas.trial import Final, Measurement, Trial

CLIMBS = 10  # from the best rows, to find what is nearly the surrogate's optimum


def table_objective(
    space: SearchSpace, table: Table, dataset: str | None = None, *, epochs: Sequence[int] | None = None
) -> TableObjective:
    """The objective of a search over ``table``: of its rows alone where it is a sample, by its models where it has
    them. Raises InputError as `TableObjective`."""
    if table.surrogate is not None:
        return SurrogateObjective(space, table, dataset, epochs=epochs)
    return TableObjective(among_rows(space, table) if table.sampled else space, table, dataset, epochs=epochs)


def among_rows(space: SearchSpace, table: Table) -> SearchSpace:
    """The rows of ``table`` that ``space`` holds as a space of its own: one choice, the ``row``, in the table's order.

    Text is that of the architecture; models of the space see the architecture's choices.
    """
    archs: list[Architecture] = []
    for text in table.archs:
        try:
            archs.append(space.from_string(text))
        except InputError:
            continue
    if not archs:
        raise InputError(f"table {table.name}: holds no architecture of {space.name} as it is narrowed")
    row_of = {arch: row for row, arch in enumerate(archs)}
    features = functools.lru_cache(maxsize=len(archs))(lambda row: space.encode(archs[row]))

    def parse(text: str) -> Mapping[str, Any]:
        arch = space.from_string(text)
        if arch not in row_of:
            raise ValueError(f"is none of the {len(archs):,} rows")
        return {"row": row_of[arch]}

    build = space.build
    return SearchSpace(
        name=space.name,
        choices={"row": Integer(0, len(archs) - 1)},
        build=None if build is None else lambda arch, classes: build(archs[arch["row"]], classes),
        format=lambda arch: space.to_string(archs[arch["row"]]),
        parse=parse,
        features=lambda arch: features(arch["row"]),
    )


class SurrogateObjective(TableObjective):
    """Answers trials of ``space`` by the models of ``table.surrogate``, each architecture that is asked for being added
    to the rows; also those that were measured are answered by the models, so that all are on one scale.

    ``optimum`` is the best that steepest ascent finds from the best rows: nobody knows the surrogate's own.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: Table,
        dataset: str | None = None,
        *,
        epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(space, dataclasses.replace(table, sampled=True), dataset, epochs=epochs)
        assert table.surrogate is not None
        if self.units != 1:
            raise InputError(f"table {table.name}: its surrogate knows whole trainings alone")
        self._surrogate = table.surrogate
        self._answers: dict[Architecture, tuple[Measurement, ...]] = {}
        self._order = list(self._rows)
        self._table_rows, self._rows = self._rows, {arch: row for row, arch in enumerate(self._order)}
        self._accuracies = self._surrogate.predict("valid_accuracy", self._order).tolist()
        self._measured_rows = len(self._order)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The rows, which are some of those that it answers for."""
        return tuple(self._order[: self._measured_rows])

    @functools.cached_property
    def mean_training_seconds(self) -> float:
        return float(self._surrogate.predict("train_seconds", self.architectures).mean())

    def row(self, arch: Architecture) -> int:
        if arch not in self._rows:
            self.space.validate(arch)
            self._rows[arch] = len(self._order)
            self._order.append(arch)
            self._accuracies.append(float(self._surrogate.predict("valid_accuracy", [arch])[0]))
        return self._rows[arch]

    def measurements(self, arch: Architecture, seed: int) -> tuple[Measurement, ...]:
        if arch not in self._answers:
            accuracy = self._accuracies[self.row(arch)]
            seconds = float(self._surrogate.predict("train_seconds", [arch])[0])
            nothing = math.nan, math.nan, math.nan
            self._answers[arch] = (
                Measurement(1, accuracy, *nothing, train_seconds=seconds, evaluate_seconds=0.0),
            )
        return self._answers[arch]

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        yield from self.measurements(trial.arch, trial.seed)[trial.spent : trial.budget]

    def size(self, arch: Architecture) -> tuple[int | None, int | None]:
        """As the table has them, for its rows; of others nobody has counted."""
        if (row := self._table_rows.get(arch)) is None:
            return None, None
        size = self.table.sizes[self.valid.dataset]
        return int(size.params[row]), int(size.macs_per_image[row])

    def device_value(self, arch: Architecture, name: str) -> DeviceValue:
        column, row = self.device_column(name), self.row(arch)
        if row < self._measured_rows:
            value = column.values[row]
        else:
            value = self._surrogate.predict(name, [arch])[0]
        return DeviceValue(float(value), column.unit, column.direction)

    def device_column(self, name: str) -> DeviceColumn:
        """Its values are the models' for the rows."""
        if name not in self._devices:
            super().device_column(name)  # raises where there is none
            values = self._surrogate.predict(name, self.architectures)
            self._devices[name] = DeviceColumn(name, values, *unit_of(name))
        return self._devices[name]

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        if epochs != self.final_epochs:
            raise InputError(f"table {self.table.name}: its surrogate knows {self.final_epochs} epochs alone")
        (measured,) = self.measurements(arch, seed)
        return Final(
            arch,
            seed,
            epochs,
            test_accuracy=measured.valid_accuracy,
            valid_accuracy=measured.valid_accuracy,
            train_seconds=measured.train_seconds,
        )

    @property
    def test_accuracies(self) -> list[float]:  # type: ignore[override]
        """By row; they grow with what is asked."""
        return self._accuracies

    def regret(self, arch: Architecture) -> float:
        return self.optimum - self._accuracies[self.row(arch)]

    @functools.cached_property
    def optimum(self) -> float:  # type: ignore[override]
        best = np.argsort(self._accuracies[: self._measured_rows])[::-1][:CLIMBS]
        return max(self._climbed(self._order[int(row)]) for row in best)

    def _climbed(self, arch: Architecture) -> float:
        """The best accuracy on the way of steepest ascent from ``arch``."""
        best = self._accuracies[self._rows[arch]]
        while True:
            near = self.space.neighbours(arch)
            values = self._surrogate.predict("valid_accuracy", near)
            if not len(near) or values.max() <= best:
                return best
            arch, best = near[int(values.argmax())], float(values.max())
