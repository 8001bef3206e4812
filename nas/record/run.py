"""A run folder's content as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nas.pareto import front
from nas.trial import Final, Measurement, Trial

MAY_DIFFER = (
    "engine",
    "workers",
    "cpus_per_worker",
    "chips_per_trial",
    "gpus_per_worker",
    "address",
    "checkpoint_minutes",
    "steps_per_call",
    "scan_blocks",
    "input",
    "trials_per_program",
    "data_dir",
    "test_seeds",
    "front",
    "log",
)
"""Keys of a run's config that say where and how fast it ran, not what it computed: a resumption may give others, and
a report counts runs that differ in nothing else as one search."""


class Observation(NamedTuple):
    """A measurement in its place in time: ``elapsed_seconds`` is how long the run had been going by then."""

    trial_id: int
    measurement: Measurement
    elapsed_seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run folder. ``history`` has the measurements of all trials in the order recorded.

    ``wall_seconds`` is how long the run was going (time between a crash and its resumption left out);
    the other ``*_seconds`` are sums over the search's trials, on whichever workers they ran.
    """

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    trials: Mapping[int, Trial]
    finals: tuple[Final, ...]
    history: tuple[Observation, ...]
    done: bool
    wall_seconds: float
    compile_seconds: float
    train_seconds: float
    evaluate_seconds: float

    @property
    def is_search(self) -> bool:
        """False for a run that trains one architecture: its trials are the final trainings on their way."""
        return self.config.get("strategy") is not None

    @property
    def strategy(self) -> str:
        return str(self.config["strategy"]) if self.is_search else "training"

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def images(self) -> tuple[Any, ...]:
        """What tells apart the images that accuracies are of: runs with equal ones can be set beside each other."""
        names = ("dataset", "dataset_checksum", "split_seed", "subset", "image_size", "resize")
        return tuple(self.config.get(name) for name in names)

    @property
    def best(self) -> Trial | None:
        """The trial with the highest `Trial.score` among those not failed, whatever its budget.

        The score is the validation accuracy at the trial's last measurement, or the first of several objectives; of
        equals the one on the front, then the lower id. None while nothing was measured that keeps the constraints, if
        there are any.
        """
        if len(self.config.get("goals", ())) > 1:
            return next(iter(self.front), None)
        scored = [trial for trial in self.trials.values() if trial.feasible]
        return max(scored, key=lambda trial: (trial.score, -trial.id), default=None)

    @property
    def best_finals(self) -> tuple[Final, ...]:
        """The final trainings of `best`; of a search for a front there are others. All of a run that is no search."""
        if not self.is_search or self.best is None:
            return self.finals
        return tuple(final for final in self.finals if final.arch == self.best.chosen)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other dominates, see `nas.pareto.front`."""
        return front(self.trials.values())

    @property
    def failed(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials.values() if trial.status == "failed")

    @property
    def epochs_spent(self) -> int:
        """Budget units done by all trials, failed ones too."""
        return sum(trial.spent for trial in self.trials.values())

    @property
    def seconds(self) -> float:
        """Compute seconds of the search: compiling, training and evaluating, summed over workers."""
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds
