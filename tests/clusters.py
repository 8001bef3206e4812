"""A Ray cluster of processes on this machine whose nodes can be lost, and searches on it, each in a process of its own.

The clusters of `ray.cluster_utils` are in a process of their own as well: ray is bound to this machine alone where
other tests import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nas.record import Record, Run, read_run
from nas.strategies import STRATEGIES, combined_config
from tests.synthetic import SPACE, Setup

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """The nodes of a running cluster, by the order in which they came; 0 is the head, which has no cores."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._ask()

    def add(self, cpus: int = 1, **options: Any) -> int:
        """One more node; its number."""
        return int(self._ask("add", {"num_cpus": cpus, **options}))

    def remove(self, node: int, how: str = "remove") -> None:
        """``remove``: as a machine that is shut down; ``kill``: as one that loses its power; ``drain``: preempted."""
        self._ask(how, node)

    def _ask(self, *command: Any) -> str:
        assert self._process.stdin
        assert self._process.stdout
        if command:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the cluster's process is gone"
        return json.loads(answer)


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    environment = os.environ | ENVIRONMENT
    command = [sys.executable, "-m", "tests.clusters", "cluster"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    try:
        yield Nodes(process)
    finally:
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@dataclasses.dataclass
class Search:
    """A search under way in a process of its own."""

    folder: Path
    process: subprocess.Popen[str]

    def wait_for(self, measurements: int, seconds: float = 120) -> None:
        """Till so many measurements are recorded."""
        self.until(lambda: self.measured() >= measurements, seconds)

    def until(self, true: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "took too long"
            time.sleep(0.1)

    def end(self, seconds: float = 240) -> tuple[int, str]:
        """Exit code and what was said."""
        try:
            said = self.process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[0]
            raise AssertionError(f"not done after {seconds} s: {said}, {self.measured()} measured") from None
        return self.process.returncode, said

    def measured(self) -> int:
        try:
            return (self.folder / "trials.jsonl").read_text().count('"measurement"')
        except OSError:
            return 0


@contextlib.contextmanager
def searching(
    folder: Path, address: str, options: dict[str, Any] | None = None, **setup: Any
) -> Iterator[Search]:
    """A random search of ``trials`` trials, 8 by default, over `tests.synthetic` on the cluster."""
    given = json.dumps([str(folder), address, options or {}, setup])
    environment = os.environ | ENVIRONMENT
    command = [sys.executable, "-m", "tests.clusters", "search", given]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    try:
        yield Search(folder, process)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def counts(folder: Path) -> tuple[Run, dict[str, int]]:
    """The run, and how many of its trials were lost, done twice in the record, or failed."""
    run = read_run(folder)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    measured = Counter((e["id"], e["budget"]) for e in lines if e["event"] == "measurement")
    ended = Counter(e["id"] for e in lines if e["event"] == "end")
    return run, {
        "lost": sum(trial.status == "running" for trial in run.trials.values()),
        "doubled": sum(n > 1 for n in (measured + ended).values()) + sum(n > 1 for n in ended.values()),
        "failed": len(run.failed),
    }


def _cluster() -> None:
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.head_node]

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer(made.address)
    for line in sys.stdin:
        command, given = json.loads(line)
        if command == "add":
            nodes.append(made.add_node(**given))
            answer(len(nodes) - 1)
            continue
        node = nodes[given]
        assert node is not None
        if command == "remove":
            made.remove_node(node)
        elif command == "kill":
            for processes in node.all_processes.values():
                for process in processes:
                    os.kill(process.process.pid, signal.SIGKILL)
        elif command == "drain":
            _drain(str(made.address), node.node_id)
        answer(given)


def _drain(address: str, node_id: str) -> None:
    raylet: Any = importlib.import_module("ray._raylet")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 10) * 1000)
    accepted, why = raylet.GcsClient(address=address).drain_node(node_id, reason, "preempted", deadline_ms)
    assert accepted, why


def _search() -> None:
    from nas.run import tune
    from nas.run.command_line import run

    folder, address, options, setup = json.loads(sys.argv[2])

    def main(config: _Config) -> None:
        resume, workers, trials = (
            options.get(name, default)
            for name, default in (("resume", False), ("workers", None), ("trials", 8))
        )
        opened = Record.resume if resume else Record.create
        kind: Any = combined_config(STRATEGIES.values())
        strategy = STRATEGIES["random"](SPACE, kind(epochs=4, trials=trials))
        objective = Setup(Path(folder).with_suffix(".log"), **{"seconds": 0.3} | setup)
        wanted = options.get("cluster", {})
        with opened(Path(folder), {}, env={}, fsync=False) as record:
            where = tune.Cluster(workers, None, None, None, address, **wanted)
            tune.execute(strategy, objective, record, epochs=4, cluster=where)

    del sys.argv[1:]
    run(main, lambda argv: _Config)


@dataclasses.dataclass(frozen=True)
class _Config:
    """No options."""


if __name__ == "__main__":
    {"cluster": _cluster, "search": _search}[sys.argv[1]]()
