"""Trial, Measurement and Final: the frozen values that strategies, objectives and records pass around."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from nas.space import Architecture

Status = Literal["running", "completed", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one budget unit of a trial (an epoch, unless the objective says otherwise) showed and cost.

    ``budget`` counts the units done so far; the three ``*_seconds`` are this unit's alone and do not
    overlap; ``hidden_compile_seconds`` passed while something else trained, and nobody waited for them. Accuracies are
    fractions in [0, 1]. There is no test accuracy here: a search cannot see it.
    """

    budget: int
    valid_accuracy: float
    valid_loss: float
    train_accuracy: float
    train_loss: float
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    hidden_compile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds

    @property
    def value(self) -> float:
        """What a search maximises."""
        return self.valid_accuracy

    @property
    def gains(self) -> tuple[float, ...]:
        """The objectives, all to be maximised: one, but for a `MeasurementWithValues`."""
        return (self.value,)

    @property
    def violation(self) -> float:
        """How far it is from keeping the constraints; 0 where it does, and where there are none."""
        return 0.0

    @property
    def last(self) -> bool:
        """Whether the objective ends its trial here, whatever budget is left."""
        return False

    def fields(self) -> dict[str, Any]:
        """Its fields as plain values, which JSON knows but for NaN; see `measurement_of`."""
        fields = dataclasses.asdict(self)
        if not self.hidden_compile_seconds:
            del fields["hidden_compile_seconds"]
        return fields


@dataclasses.dataclass(frozen=True)
class ScoreMeasurement(Measurement):
    """What a training-free score says: ``score``, higher is better; nothing was trained, so the rest is NaN."""

    score: float = math.nan

    @classmethod
    def of(cls, budget: int, score: float, *, evaluate_seconds: float) -> ScoreMeasurement:
        nothing = dict.fromkeys(("valid_accuracy", "valid_loss", "train_accuracy", "train_loss"), math.nan)
        return cls(budget, **nothing, evaluate_seconds=evaluate_seconds, score=score)

    @property
    def value(self) -> float:
        return self.score


@dataclasses.dataclass(frozen=True)
class MeasurementWithTest(Measurement):
    """One point of a test curve too, its seconds among ``evaluate_seconds``.

    For protocols that fix everything beforehand and show such a curve (He et al. 2015, figure 6). Only the
    final training of one architecture yields it, when told to; no search does.
    """

    test_accuracy: float = math.nan
    test_loss: float = math.nan


INFEASIBLE = -1e30
"""What a search maximises is at most this where a constraint is violated."""


