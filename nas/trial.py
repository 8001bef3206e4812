"""Trial and Measurement: the frozen values that strategies, objectives and records pass around."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from nas.space import Architecture

Status = Literal["running", "completed", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one budget unit of a trial (an epoch, unless the objective says otherwise) showed and cost.

    ``budget`` counts the units done so far; the three ``*_seconds`` are this unit's alone and do not
    overlap. Accuracies are fractions in [0, 1]. There is no test accuracy here: a search cannot see it.
    """

    budget: int
    valid_accuracy: float
    valid_loss: float
    train_accuracy: float
    train_loss: float
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds


@dataclasses.dataclass(frozen=True)
class MeasurementWithTest(Measurement):
    """One point of a test curve too, its seconds among ``evaluate_seconds``.

    For protocols that fix everything beforehand and show such a curve (He et al. 2015, figure 6). Only the
    final training of one architecture yields it, when told to; no search does.
    """

    test_accuracy: float = math.nan
    test_loss: float = math.nan


@dataclasses.dataclass(frozen=True)
class Trial:
    """One architecture under evaluation.

    ``id`` counts from 0 in the order proposed; a promoted trial keeps its id and comes back with a larger
    ``budget`` (units to reach in all, not units to add). ``seed`` fixes initialisation, data order and
    augmentation. ``params`` and ``macs_per_image`` are filled in by the objective.
    """

    id: int
    arch: Architecture
    budget: int
    seed: int
    bracket: int | None = None
    rung: int | None = None
    status: Status = "running"
    measurements: tuple[Measurement, ...] = ()
    params: int | None = None
    macs_per_image: int | None = None
    error: str | None = None

    def replace(self, **changes: Any) -> Trial:
        return dataclasses.replace(self, **changes)

    def add(self, measurement: Measurement) -> Trial:
        return self.replace(measurements=(*self.measurements, measurement))

    @property
    def spent(self) -> int:
        """Budget units done so far."""
        return self.measurements[-1].budget if self.measurements else 0

    @property
    def score(self) -> float:
        """What strategies maximise: the last validation accuracy; -inf for a failed or unmeasured trial."""
        if self.status == "failed" or not self.measurements:
            return -math.inf
        return self.measurements[-1].valid_accuracy
