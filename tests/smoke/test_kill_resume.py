"""The driver killed with SIGKILL, or interrupted, at random moments, and the search resumed each time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nas.record import Record, read_run, record_difference
from nas.run import local
from nas.strategies import STRATEGIES, combined_config
from tests.synthetic import SPACE, Setup, units_done

ROOT = Path(__file__).parents[2]
R = 9
UNITS = {"hyperband": 69, "asha": 30, "evolution": 63}
DRIVER = """
import sys
from pathlib import Path
from tests.smoke.test_kill_resume import search
search(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
"""


def search(folder: Path, engine: str, strategy: str, workers: int, seconds: float) -> None:
    """Begin the search in ``folder`` or go on with it; ``seconds`` is how long a unit takes."""
    config_type: Any = combined_config(STRATEGIES.values())
    config = config_type(epochs=R, trials=None if strategy == "hyperband" else 7, population=4)
    setup = Setup(folder.with_suffix(".log"), seconds=seconds)
    began = (folder / "config.json").exists()
    with (Record.resume if began else Record.create)(folder, {"strategy": strategy}, env={}) as record:
        if engine == "local":
            objective = setup(folder / "checkpoints")
            local.execute(STRATEGIES[strategy](SPACE, config), objective, record, epochs=R)
        else:
            from nas.run import tune

            cluster = tune.Cluster(workers=workers, cpus_per_worker=1)
            tune.execute(STRATEGIES[strategy](SPACE, config), setup, record, epochs=R, cluster=cluster)


class Killer:
    """Runs the driver in a process and ends it in the middle."""

    def __init__(self, folder: Path, engine: str, strategy: str, *, workers: int = 1, seconds: float) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.mark = uuid.uuid4().hex
        self.command = [sys.executable, "-W", "error::UserWarning", "-c", DRIVER]
        self.command += [str(folder), engine, strategy, str(workers), str(seconds)]
        self.ended: set[int] = set()
        self.code: int | None = None  # of the process's exit

    def run_until(self, units: int, how: signal.Signals | None) -> float:
        """Go on until ``units`` are done in all, then send the signal; seconds from that to the end.

        Says which trials had ended when it began must not have been touched again.
        """
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "NAS_TEST_MARK": self.mark}
        before = len(units_done(self.log))
        with (self.folder.with_suffix(".out")).open("ab") as out:
            process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                limit = time.monotonic() + 120
                while process.poll() is None and len(units_done(self.log)) < units:
                    assert time.monotonic() < limit, "no progress"
                    time.sleep(0.002)
                stopped = time.monotonic()
                if how is not None:
                    time.sleep(random.Random(units).uniform(0, 0.03))
                    # Ctrl-C reaches all processes of a terminal, kill -9 the one that it is meant for.
                    with contextlib.suppress(ProcessLookupError):  # the search was over by now
                        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
                self.code = process.wait(60)
            finally:
                process.kill()
        again = {trial for trial, _ in units_done(self.log)[before:]}
        assert not again & self.ended, "a trial that had ended ran again"
        if (self.folder / "config.json").exists():
            self.ended = {t.id for t in read_run(self.folder).trials.values() if t.status != "running"}
        return time.monotonic() - stopped

    def processes(self) -> list[int]:
        """Those that the drivers have left behind."""
        marked = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"NAS_TEST_MARK={self.mark}".encode() in (path / "environ").read_bytes():
                    marked.append(int(path.name))
            except OSError:
                continue
        return marked

    def check(self, kills: int, workers: int = 1) -> None:
        """No measurement was lost or made twice; only what was under way at a kill was done again."""
        run = read_run(self.folder)
        assert all(trial.status != "running" for trial in run.trials.values())
        done = Counter(units_done(self.log))
        for trial in run.trials.values():
            assert [m.budget for m in trial.measurements] == list(range(1, trial.spent + 1))
            assert all(done[trial.id, m.budget] for m in trial.measurements)
        assert sum(done.values()) - len(done) <= kills * workers
        assert self.folder.with_suffix(".out").read_text() == ""


def undisturbed(tmp_path: Path, strategy: str) -> Path:
    search(tmp_path / "undisturbed", "local", strategy, 1, 0.0)
    return tmp_path / "undisturbed"


def test_local_search_goes_on_after_kills(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "run", "local", "hyperband", seconds=0.02)
    for units in (12, 40):
        killer.run_until(units, signal.SIGKILL)
        assert killer.code == -signal.SIGKILL, "the search was over before it was killed"
    killer.run_until(10**9, None)
    assert killer.code == 0
    killer.check(kills=2)
    assert record_difference(undisturbed(tmp_path, "hyperband"), tmp_path / "run") is None


@pytest.mark.slow
def test_ray_search_goes_on_after_a_kill_on_the_other_engine(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "run", "ray", "hyperband", seconds=0.02)
    killer.run_until(20, signal.SIGKILL)
    assert killer.code == -signal.SIGKILL, "the search was over before it was killed"
    search(tmp_path / "run", "local", "hyperband", 1, 0.0)
    killer.check(kills=1)
    assert record_difference(undisturbed(tmp_path, "hyperband"), tmp_path / "run") is None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_interrupted_ray_search_leaves_nothing_behind_and_goes_on(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "run", "ray", "hyperband", seconds=0.02)
    killer.run_until(10, signal.SIGKILL)
    # At once, so that Ray's processes of the killed driver may still be there.
    assert killer.run_until(30, signal.SIGINT) < 20
    assert "KeyboardInterrupt" in (tmp_path / "run.out").read_text()
    (tmp_path / "run.out").write_text("")
    limit = time.monotonic() + 60
    while killer.processes() and time.monotonic() < limit:
        time.sleep(0.1)
    assert killer.processes() == []
    killer.run_until(10**9, None)
    killer.check(kills=2)
    assert record_difference(undisturbed(tmp_path, "hyperband"), tmp_path / "run") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", UNITS)
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_ten_kills_at_random_moments(tmp_path: Path, engine: str, strategy: str) -> None:
    killer = Killer(tmp_path / "run", engine, strategy, seconds=0.02)
    total = UNITS[strategy]
    for units in sorted(random.Random(strategy).sample(range(1, total), 10)):
        killer.run_until(units, signal.SIGKILL)
    killer.run_until(10**9, None)
    killer.check(kills=10)
    assert record_difference(undisturbed(tmp_path, strategy), tmp_path / "run") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_of_a_driver_with_two_workers(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "run", "ray", "hyperband", workers=2, seconds=0.02)
    for units in (5, 18, 33, 60):
        killer.run_until(units, signal.SIGKILL)
    killer.run_until(10**9, None)
    killer.check(kills=4, workers=2)
    whole: dict[int, Any] = dict(read_run(undisturbed(tmp_path, "hyperband")).trials)
    found = dict(read_run(tmp_path / "run").trials)
    assert {i: (t.arch, t.spent, t.score, t.status) for i, t in found.items()} == {
        i: (t.arch, t.spent, t.score, t.status) for i, t in whole.items()
    }
