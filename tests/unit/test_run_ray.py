"""The engine on Ray Tune. One Ray serves all tests of this file: it takes seconds to start."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private import ray_constants

from nas.cores import local_cores
from nas.errors import InputError
from nas.record import Record, Run, record_difference
from nas.run import local, tune
from nas.run.driver import SearchState
from nas.run.tune import Cluster
from nas.run.tune.cluster import check_address, private_folder, worker_environment
from nas.run.tune.search import _Work
from nas.run.tune.worker import from_config
from nas.strategies import STRATEGIES, StrategyConfig, combined_config
from nas.trial import Measurement, Trial
from tests.synthetic import SPACE, Setup, units_done, wait_for_processes

PLACE = re.compile(r" \(\w+\.py:\d+\)$")  # of the code that raised
R = 9
Config: Any = combined_config(STRATEGIES.values())
ONE = Cluster(workers=1, cpus_per_worker=1)
TWO = Cluster(workers=2, cpus_per_worker=1)


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)  # as where ray was imported before nas
        with tune.session(TWO):
            yield


def search(
    folder: Path,
    strategy: str,
    config: StrategyConfig,
    *,
    engine: str = "ray",
    cluster: Cluster = ONE,
    total_epochs: int | None = None,
    each: int = 1,
    resume: bool = False,
    **faults: Any,
) -> Run:
    setup = Setup(folder.with_suffix(".log"), **faults)
    opened = Record.resume if resume else Record.create
    searcher = STRATEGIES[strategy](SPACE, config)
    told: Any = {"epochs": config.epochs, "total_epochs": total_epochs, "trials_per_program": each}
    with opened(folder, {}, env={}, fsync=False) as record:
        if engine == "local":
            return local.execute(searcher, setup(folder / "checkpoints"), record, **told)
        return tune.execute(searcher, setup, record, cluster=cluster, **told)


FAULTS: dict[str, Any] = {"raises": {2: 1, 5: 3}, "memory": (4,), "nan": (7,), "unsaved": {1: 1, 6: 3}}
SEARCHES = [
    pytest.param("grid", Config(epochs=R), 40, {}, marks=pytest.mark.slow),
    pytest.param("random", Config(epochs=R), 31, FAULTS),  # without an end but its budget's
    pytest.param(
        "successive_halving", Config(epochs=R, eta=2, trials=11), None, FAULTS, marks=pytest.mark.slow
    ),
    # Trial 8 is the last of the second rung of the first bracket, which its failure brings to its end.
    pytest.param(
        "hyperband", Config(epochs=R, seed=3), None, FAULTS | {"raises": {2: 1, 8: 2}, "unsaved": {}}
    ),
    # Spent where a rung ends.
    pytest.param("hyperband", Config(epochs=R), 9, {}, marks=pytest.mark.slow),
    pytest.param("asha", Config(epochs=R, trials=12), None, FAULTS, marks=pytest.mark.slow),
    pytest.param("tpe", Config(epochs=R, trials=7, startup=4), None, {}, marks=pytest.mark.slow),
    pytest.param("evolution", Config(epochs=R, population=3), 60, FAULTS, marks=pytest.mark.slow),
    pytest.param("local_search", Config(epochs=3, trials=9), None, FAULTS, marks=pytest.mark.slow),
    pytest.param("reinforce", Config(epochs=3, trials=7), None, FAULTS, marks=pytest.mark.slow),
    pytest.param(
        "bananas",
        Config(epochs=3, trials=9, startup=3, refit=2),
        None,
        FAULTS,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "bohb", Config(epochs=R, iterations=2, random_fraction=0.0), None, FAULTS, marks=pytest.mark.slow
    ),
    pytest.param("nsga2", Config(epochs=3, trials=9, population=3), None, FAULTS, marks=pytest.mark.slow),
    pytest.param(
        "mo_evolution", Config(epochs=3, trials=9, population=3), None, FAULTS, marks=pytest.mark.slow
    ),
    pytest.param(
        "mo_local_search", Config(epochs=3, trials=9, startup=3), None, FAULTS, marks=pytest.mark.slow
    ),
    pytest.param("mo_asha", Config(epochs=R, trials=12), None, FAULTS, marks=pytest.mark.slow),
    pytest.param(
        "parego", Config(epochs=3, trials=9, startup=3, refit=2), None, FAULTS, marks=pytest.mark.slow
    ),
    pytest.param("mo_tpe", Config(epochs=R, trials=7, startup=4), None, {}, marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(("strategy", "config", "total_epochs", "faults"), SEARCHES)
@pytest.mark.some(1)
def test_with_one_worker_both_engines_write_the_same_record(
    tmp_path: Path, strategy: str, config: StrategyConfig, total_epochs: int | None, faults: dict[str, Any]
) -> None:
    here = search(tmp_path / "here", strategy, config, engine="local", total_epochs=total_epochs, **faults)
    there = search(tmp_path / "there", strategy, config, total_epochs=total_epochs, **faults)
    assert record_difference(tmp_path / "here", tmp_path / "there") is None
    assert len(here.trials) > 3
    assert [(t.arch, t.spent, t.status) for t in here.trials.values()] == [
        (t.arch, t.spent, t.status) for t in there.trials.values()
    ]
    processes = {line.split()[2] for line in (tmp_path / "there.log").read_text().splitlines()}
    assert len(processes) == 1, "the worker was not reused"
    assert not (tmp_path / "there" / "checkpoints").exists()


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("strategy", "config", "total_epochs"),
    [("random", Config(epochs=R), 31), ("hyperband", Config(epochs=R), None)],
)
@pytest.mark.some(1)
def test_a_worker_that_has_several_trials_at_a_time_does_what_this_process_does(
    tmp_path: Path, strategy: str, config: StrategyConfig, total_epochs: int | None
) -> None:
    for engine in ("local", "ray"):
        search(
            tmp_path / engine, strategy, config, engine=engine, total_epochs=total_epochs, each=3, **FAULTS
        )
    assert record_difference(tmp_path / "local", tmp_path / "ray") is None


def test_every_strategy_is_compared_on_both_engines() -> None:
    assert {search.values[0] for search in SEARCHES} == set(STRATEGIES)


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("hyperband", (0.6,)),
        pytest.param("hyperband", (0.2, 0.4, 0.8), marks=pytest.mark.slow),
        pytest.param("asha", (0.5,), marks=pytest.mark.slow),
        pytest.param("evolution", (0.5,), marks=pytest.mark.slow),
    ],
)
def test_search_goes_on_behind_its_record(tmp_path: Path, strategy: str, parts: tuple[float, ...]) -> None:
    config = Config(epochs=R, trials=None if strategy == "hyperband" else 8, population=4)
    search(tmp_path / "whole", strategy, config, engine="local", **FAULTS)
    whole = (tmp_path / "whole" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    for part in parts:
        folder = tmp_path / f"cut-{round(100 * part)}"
        Record.create(folder, {}, env={}, fsync=False).close()
        kept = whole[: int(part * len(whole))]
        (folder / "trials.jsonl").write_bytes(b"".join(kept))
        search(folder, strategy, config, resume=True, **FAULTS)
        assert record_difference(tmp_path / "whole", folder) is None
        measured = {(e["id"], e["budget"]) for e in map(json.loads, kept) if e["event"] == "measurement"}
        assert not measured.intersection(units_done(folder.with_suffix(".log")))


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_two_workers_share_cores_and_trials_and_promote_the_same(tmp_path: Path) -> None:
    config = Config(epochs=R)
    here = search(tmp_path / "here", "hyperband", config, engine="local")
    there = search(tmp_path / "there", "hyperband", config, cluster=TWO, seconds=0.01, together=2)
    without_times = {i: _without_times(t) for i, t in there.trials.items()}
    assert without_times == {i: _without_times(t) for i, t in here.trials.items()}
    lines = [line.split() for line in (tmp_path / "there.log").read_text().splitlines()]
    units = Counter(pid for _, _, pid in lines)
    assert len(units) == 2
    assert min(units.values()) > 10


def _without_times(trial: Any) -> Any:
    bare = tuple(dataclasses.replace(m, train_seconds=0.0) for m in trial.measurements)
    return trial.replace(measurements=bare)


class Surroundings:
    """Tells by its losses what a worker was given."""

    def __init__(self, begun: Path) -> None:
        self.begun = begun

    def describe(self, trial: Any) -> tuple[None, None]:
        return None, None

    def __call__(self, trial: Any) -> Iterator[Measurement]:
        for unit in range(trial.spent + 1, trial.budget + 1):
            wait_for_processes(self.begun, 2)  # so that both get some
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
            threads = int(os.environ["NPROC"]) + int(os.environ["OMP_NUM_THREADS"])
            tunables = "mmap_threshold" in Path("/proc/self/environ").read_text()
            yield Measurement(unit, len(cores) / 100, cores[0], 0.5, threads, compile_seconds=float(tunables))


@pytest.mark.slow
@pytest.mark.usefixtures("running")
@pytest.mark.skipif(len(local_cores()) < 2, reason="needs two cores")
def test_workers_have_cores_of_their_own(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with Record.create(tmp_path / "run", {}, env={}, fsync=False) as record:
        config = Config(epochs=1, trials=6)
        strategy = STRATEGIES["random"](SPACE, config)
        run = tune.execute(strategy, lambda _: Surroundings(begun), record, epochs=1, cluster=TWO)
    seen = [trial.measurements[0] for trial in run.trials.values()]
    assert len({m.valid_loss for m in seen}) == 2, "both workers are on one core"
    assert {(m.valid_accuracy, m.train_loss) for m in seen} == {(0.01, 2)}
    assert all(m.compile_seconds for m in seen), "glibc was not told"


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_trial_goes_on_after_its_worker_died_once_and_fails_after_twice(tmp_path: Path) -> None:
    config = Config(epochs=3, trials=4)
    run = search(tmp_path / "run", "random", config, dies=(1,), dies_always=(2,))
    assert [(t.status, t.spent) for t in run.trials.values()] == [
        ("completed", 3), ("completed", 3), ("failed", 1), ("completed", 3)
    ]  # fmt: skip
    assert run.trials[2].error == "the worker died: killed, crashed or out of memory"
    done = units_done(tmp_path / "run.log")
    assert len(done) == len(set(done)) == 10


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_workers_that_are_asked_to_end_cost_no_trial(tmp_path: Path) -> None:
    """As those of a spot machine that is taken away: SIGTERM, more often than a trial may lose a worker by itself."""
    ended: set[int] = set()
    log = tmp_path / "run.log"

    def end_workers() -> None:
        while len(ended) < 3:
            time.sleep(0.05)
            pids = {int(line.split()[2]) for line in log.read_text().splitlines()} if log.exists() else set()
            for pid in pids - ended:
                ended.add(pid)
                os.kill(pid, signal.SIGTERM)

    ending = threading.Thread(target=end_workers)
    ending.start()
    run = search(tmp_path / "run", "random", Config(epochs=30, trials=1), seconds=0.1)
    ending.join(60)
    assert len(ended) == 3
    assert [(t.status, t.spent, t.error) for t in run.trials.values()] == [("completed", 30, None)]


@pytest.mark.slow
@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("strategy", ["hyperband", "asha", "evolution"])
def test_dying_workers_do_not_stop_any_scheduler(tmp_path: Path, strategy: str) -> None:
    config = Config(epochs=R, trials=9, population=4)
    run = search(
        tmp_path / "run", strategy, config, cluster=TWO, dies=(0, 5), dies_always=(1, 8), seconds=0.01
    )
    assert len(run.trials) == 9
    assert {t.status for t in run.trials.values()} <= {"completed", "stopped", "failed"}
    assert all(t.spent == 1 and t.id in (1, 8) for t in run.failed)
    done = units_done(tmp_path / "run.log")
    assert len(done) == len(set(done))


@pytest.mark.usefixtures("running")
def test_objective_that_cannot_be_built_ends_the_search_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        search(tmp_path / "run", "random", Config(trials=50), cannot_be_built=True)
    said = "worker: the objective cannot be built: FileNotFoundError: no such data set (synthetic.py:"
    assert str(caught.value).startswith(said)


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_worker_that_dies_before_it_begins_ends_the_search_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        search(tmp_path / "run", "random", Config(trials=50), dies_when_built=True)
    assert str(caught.value) == "worker: died before it could begin: killed, crashed or out of memory"


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening_addresses(ancestor: int) -> set[str]:
    """Where the children of a process, and theirs, listen, as /proc/net has it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for pid in family:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(path))
    rows = [
        row.split()
        for file in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{file}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


@pytest.mark.usefixtures("running")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="finds sockets in /proc")
def test_ray_of_our_own_is_open_to_nobody_else() -> None:
    found = listening_addresses(os.getpid())
    assert found, "nothing listens"
    assert found <= LOOPBACK
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    folders = [path.parent for path in Path(tempfile.gettempdir()).glob("nas-ray-*/lock")]
    assert folders
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="finds sockets in /proc")
@pytest.mark.parametrize("first", ["ray", "nas"])
def test_ray_is_bound_to_loopback_in_whatever_order_a_script_imports(first: str) -> None:
    lines = ["import ray", "from nas.run import tune"][:: 1 if first == "ray" else -1]
    lines += ["with tune.session(tune.Cluster(1, 1)):", "    print('up', flush=True)", "    input()"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", "\n".join(lines)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as script:
        assert script.stdout
        assert script.stdout.readline() == "up\n"
        found = listening_addresses(script.pid)
        script.communicate("\n", timeout=60)
    assert found, "nothing listens"
    assert found <= LOOPBACK


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_final_trainings_come_in_order_with_failures_as_values(tmp_path: Path) -> None:
    arch = SPACE.sample(0)
    setup = Setup(tmp_path / "log", raises={1: 0}, dies_always=(2,))
    jobs = [(arch, seed, 3) for seed in range(4)]
    finals = list(tune.finals(setup, tmp_path / "checkpoints", jobs, cluster=TWO))
    assert [(final.seed, PLACE.sub("", final.error or "") or None) for final in finals] == [
        (0, None),
        (1, "ValueError: seed 1 is bad"),
        (2, "the worker died: killed, crashed or out of memory"),
        (3, None),
    ]
    assert [final.test_accuracy for final in finals[::3]] == [0.0, 0.3]


@pytest.mark.slow
@pytest.mark.usefixtures("running")
def test_whole_trainings_come_as_they_finish_with_failures_as_values(tmp_path: Path) -> None:
    arch = SPACE.sample(0)
    setup = Setup(tmp_path / "log", raises={1: 0}, dies_always=(2,))
    jobs = [(arch, seed, 3) for seed in range(7)]
    found = dict(tune.trainings(setup, tmp_path / "checkpoints", jobs, cluster=TWO))
    assert sorted(found) == list(range(7))
    for seed, (measurements, final) in found.items():
        assert final.seed == seed
        assert len(measurements) == (0 if seed in (1, 2) else 3)
    assert PLACE.sub("", found[1].final.error or "") == "ValueError: seed 1 is bad"
    assert found[2].final.error == "the worker died: killed, crashed or out of memory"
    assert found[6].final.test_accuracy == 0.6


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("127.0.0.1:1", r"^cluster: no Ray at 127\.0\.0\.1:1: .*refused$"),
        (
            "ray://head:10001",
            "^cluster: address='ray://head:10001' is neither auto, on a node .*, nor host:port$",
        ),
        ("head", "^cluster: address='head' is neither auto"),
    ],
)
def test_cluster_that_is_not_there_is_said_at_once(address: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check_address(address)


@pytest.mark.usefixtures("running")
def test_cluster_must_hold_the_workers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cluster: workers=3 need 6 CPU, Ray has 2$"):
        search(tmp_path / "cpus", "random", Config(trials=2), cluster=Cluster(3, 2))
    with pytest.raises(InputError, match=r"^cluster: workers=1 need 1 GPU, Ray has 0$"):
        search(tmp_path / "gpus", "random", Config(trials=2), cluster=Cluster(1, 1, gpus_per_worker=1))


def test_bad_clusters_are_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cluster: workers=0 is less than 1$"):
        Cluster(workers=0)
    with pytest.raises(InputError, match=r"^cluster: gpus_per_worker=1\.5 is neither whole nor below 1$"):
        Cluster(gpus_per_worker=1.5)
    with pytest.raises(InputError, match=r"^cluster: gpus_per_worker=nan is neither whole nor below 1$"):
        Cluster(gpus_per_worker=math.nan)
    with pytest.raises(InputError, match=r"^cluster: cpus_per_worker=99999 is more than the \d+ cores"):
        search(tmp_path / "run", "random", Config(trials=2), cluster=Cluster(cpus_per_worker=99999))


def test_resources_are_those_that_tune_shall_set_aside() -> None:
    assert Cluster(2, 3).resources == {"CPU": 3}
    assert Cluster(2, 1, gpus_per_worker=0.5).resources == {"CPU": 1, "GPU": 0.5}
    assert Cluster(2, 1, tpus_per_worker=4).resources == {"CPU": 1, "TPU": 4}
    half = worker_environment(Cluster(2, 1, gpus_per_worker=0.5))
    assert half["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert "JAX_PLATFORMS" not in half
    assert worker_environment(Cluster(2, 3))["NPROC"] == "3"


BRACKETS = {  # of the paper: trials and budget at each rung
    (81, 3): [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ],
    (300, 4): [
        [(256, 1), (64, 4), (16, 18), (4, 75), (1, 300)],
        [(80, 4), (20, 18), (5, 75), (1, 300)],
        [(27, 18), (6, 75), (1, 300)],
        [(10, 75), (2, 300)],
        [(5, 300)],
    ],
}


@pytest.mark.parametrize(("epochs", "eta"), BRACKETS)
def test_brackets_of_hyperband_in_tune_are_the_papers(tmp_path: Path, epochs: int, eta: int) -> None:
    with Record.create(tmp_path / "run", {}, env={}, fsync=False) as record:
        state = SearchState(record, epochs=epochs)
        strategy = STRATEGIES["hyperband"](SPACE, Config(epochs=epochs, eta=eta))
        drive(_Work(strategy, state, deque()), workers=3)
        trials = list(state.trials.values())
    for b, rungs in enumerate(BRACKETS[epochs, eta]):
        spent = [trial.spent for trial in trials if trial.bracket == b]
        assert [(sum(s >= budget for s in spent), budget) for _, budget in rungs] == rungs
        assert set(spent) == {budget for _, budget in rungs}


def drive(work: _Work, workers: int) -> None:
    """What Tune does with it, by workers that take no time and of which the last begun is the first to end."""
    given: list[tuple[str, list[Trial]]] = []
    tune_ids = map(str, itertools.count())
    while True:
        while len(given) < workers and isinstance(config := work.give(tune_id := next(tune_ids)), dict):
            work.took(tune_id)
            given.append((tune_id, from_config(config)))
        if not given:
            assert work.error is None
            return
        tune_id, trials = given.pop()
        assert trials, "a worker waits, though all are at work"
        (trial,) = trials
        for unit in range(trial.spent + 1, trial.budget + 1):
            measurement = Measurement(unit, (trial.id * 7919) % 1000 / 1000, 0.0, 0.0, 0.0)
            said = {"process": "here 1", "id": trial.id, "budget": unit, "params": 1, "macs_per_image": 1}
            said["over"] = unit == trial.budget
            assert not work.hear(tune_id, said | {"measurement": json.dumps(measurement.fields())})
        work.done(tune_id)


def test_folders_that_killed_processes_left_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # a short name: the folder holds sockets
        monkeypatch.setattr(tempfile, "tempdir", base)
        with private_folder() as held:
            for name in ("killed", "remade", "new"):
                (Path(base) / f"nas-ray-{name}").mkdir()
            (Path(base) / "nas-ray-killed" / "lock").touch()
            os.utime(Path(base) / "nas-ray-remade", (0, 0))
            with private_folder() as folder:
                kept = {Path(held).name, Path(folder).name, "nas-ray-new"}
                assert {path.name for path in Path(base).iterdir()} == kept
