"""What runs in the workers: one process works off one piece of work after the other."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.cloudpickle import cloudpickle
from ray.experimental import internal_kv  # of the whole cluster, which may share no folder

from nas.errors import InputError
from nas.objectives.base import Objective, TrialFailed
from nas.own_file import FILE_MODULE
from nas.run.driver import describe_error, evaluate, one_line
from nas.run.tune.cluster import local_cores
from nas.space import Architecture
from nas.trial import Trial, measurement_of

WAIT_SECONDS = 0.1  # between two looks of an idle worker
SECONDS = ("compile_seconds", "train_seconds", "evaluate_seconds")


def to_config(trial: Trial | None) -> dict[str, str]:
    """The config of a Tune trial that brings ``trial`` from where it is to its budget; None: to wait.

    A line of JSON: Tune looks into anything else.
    """
    if trial is None:
        return {"trial": "null"}
    fields = {field.name: getattr(trial, field.name) for field in dataclasses.fields(Trial)}
    fields["arch"] = dict(trial.arch)
    fields["measurements"] = [m.fields() for m in trial.measurements]
    return {"trial": json.dumps(fields)}


def from_config(config: Mapping[str, Any]) -> Trial | None:
    """Inverse of `to_config`."""
    fields = json.loads(config["trial"])
    if fields is None:
        return None
    fields["arch"] = Architecture.from_json(fields["arch"])
    fields["measurements"] = tuple(measurement_of(m) for m in fields["measurements"])
    return Trial(**fields)


class Worker(tune.Trainable):
    """One process; a call of `step` is a unit of its piece of work, or a moment's waiting."""

    def setup(
        self,
        config: dict[str, Any],
        make_objective: bytes,
        checkpoints: str,
        cpus: int,
        barrier: StartBarrier,
    ) -> None:
        claim_cores(cpus)
        self._broken = ""
        try:
            self._objective: Objective = unpickled_objective(make_objective, checkpoints)
        except InputError as error:
            self._broken = str(error)
        barrier.wait()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._trial = from_config(new_config)
        return True

    def step(self) -> dict[str, Any]:
        process = {"process": f"{socket.gethostname()} {os.getpid()}"}
        if self._broken:
            return process | {"broken": self._broken, "done": True}
        if self._trial is None:
            time.sleep(WAIT_SECONDS)
            return process
        try:
            if self._units is None:
                self._units = evaluate(self._objective, self._trial)
            self._trial = next(self._units)
        except TrialFailed as failure:
            return process | self._result(failure)
        except OSError as error:  # the disk is full
            return process | {"disk_full": error.filename, "done": True}
        return process | self._result()

    def cleanup(self) -> None:
        units, self._units = getattr(self, "_units", None), None
        if units is not None:
            units.close()

    def _result(self, failure: TrialFailed | None = None) -> dict[str, Any]:
        trial = self._trial
        assert trial is not None
        result: dict[str, Any] = {
            "id": trial.id,
            "budget": trial.spent,
            "params": trial.params,
            "macs_per_image": trial.macs_per_image,
            "done": trial.spent >= trial.budget or trial.ended,
        }
        if trial.measurements:
            result["measurement"] = json.dumps(trial.measurements[-1].fields())
        if failure is not None:
            seconds = {name: getattr(failure, name) for name in SECONDS}
            result |= {"failure": str(failure), "traceback": failure.traceback, "done": True, **seconds}
        return result


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
        internal_kv._internal_kv_put(f"{self.name} {uuid.uuid4().hex}", b"", namespace="nas")
        end = time.monotonic() + self.timeout_seconds
        while time.monotonic() < end:
            if len(internal_kv._internal_kv_list(self.name, namespace="nas")) >= self.workers:
                break
            time.sleep(0.02)


def pickled(make: Callable[..., Any]) -> bytes:
    """For the workers; what they cannot import, a space in a file of the user's, goes by value."""
    for name, module in list(sys.modules.items()):
        if name.startswith(FILE_MODULE):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(make)


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

    Where there are not so many, to none in particular. A claim is the name of a socket that the kernel
    gives to one process at a time and frees when that dies, in whatever way.
    """
    if sys.platform != "linux" or _claims:
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
