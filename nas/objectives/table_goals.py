"""A benchmark table as an objective of several numbers: accuracies with what networks cost on devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from nas.errors import InputError, one_of
from nas.goals import ACCURACY, Goals, Judged, parse_goals
from nas.objectives.base import TrialFailed
from nas.objectives.several import with_values
from nas.objectives.table import TableObjective
from nas.pareto import nondominated
from nas.space import Architecture
from nas.trial import Measurement, MeasurementWithValues, Trial

TRAINED = {ACCURACY: 1}
SIZES = {"params": -1, "macs_per_image": -1}
_KEPT = 2**19  # measurements made once and kept for the next search


class TableGoals:
    """Answers trials by the goals that ``objectives`` and ``constraints`` name: ``valid_accuracy``, ``params``, and the
    table's columns such as ``latency_ms:edgegpu``, each in its own direction.

    A trial costs its training whether or not it keeps the constraints. A network of which a value is not known is a
    failed trial. Raises InputError for what the table does not have.
    """

    def __init__(
        self, objective: TableObjective, objectives: Sequence[str], constraints: Sequence[str]
    ) -> None:
        self.objective, self.space = objective, objective.space
        self.goals: Goals = parse_goals(objectives, constraints, self._sign_of)
        self._measured = functools.lru_cache(maxsize=max(1, _KEPT // objective.units))(self._measure)

    def _sign_of(self, name: str, place: str) -> int:
        known = {**TRAINED, **SIZES}
        if name in SIZES:
            table = self.objective.table
            if table.surrogate is not None:
                raise InputError(f"{place}: the models of table {table.name} do not predict {name}")
            if self.objective.size(self.objective.architectures[0])[0] is None:
                raise InputError(f"{place}: table {table.name} has no {name}")
        if name in known:
            return known[name]
        if ":" not in name:
            columns = self.objective.table.devices
            listed = next(iter(columns.values()), {}) if columns else {}
            raise one_of(f"{place}: table {self.objective.table.name}", name, (*known, *listed))
        return self.objective.device_column(name).direction

    @functools.cached_property
    def _columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.goals.names if name not in TRAINED and name not in SIZES)

    # ---------------------------------------------------------------------------------------------- a search

    @property
    def test_accuracies(self) -> np.ndarray:
        return self.objective.test_accuracies

    def row(self, arch: Architecture) -> int:
        return self.objective.row(arch)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        """See `nas.objectives.base.Objective`."""
        yield from self.measurements(trial.arch, trial.seed)[trial.spent : trial.budget]

    def describe(self, trial: Trial) -> tuple[int | None, int | None]:
        return self.objective.describe(trial)

    def measurements(self, arch: Architecture, seed: int) -> tuple[MeasurementWithValues, ...]:
        """See `TableObjective.measurements`."""
        plain = self.objective.measurements(arch, seed)
        return self._measured(arch, plain)

    def _measure(
        self, arch: Architecture, plain: tuple[Measurement, ...]
    ) -> tuple[MeasurementWithValues, ...]:
        before = self._untrained(arch)
        for name, value in before.items():
            if not math.isfinite(value):
                raise TrialFailed(
                    f"table {self.objective.table.name}: {name} of {self.text(arch)} is not known"
                )
        found = []
        for measurement in plain:
            shown = {name: getattr(measurement, name) for name in TRAINED if name in self.goals.names}
            if any(math.isnan(value) for value in shown.values()):
                raise TrialFailed(
                    f"table {self.objective.table.name}: {' or '.join(shown)} of {self.text(arch)} is not a number"
                )
            found.append(with_values(measurement, self.goals, {**shown, **before}))
        return tuple(found)

    def _untrained(self, arch: Architecture) -> dict[str, float]:
        values = {}
        for name, size in zip(SIZES, self.objective.size(arch), strict=True):
            if name in self.goals.names:
                values[name] = math.nan if size is None else float(size)
        return values | {name: self.objective.device_value(arch, name).value for name in self._columns}

    def text(self, arch: Architecture) -> str:
        return self.space.to_string(arch)

    # ------------------------------------------------------------------------------------------ the judgement

    def tested(self, arch: Architecture) -> Judged:
        """The architecture's, its test accuracy in place of its validation accuracy."""
        values = self._untrained(arch) | {ACCURACY: float(self.test_accuracies[self.row(arch)])}
        return self.goals.judge(values)

    @property
    def front_of(self) -> str:
        """What ``front`` is, in words."""
        if self.objective.table.surrogate is None:
            return "the table's true front"
        return "the front of the table's rows as its models see them, which a search can surpass"

    @functools.cached_property
    def front(self) -> np.ndarray:
        """float64 [network, objective]: the tested gains that no architecture of the table dominates. With models that
        answer for more than its rows a search can find better ones. Raises InputError as `feasible`."""
        return self.feasible[nondominated(self.feasible)]

    @functools.cached_property
    def feasible(self) -> np.ndarray:
        """float64 [network, objective]: the tested gains of all that keep the constraints.

        Raises InputError where none does.
        """
        judged = map(self.tested, self.objective.architectures)
        kept = np.array([found.gains for found in judged if found.violation == 0], float)
        kept = kept.reshape(-1, len(self.goals.objectives))
        kept = kept[np.isfinite(kept).all(axis=1)]
        if not len(kept):
            limits = " ".join(map(str, self.goals.limits))
            raise InputError(
                f"constraint: {limits}: none of the {len(self.objective.architectures):,} architectures of table "
                f"{self.objective.table.name} keeps it"
            )
        return kept
