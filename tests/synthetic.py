"""An objective that costs nothing, for the tests of the engines: checkpointed, deterministic, and with faults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from nas.objectives.base import Trained, TrialFailed, trial_folder
from nas.space import Architecture, Categorical, Integer, LogUniform, SearchSpace, When
from nas.trial import Final, Measurement, Trial

SPACE = SearchSpace(
    "toy",
    {
        "depth": Integer(1, 3),
        "width_1": Categorical((16, 32, 64)),
        "width_2": Categorical((16, 32, 64)),
        "rate": LogUniform(1e-3, 1e-1),
    },
    {"width_2": When("depth", at_least=2)},
)


def wait_for_processes(folder: Path, processes: int) -> None:
    """Wait till as many processes have called this with ``folder``: workers do not start at the same time."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < processes:
        assert time.monotonic() < end, f"{processes} processes did not begin in a minute"
        time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class Setup:
    """Makes the objective in whichever process it is called; faults are by trial id.

    Accuracy is a chain of hashes, so that a unit done from a wrong state, or twice, gives other numbers.
    Each unit done appends ``id unit pid`` to the file ``log``.
    """

    log: Path
    seconds: float = 0.0
    together: int = 1  # processes that must have begun before a unit is done
    raises: dict[int, int] = dataclasses.field(default_factory=dict)  # trial -> the unit that fails
    memory: tuple[int, ...] = ()
    nan: tuple[int, ...] = ()
    unsaved: dict[int, int] = dataclasses.field(default_factory=dict)  # trial -> the unit that is not kept
    dies: tuple[int, ...] = ()  # the process is killed in the second unit, once
    dies_always: tuple[int, ...] = ()
    everything_fails: bool = False
    cannot_be_built: bool = False
    dies_when_built: bool = False

    def __call__(self, checkpoints: Path) -> Synthetic:
        if self.cannot_be_built:
            raise FileNotFoundError("no such data set")
        if self.dies_when_built:
            os.kill(os.getpid(), signal.SIGKILL)
        return Synthetic(self, checkpoints)


class Synthetic:
    def __init__(self, setup: Setup, checkpoints: Path) -> None:
        self.setup, self.checkpoints = setup, checkpoints

    def describe(self, trial: Trial) -> tuple[int, int]:
        return 1000 * trial.arch["depth"], 10 * trial.arch["width_1"]

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        last = trial.spent
        try:
            for measurement in self._units(trial):
                last = measurement.budget
                yield measurement
        finally:
            if self.setup.unsaved.get(trial.id) == last:
                raise OSError("no space left")

    def _units(self, trial: Trial) -> Iterator[Measurement]:
        setup = self.setup
        folder = trial_folder(self.checkpoints, trial.id)
        wait_for_processes(setup.log.with_suffix(".begun"), setup.together)
        unit, state = self._restore(folder, trial)
        while unit < trial.budget:
            unit += 1
            time.sleep(setup.seconds)
            if setup.everything_fails or setup.raises.get(trial.id) == unit:
                raise TrialFailed(f"loss is nan in epoch {unit}")
            if trial.id in setup.memory:
                raise MemoryError
            if unit == 2 and trial.id in setup.dies_always:
                os.kill(os.getpid(), signal.SIGKILL)
            if unit == 2 and trial.id in setup.dies:
                marker = setup.log.with_suffix(f".died-{trial.id}")
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            state = hashlib.sha256(f"{state} {unit}".encode()).hexdigest()
            if unit <= trial.spent:  # its measurement is recorded, its checkpoint was lost
                continue
            self._save(folder, unit, state)
            with setup.log.open("a") as log:
                log.write(f"{trial.id} {unit} {os.getpid()}\n")
            accuracy = math.nan if trial.id in setup.nan else round(int(state[:6], 16) / 16**6, 3)
            yield Measurement(
                unit, accuracy, 1 - accuracy, accuracy, 1 - accuracy, train_seconds=setup.seconds
            )

    def trained(self, arch: Architecture, seed: int, epochs: int) -> Trained:
        trial = Trial(id=seed, arch=arch, budget=epochs, seed=seed)
        return Trained(tuple(self(trial)), self.final(arch, seed, epochs))

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        if seed in self.setup.raises:
            raise ValueError(f"seed {seed}\nis bad")
        if seed in self.setup.dies_always:
            os.kill(os.getpid(), signal.SIGKILL)
        return Final(arch, seed, epochs, test_accuracy=seed / 10)

    def _restore(self, folder: Path, trial: Trial) -> tuple[int, str]:
        try:
            saved = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError):
            return 0, f"{trial.arch.to_json()} {trial.seed}"
        if saved["unit"] > trial.spent:  # killed before its measurement was recorded: that unit once more
            return 0, f"{trial.arch.to_json()} {trial.seed}"
        return saved["unit"], saved["state"]

    def _save(self, folder: Path, unit: int, state: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "draft"
        draft.write_text(json.dumps({"unit": unit, "state": state}))
        draft.replace(folder / "state.json")


def units_done(log: Path) -> list[tuple[int, int]]:
    """``(trial, unit)`` in the order done."""
    if not log.exists():
        return []
    return [(int(a), int(b)) for a, b, _ in (line.split() for line in log.read_text().splitlines())]
