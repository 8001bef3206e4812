"""A trial on a TPU slice: a process on each of its hosts, which train as one (see `nas.training.processes`).

The worker that has the trial computes nothing. It runs on the slice's first host, which Ray gives to one worker at a
time, starts the processes of the hosts and passes on what they are asked and what the first of them answers.
"""

from __future__ import annotations

import _thread
import dataclasses
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.ending import NOTICE_SECONDS, ProcessLost, Terminated, terminate
from nas.objectives.base import Objective, Trained
from nas.run.driver import evaluate
from nas.run.tune.cluster import Cluster
from nas.run.tune.losses import NAMESPACE, SETTLE_SECONDS, Death, lost_nodes
from nas.run.tune.slices import slices
from nas.run.tune.worker import claim_cores, heed_notices, pickled, unpickled_objective
from nas.space import Architecture
from nas.training import processes
from nas.trial import Final, Measurement, Trial

AGREE_SECONDS = 20.0
"""What fails in one process fails in all within so long, or they wait for one another for ever."""
ENDED = "ended"
"""The answer of a process that was asked to end, or misses another one."""


def on_hosts(make_objective: Callable[[Path], Any], cluster: Cluster) -> Callable[[Path], Any]:
    """What makes the objective of a worker: its own, or one that the hosts of its slice carry out."""
    if cluster.hosts == 1:
        return make_objective
    return OnSlice(pickled(make_objective), cluster.hosts, cluster.cpus, cluster.chips // cluster.hosts)


@dataclasses.dataclass(frozen=True)
class OnSlice:
    """Makes a `SliceObjective`. ``make``: what makes each host's, pickled; ``cpus``, ``chips``: of each host."""

    make: bytes
    hosts: int
    cpus: int
    chips: int

    def __call__(self, checkpoints: Path) -> SliceObjective:
        return SliceObjective(self, checkpoints)


class SliceObjective:
    """An objective that all hosts of this node's slice carry out together.

    Where a host is lost with its node, or is about to be, raises `Terminated`: the work goes on elsewhere from its
    checkpoint. A host's process that dies by itself takes this one with it, so that the trial is tried once more.
    """

    def __init__(self, setup: OnSlice, checkpoints: Path) -> None:
        self._setup, self._checkpoints = setup, str(checkpoints)
        self._hosts: list[Any] = []
        self._start()

    def describe(self, trial: Trial) -> tuple[int | None, int | None]:
        return self._all("call", "describe", (trial,))

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        self._all("begin", trial)
        while (measurement := self._all("next")) is not None:
            try:
                yield measurement
            except GeneratorExit:
                self._all("close")
                raise

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """See `nas.objectives.base.Finisher`."""
        return self._once("final", arch, seed, epochs)

    def trained(self, arch: Architecture, seed: int, epochs: int) -> Trained:
        """See `nas.objectives.base.Trainer`."""
        return self._once("trained", arch, seed, epochs)

    def _once(self, method: str, *given: Any) -> Any:
        try:
            return self._all("call", method, given)
        finally:
            self._release()  # another process of this node may be given the slice next

    def _start(self) -> None:
        """The processes of the hosts, once all hosts are there."""
        here = ray.get_runtime_context().get_node_id()
        while True:
            nodes = next((found.hosts for found in slices() if found.hosts[0] == here), ())
            if len(nodes) == self._setup.hosts and not set(nodes) & set(lost_nodes()):
                break
            time.sleep(1)
        name = uuid.uuid4().hex
        options = {"num_cpus": self._setup.cpus, "resources": {"TPU": self._setup.chips}}
        self._hosts = [
            _Host.options(
                **options, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote()
            for node in nodes
        ]
        self._name, self._nodes, self._over = name, set(nodes), threading.Event()
        threading.Thread(target=_watch, args=(self._nodes, self._over), daemon=True).start()
        address = self._answer([self._hosts[0].address.remote()])
        given = (self._setup.make, self._checkpoints, self._setup.cpus, name, address, len(nodes))
        self._answer([host.join.remote(*given, k) for k, host in enumerate(self._hosts)])

    def _release(self) -> None:
        self._over.set()
        for host in self._hosts:
            ray.kill(host)
        self._hosts = []

    def _all(self, method: str, *given: Any) -> Any:
        """What the first host's process answers when all have done this."""
        if not self._hosts:
            self._start()
        return self._answer([getattr(host, method).remote(*given) for host in self._hosts])

    def _answer(self, asked: Sequence[ray.ObjectRef[Any]]) -> Any:
        waiting = list(asked)
        try:
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=1)
                if any(ray.get(one) == ENDED for one in ready):
                    self._misses(asked)
            return ray.get(asked[0])
        except Terminated:
            internal_kv._internal_kv_put(f"end {self._name}", b"", namespace=NAMESPACE)
            ray.wait([asked[0]], timeout=NOTICE_SECONDS)  # its checkpoint is written
            raise
        except RayTaskError as error:
            if len(ray.wait(list(asked), num_returns=len(asked), timeout=AGREE_SECONDS)[0]) < len(asked):
                self._release()
            raise error.cause from None
        except (RayActorError, OutOfMemoryError) as error:
            self._died(error)
        except RayError as error:  # its node went before it began
            raise Terminated from error

    def _misses(self, asked: Sequence[ray.ObjectRef[Any]]) -> NoReturn:
        """A process says that another one is lost, or was asked to end: what became of them?"""
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            for one in ray.wait(list(asked), num_returns=len(asked), timeout=0.5)[0]:
                ray.get(one)  # raises for one that died
            if self._nodes & set(lost_nodes()):
                raise Terminated
        os.kill(os.getpid(), signal.SIGKILL)  # nothing is lost: it was what they ran
        raise AssertionError

    def _died(self, error: RayError) -> NoReturn:
        """A process died, with its node or by itself."""
        death = Death(error, on_cluster=True)
        while (own := death.own()) is None:
            time.sleep(0.5)
        if own:
            os.kill(os.getpid(), signal.SIGKILL)  # so does a worker that has no hosts
        raise Terminated from error


def _watch(nodes: set[str], over: threading.Event) -> None:
    """SIGTERM for this process when one of ``nodes`` is lost, or shall be."""
    while not over.wait(1):
        if nodes & set(lost_nodes()):
            _thread.interrupt_main(signal.SIGTERM)
            return


@ray.remote(max_restarts=0)
class _Host:
    """A host's process."""

    def __init__(self) -> None:
        self._busy = False

    def address(self) -> str:
        """Where the processes can meet: HOST:PORT of this node."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def join(
        self, make: bytes, checkpoints: str, cpus: int, name: str, address: str, hosts: int, number: int
    ) -> None:
        """Returns when all ``hosts`` have come. Raises InputError."""
        claim_cores(cpus)
        if number == 0:  # the one that writes checkpoints
            heed_notices(name, self._terminate)
        os.environ |= {processes.ADDRESS: address, processes.COUNT: str(hosts), processes.NUMBER: str(number)}
        processes.join()
        self._objective: Objective = unpickled_objective(make, checkpoints)

    def begin(self, trial: Trial) -> None:
        self._units = evaluate(self._objective, trial)

    def next(self) -> Measurement | str | None:
        """The next unit's measurement; None: there is none."""
        trial = self._heeding(lambda: next(self._units, None))
        return trial.measurements[-1] if isinstance(trial, Trial) else trial

    def close(self) -> None:
        self._heeding(self._units.close)

    def call(self, method: str, given: tuple[Any, ...]) -> Any:
        return self._heeding(lambda: getattr(self._objective, method)(*given))

    def _heeding(self, work: Callable[[], Any]) -> Any:
        self._busy = True
        try:
            return work()
        except (Terminated, ProcessLost):
            return ENDED
        finally:
            self._busy = False

    def _terminate(self, number: int, frame: Any) -> None:
        if self._busy:
            terminate()
