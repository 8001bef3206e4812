"""What is no trial's fault, and what is: a full disk, a call of sys.exit."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.errors import is_disk_full
from nas.objectives.base import TrialFailed
from nas.record import Record, Run, record_difference
from nas.run import local
from nas.strategies import STRATEGIES, StrategyConfig
from nas.trial import Measurement, Trial
from tests.synthetic import SPACE


class Objective:
    """Measures one half; ``fault()`` is called before the second unit of trial 2."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self.fault = fault

    def describe(self, trial: Trial) -> tuple[int, int]:
        return 1, 1

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        for unit in range(trial.spent + 1, trial.budget + 1):
            if (trial.id, unit) == (2, 2):
                self.fault()
            yield Measurement(unit, 0.5, 1.0, 0.5, 1.0)


def fine() -> None:
    pass


def operating_system() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/runs/x/checkpoints/2")


def tensorstore() -> None:
    raise ValueError(
        "RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: ENOSPC No space left on device]"
    )


def in_one_line() -> None:
    try:
        tensorstore()
    except ValueError as error:
        raise TrialFailed("RESOURCE_EXHAUSTED: Error writing local file") from error


def exits() -> None:
    sys.exit(5)


def search(folder: Path, fault: Callable[[], None], engine: str = "local") -> Run:
    opened = Record.resume if folder.exists() else Record.create
    strategy = STRATEGIES["random"](SPACE, StrategyConfig(trials=4, epochs=3))
    with opened(folder, {}, env={}, fsync=False) as record:
        if engine == "local":
            return local.execute(strategy, Objective(fault), record, epochs=3)
        from nas.run import tune

        def make(checkpoints: Path) -> Any:
            return Objective(fault)

        return tune.execute(strategy, make, record, epochs=3, cluster=tune.Cluster(1, 1))


ENGINES = ["local", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", [operating_system, tensorstore, in_one_line])
def test_a_full_disk_ends_the_search_and_leaves_its_trials_open(
    tmp_path: Path, fault: Callable[[], None], engine: str
) -> None:
    if engine == "ray" and fault is not tensorstore:
        pytest.skip("one is enough: Ray takes seconds to start")
    with pytest.raises(OSError, match="No space left on device") as full:
        search(tmp_path / "run", fault, engine)
    assert full.value.errno == errno.ENOSPC
    with Record.resume(tmp_path / "run", {}, env={}, fsync=False) as record:
        assert [(trial.status, trial.spent) for trial in record.trials.values()] == [
            ("completed", 3), ("completed", 3), ("running", 1)
        ]  # fmt: skip
    search(tmp_path / "run", fine, engine)
    search(tmp_path / "whole", fine)
    assert record_difference(tmp_path / "run", tmp_path / "whole") is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_calls_exit_is_a_failed_trial(tmp_path: Path, engine: str) -> None:
    run = search(tmp_path / "run", exits, engine)
    assert [trial.status for trial in run.trials.values()] == [
        "completed",
        "completed",
        "failed",
        "completed",
    ]
    assert run.trials[2].error == "it called sys.exit(5)"


def test_memory_that_does_not_suffice_is_no_full_disk() -> None:
    assert not is_disk_full(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"))
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(None)
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_disk_full(first)
