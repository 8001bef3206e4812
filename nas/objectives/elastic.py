"""A trained elastic supernet as an objective: a sub-network is worth what it shows with inherited weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.goals import Goals
from nas.nn.bridge import build
from nas.objectives.base import TrialFailed
from nas.objectives.quantities import TRAINED, Quantities, QuantitiesSetup, check_finite
from nas.objectives.several import NOT_TRAINED, with_values
from nas.objectives.train import Size, size_of
from nas.oneshot.elastic import Elastic
from nas.oneshot.elastic_training import ElasticSettings, ElasticTraining
from nas.space import Architecture, SearchSpace
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.loop import Data, on_device
from nas.training.programs import timed
from nas.trial import Measurement, Trial


@dataclasses.dataclass(frozen=True)
class ElasticSetup:
    """What a worker needs to build an `ElasticObjective`: settings, and the folder of the supernet's checkpoints.

    ``vary`` are the elastic choices, by default all of the space; ``quantities`` measures what ``goals`` need beside
    the accuracy, such as ``macs_per_image<2e6`` or a measured latency.
    """

    space: SearchSpace
    data: DataConfig
    settings: ElasticSettings
    supernet: Path
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    seed: int = 0
    vary: tuple[str, ...] = ()
    goals: Goals | None = None
    quantities: QuantitiesSetup | None = None

    def fresh(self) -> tuple[ElasticTraining, Data]:
        """The supernet before its training, and the validation images."""
        dataset = self.data.load()
        elastic = Elastic(self.space, dataset.image_shape, dataset.num_classes, self.vary)
        train, valid = (on_device(of, dataset.mean, dataset.std) for of in (dataset.train, dataset.valid))
        return ElasticTraining(elastic, self.settings, train, self.training, seed=self.seed), valid

    def __call__(self, checkpoints: Path | None = None) -> ElasticObjective:
        """The objective, which keeps no checkpoints of its own. Raises InputError where there is no supernet."""
        training, valid = self.fresh()
        keeper = Checkpoints(self.supernet)
        try:
            if not training.restore(keeper):
                raise InputError(f"{self.supernet}: holds no supernet of these settings")
        finally:
            keeper.close()
        quantities = None if self.quantities is None else self.quantities()
        return ElasticObjective(training, valid, self.goals, quantities)


class ElasticObjective:
    """Recalibrates a trial's sub-network and measures its accuracy on the validation images: one unit of budget.

    With ``goals`` a measurement has all their quantities; a sub-network that violates a constraint by what is known
    without the supernet is not evaluated, as in `nas.objectives.several`.
    """

    def __init__(
        self,
        training: ElasticTraining,
        valid: Data,
        goals: Goals | None = None,
        quantities: Quantities | None = None,
    ) -> None:
        needed = set(goals.names) - set(TRAINED) if goals else set()
        if needed and quantities is None:
            raise InputError(f"objective: {', '.join(sorted(needed))} needs quantities to be measured")
        self.training, self.valid, self.goals, self.quantities = training, valid, goals, quantities

    def describe(self, trial: Trial) -> Size:
        elastic = self.training.elastic
        return size_of(build(elastic.space, trial.arch, elastic.num_classes), elastic.image_shape)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        """See `nas.objectives.base.Objective`; further units of budget say the same."""
        try:
            first, seconds = timed(lambda: self.measured(trial.arch))
        except InputError as error:
            raise TrialFailed(str(error)) from None
        for unit in range(trial.spent, trial.budget):
            yield dataclasses.replace(first, budget=unit + 1, evaluate_seconds=seconds)
            seconds = 0.0

    def measured(self, arch: Architecture) -> Measurement:
        """Of one sub-network. Raises InputError where it is none, TrialFailed where a quantity cannot be had."""
        known = {} if self.quantities is None else dict(self.quantities(arch).values)
        goals = self.goals
        if goals is not None and goals.judge(known).violation:
            return with_values(Measurement(1, **NOT_TRAINED), goals, known, untrained=True)
        shown = self.training.evaluate(arch, self.valid)
        fields = NOT_TRAINED | {"valid_accuracy": shown.accuracy, "valid_loss": shown.loss}
        measurement = Measurement(1, **fields)
        if goals is None:
            return measurement
        trained = {name: fields[name] for name in TRAINED if name in goals.names}
        check_finite(trained, goals.names)
        return with_values(measurement, goals, {**trained, **known})
