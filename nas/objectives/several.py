"""Several objectives, and constraints, of one trial: a training with what is known of its network beforehand."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.goals import Goals
from nas.objectives.base import TrialFailed
from nas.objectives.quantities import TRAINED, Measured, QuantitiesSetup, check_finite
from nas.objectives.train import TrainObjective, TrainSetup
from nas.space import Architecture
from nas.training import processes
from nas.trial import Final, Measurement, MeasurementWithValues, Trial

NOT_TRAINED = dict.fromkeys(("valid_accuracy", "valid_loss", "train_accuracy", "train_loss"), math.nan)


@dataclasses.dataclass(frozen=True)
class SeveralSetup:
    """What a worker needs to build a `SeveralObjective`; called with the checkpoint folder."""

    goals: Goals
    train: TrainSetup
    quantities: QuantitiesSetup

    @property
    def trains(self) -> bool:
        """Whether any of the goals needs trained networks."""
        return any(name in TRAINED for name in self.goals.names)

    def __call__(self, checkpoints: Path | None) -> SeveralObjective:
        return SeveralObjective(self, checkpoints)


class SeveralObjective:
    """A trial's network is measured untrained, then trained if a goal needs that.

    Where what is known before the training violates a constraint there is none: one measurement without accuracies
    ends the trial, and ranks below all that keep the constraints. Each further budget that a strategy gives such a
    trial says the same again. What was measured before is taken from the trial's first measurement.
    """

    def __init__(self, setup: SeveralSetup, checkpoints: Path | None) -> None:
        self.setup, self.checkpoints = setup, checkpoints
        self._quantities = setup.quantities()

    @functools.cached_property
    def training(self) -> TrainObjective:
        return TrainObjective(self.setup.train, self.checkpoints)

    def describe(self, trial: Trial) -> tuple[int, int] | tuple[None, None]:
        return self._quantities.size(trial.arch)

    def __call__(self, trial: Trial) -> Iterator[MeasurementWithValues]:
        """See `nas.objectives.base.Objective`. TrialFailed where a goal is not a number."""
        goals, seconds = self.setup.goals, 0.0
        newest = trial.measurements[-1] if trial.measurements else None
        if isinstance(newest, MeasurementWithValues):
            before = {name: value for name, value in newest.values.items() if name not in TRAINED}
        else:
            before, seconds = self._known(trial.arch)
        violated = goals.judge(before).violation
        if violated or not self.setup.trains:
            for unit in range(trial.spent, trial.budget):
                measurement = Measurement(unit + 1, **NOT_TRAINED, evaluate_seconds=seconds)
                yield with_values(measurement, goals, before, untrained=self.setup.trains)
                seconds = 0.0
            return
        for measurement in self.training(trial):
            shown = {name: getattr(measurement, name) for name in TRAINED if name in goals.names}
            check_finite(shown, goals.names, f" after {measurement.budget} units")
            spent = measurement.evaluate_seconds + seconds
            measurement = dataclasses.replace(measurement, evaluate_seconds=spent)
            yield with_values(measurement, goals, {**shown, **before})
            seconds = 0.0

    def _known(self, arch: Architecture) -> Measured:
        """Of several processes the first one measures, for all: two would measure two latencies, and part ways."""
        if not processes.joined():
            return self._quantities(arch)
        told: Any = None
        if processes.is_writer():
            try:
                told = self._quantities(arch)
            except TrialFailed as failure:
                told = str(failure)
        told = processes.agreed(told)
        if isinstance(told, str):
            raise TrialFailed(told)
        return Measured(*told)

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """See `TrainObjective.final`."""
        return self.training.final(arch, seed, epochs)


def with_values(
    measurement: Measurement, goals: Goals, values: Mapping[str, float], *, untrained: bool = False
) -> MeasurementWithValues:
    """``measurement`` with what the goals make of ``values``."""
    judged = goals.judge(values)
    return MeasurementWithValues(
        **{field.name: getattr(measurement, field.name) for field in dataclasses.fields(Measurement)},
        values=dict(values),
        signed=judged.gains,
        violated=judged.violation,
        untrained=untrained,
    )