@dataclasses.dataclass(frozen=True)
class MeasurementWithValues(Measurement):
    """Of a search with several objectives, or with constraints (`nas.goals.Goals`).

    ``values`` are what was measured, by name, as it is, with what belongs to it (``latency_ms_low``); ``signed`` the
    objectives in their order, turned so that more is better; ``violated`` is 0 where all constraints are kept, else
    the sum of the shares of their bounds by which they are missed. ``untrained``: they are missed by what is known
    before a training, so there was none; the accuracies and losses are NaN.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    signed: tuple[float, ...] = ()
    violated: float = 0.0
    untrained: bool = False

    @property
    def value(self) -> float:
        """The first objective; below that of everything that keeps the constraints where this does not, the lower
        the more they are violated (Deb 2000)."""
        return self.signed[0] if self.violated == 0 else INFEASIBLE * (1 + self.violated)

    @property
    def gains(self) -> tuple[float, ...]:
        return self.signed

    @property
    def violation(self) -> float:
        return self.violated

    @property
    def last(self) -> bool:
        return self.untrained

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"values": dict(self.values), "signed": list(self.signed)}


def values_text(values: Mapping[str, float]) -> str:
    """``valid_accuracy=0.91 latency_ms=4.2``."""
    return " ".join(f"{name}={value:.5g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True)
class SupernetMeasurement(Measurement):
    """An epoch of a search with shared weights: what the supernet showed, and what the search came to.

    ``derived`` is the architecture that the search would end with here; a trial of settings of such a search
    stands for it (`Trial.chosen`). ``weights`` has that of each value (as text) of each open choice in the mixture
    without noise, ``entropy`` their mean entropy as a share of the largest, ``skips`` how many skip connections
    ``derived`` has (in its normal cell where it has several), ``eigenvalue`` the dominant one of the validation
    loss's second derivatives by the alphas: NaN where it was not computed. ``stopped``: by the search's own rule.
    """

    derived: Architecture = dataclasses.field(default_factory=lambda: Architecture({}))
    weights: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    entropy: float = math.nan
    skips: int = 0
    eigenvalue: float = math.nan
    stopped: bool = False

    @property
    def last(self) -> bool:
        return self.stopped

    def fields(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self) if field.name != "hidden_compile_seconds"]
        mine = {name: getattr(self, name) for name in names}
        weights = {name: dict(of) for name, of in self.weights.items()}
        return mine | {"derived": dict(self.derived), "weights": weights}


def measurement_kind(fields: Collection[str]) -> type[Measurement]:
    """Which kind of measurement has ``fields``."""
    own = {
        "derived": SupernetMeasurement,
        "values": MeasurementWithValues,
        "test_accuracy": MeasurementWithTest,
        "score": ScoreMeasurement,
    }
    return next((kind for name, kind in own.items() if name in fields), Measurement)


def measurement_of(fields: Mapping[str, Any]) -> Measurement:
    """The inverse of `Measurement.fields`, of whichever kind it was."""
    kind = measurement_kind(fields)
    if kind is SupernetMeasurement:
        return kind(**{**fields, "derived": Architecture.from_json(fields["derived"])})
    if kind is MeasurementWithValues:
        return kind(**{**fields, "signed": tuple(fields["signed"])})
    return kind(**fields)


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
    def ended(self) -> bool:
        """Whether its objective has ended it, by its last measurement."""
        return bool(self.measurements) and self.measurements[-1].last

    @property
    def chosen(self) -> Architecture:
        """The architecture that the trial stands for: its own, or what its search with shared weights derived."""
        newest = self.measurements[-1] if self.measurements else None
        return newest.derived if isinstance(newest, SupernetMeasurement) else self.arch

    @property
    def score(self) -> float:
        """What strategies maximise: `Measurement.value`, the validation accuracy or the training-free score of the
        last measurement; -inf for a failed or unmeasured trial."""
        if self.status == "failed" or not self.measurements:
            return -math.inf
        return self.measurements[-1].value

    @property
    def gains(self) -> tuple[float, ...]:
        """The objectives at the last measurement, all to be maximised; none for a failed or unmeasured trial."""
        return () if self.status == "failed" or not self.measurements else self.measurements[-1].gains

    @property
    def values(self) -> Mapping[str, float]:
        """What a `MeasurementWithValues` has at the last measurement; else nothing."""
        newest = self.measurements[-1] if self.measurements else None
        return newest.values if isinstance(newest, MeasurementWithValues) else {}

    @property
    def feasible(self) -> bool:
        """Whether it was measured, did not fail and keeps the constraints, if there are any."""
        return math.isfinite(self.score) and self.measurements[-1].violation == 0

    @property
    def valid_accuracy(self) -> float:
        """At the last measurement; NaN for a failed, unmeasured or merely scored trial."""
        if self.status == "failed" or not self.measurements:
            return math.nan
        return self.measurements[-1].valid_accuracy


@dataclasses.dataclass(frozen=True)
class Final:
    """One training of a chosen architecture to the end; beside a `MeasurementWithTest`, which it must be
    told to make on its way, the only place where test results appear.

    Accuracies are fractions in [0, 1]. A training that failed has its reason in ``error`` and NaN results.
    """

    arch: Architecture
    seed: int
    epochs: int
    test_accuracy: float = math.nan
    test_loss: float = math.nan
    valid_accuracy: float = math.nan
    valid_loss: float = math.nan
    params: int | None = None
    macs_per_image: int | None = None
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    error: str | None = None
    evaluation: str = "centre"  # how test images were seen: nas.training.config.EVALUATIONS
    test_top5_accuracy: float = math.nan  # of sets of at least 10 classes

    @property
    def seconds(self) -> float:
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds
