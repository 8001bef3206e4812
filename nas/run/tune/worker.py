"""What runs in the workers: one process works off one piece of work after the other."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import tune
from ray._private import state
from ray.cloudpickle import cloudpickle
from ray.experimental import internal_kv  # of the whole cluster, which may share no folder

from nas import own_file
from nas.cores import local_cores
from nas.ending import Terminated, terminate
from nas.errors import InputError
from nas.objectives.base import Objective
from nas.run.driver import describe_error, one_line
from nas.run.together import Unit, units
from nas.run.tune.losses import NAMESPACE
from nas.space import Architecture
from nas.trial import Trial, measurement_of

WAIT_SECONDS = 0.1  # between two looks of an idle worker
NOTICE_SECONDS = 1.0  # between two looks whether its node is taken away
SECONDS = ("compile_seconds", "train_seconds", "evaluate_seconds")


def to_config(trials: Sequence[Trial]) -> dict[str, str]:
    """The config of a Tune trial that brings ``trials`` from where they are to their budgets; none: to wait.

    A line of JSON: Tune looks into anything else.
    """
    told = []
    for trial in trials:
        fields = {field.name: getattr(trial, field.name) for field in dataclasses.fields(Trial)}
        fields["arch"] = dict(trial.arch)
        fields["measurements"] = [m.fields() for m in trial.measurements]
        told.append(fields)
    return {"trials": json.dumps(told)}


def from_config(config: Mapping[str, Any]) -> list[Trial]:
    """Inverse of `to_config`."""
    trials = []
    for fields in json.loads(config["trials"]):
        fields["arch"] = Architecture.from_json(fields["arch"])
        fields["measurements"] = tuple(measurement_of(m) for m in fields["measurements"])
        trials.append(Trial(**fields))
    return trials


class Worker(tune.Trainable):
    """One process; a call of `step` is a unit of one of the trials that it has, or a moment's waiting."""

    def setup(
        self,
        config: dict[str, Any],
        make_objective: bytes,
        checkpoints: str,
        cpus: int,
        barrier: StartBarrier,
    ) -> None:
        claim_cores(cpus)
        self._busy = False
        heed_notices(barrier.name, self._terminate)
        self._broken = ""
        try:
            self._objective: Objective = unpickled_objective(make_objective, checkpoints)
        except InputError as error:
            self._broken = str(error)
        except Terminated:
            leave()
        barrier.wait()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._trials = from_config(new_config)
        self._left = len(self._trials)
        return True

    def step(self) -> dict[str, Any]:
        self._busy = True
        try:
            return self._step()
        except Terminated:
            leave()
        finally:
            self._busy = False

    def _step(self) -> dict[str, Any]:
        process = {"process": f"{socket.gethostname()} {os.getpid()}"}
        if self._broken:
            return process | {"broken": self._broken, "done": True}
        if not self._trials:
            time.sleep(WAIT_SECONDS)
            return process
        try:
            if self._units is None:
                self._units = units(self._objective, self._trials)
            return process | self._result(next(self._units))
        except OSError as error:  # the disk is full
            return process | {"disk_full": error.filename, "done": True}

    def cleanup(self) -> None:
        under_way, self._units = getattr(self, "_units", None), None
        if under_way is not None:
            under_way.close()

    def _terminate(self, number: int, frame: Any) -> None:
        """SIGTERM: a training writes a checkpoint first."""
        if self._busy:
            terminate()
        else:
            leave()

    def _result(self, unit: Unit) -> dict[str, Any]:
        trial, failure = unit.trial, unit.failure
        self._left -= unit.over
        result: dict[str, Any] = {
            "id": trial.id,
            "budget": trial.spent,
            "params": trial.params,
            "macs_per_image": trial.macs_per_image,
            "over": unit.over,
            "done": not self._left,
        }
        if trial.measurements:
            result["measurement"] = json.dumps(trial.measurements[-1].fields())
        if failure is not None:
            seconds = {name: getattr(failure, name) for name in SECONDS}
            result |= {"failure": str(failure), "traceback": failure.traceback, **seconds}
        return result


def leave() -> NoReturn:
    """End this worker, by no fault of its own: its node is taken away, or the search ends."""
    actor = ray.get_runtime_context().get_actor_id()
    internal_kv._internal_kv_put(f"left {actor}", b"", namespace=NAMESPACE)
    os._exit(0)


_heeded: set[str] = set()


def heed_notices(search: str, handler: Callable[[int, Any], None]) -> None:
    """``handler`` hears of SIGTERM, of a node to be drained (Ray's notice of a preemption), of the ``search``'s end."""
    signal.signal(signal.SIGTERM, handler)
    if search not in _heeded:
        _heeded.add(search)
        threading.Thread(target=_watch, args=(search,), daemon=True).start()


def ends(search: str) -> bool:
    """Whether the driver of this search has been told to end."""
    return internal_kv._internal_kv_exists(f"end {search}", namespace=NAMESPACE)


def _watch(search: str) -> None:
    node = ray.get_runtime_context().get_node_id()
    with contextlib.suppress(Exception):  # the head is lost: so is all this
        while node not in state.state.get_draining_nodes() and not ends(search):
            time.sleep(NOTICE_SECONDS)
        _thread.interrupt_main(signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class StartBarrier:
    """The first ``workers`` of a search begin together.

    Else the first would take a short trial from one that still starts, and Tune would give that one up:
    as long as trials are shorter than the start of a process, there would be one worker.
    """

    name: str
    workers: int
    timeout_seconds: float = 60.0

    def wait(self) -> None:
        internal_kv._internal_kv_put(f"{self.name} {uuid.uuid4().hex}", b"", namespace=NAMESPACE)
        end = time.monotonic() + self.timeout_seconds
        while time.monotonic() < end:
            if len(internal_kv._internal_kv_list(self.name, namespace=NAMESPACE)) >= self.workers:
                break
            time.sleep(0.02)


def pickled(make: Callable[..., Any]) -> bytes:
    """For the workers; what they cannot import, a space in a file of the user's, goes by value."""
    return own_file.pickled(make, cloudpickle)


@functools.lru_cache(maxsize=1)
def unpickled_objective(make_objective: bytes, checkpoints: str) -> Any:
    """Made once a process. Raises InputError where it cannot be."""
    try:
        return cloudpickle.loads(make_objective)(Path(checkpoints))
    except (Exception, SystemExit) as error:
        said = one_line(str(error)) if isinstance(error, InputError) else describe_error(error)
        raise InputError(f"worker: the objective cannot be built: {said}") from error


_claims: list[socket.socket] = []


def claim_cores(n: int) -> None:
    """Keep this thread, and all that it starts, to ``n`` cores which no other worker on this machine has.

    With 0, or where there are not so many, to none in particular. A claim is the name of a socket that the kernel
    gives to one process at a time and frees when that dies, in whatever way.
    """
    if sys.platform != "linux" or _claims or not n:
        return
    cores = []
    for core in local_cores():
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0nas-worker-core-{core}")
        except OSError:
            claim.close()
            continue
        cores.append(core)
        _claims.append(claim)
        if len(cores) == n:
            os.sched_setaffinity(0, cores)
            return
    while _claims:
        _claims.pop().close()
