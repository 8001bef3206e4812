"""The process that measures latencies, so that no training disturbs it: one core of its own, one thread."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool

import cloudpickle

from nas.ending import follow_parent
from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Latency, Meter
from nas.objectives.several import SeveralSetup
from nas.own_file import pickled
from nas.run.environment import environment
from nas.space import Architecture

ENVIRONMENT: Mapping[str, str] = {"NPROC": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
"""Of a process that measures on the CPU, before it starts."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A meter that there is already, as what `nas.objectives.quantities.QuantitiesSetup` calls to make one."""

    meter: Meter

    def __call__(self) -> Meter:
        return self.meter


def metered(setup: SeveralSetup, meter: Meter) -> SeveralSetup:
    """``setup`` with its latencies measured by ``meter``."""
    return dataclasses.replace(setup, quantities=dataclasses.replace(setup.quantities, meter=Given(meter)))


@contextlib.contextmanager
def process(make: Callable[[], Meter]) -> Iterator[Meter]:
    """A meter in a process of its own on this machine's last core, started when first asked."""
    with environment(ENVIRONMENT):
        pool = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _begin, (pickled(make, cloudpickle),)
        )

    def measure(arch: Architecture) -> Latency:
        try:
            with environment(ENVIRONMENT):  # the process starts with the first piece of work
                return pool.submit(_measure, arch).result()
        except BrokenProcessPool:
            raise InputError("latency_ms: the process that measures ended unexpectedly") from None

    try:
        yield measure
    finally:
        pool.shutdown(cancel_futures=True)


_meter: Meter  # of a process of `process`


def _begin(make: bytes) -> None:
    global _meter
    follow_parent()
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _meter = pickle.loads(make)()


def _measure(arch: Architecture) -> Latency:
    try:
        return _meter(arch)
    except TrialFailed as failure:
        raise TrialFailed(str(failure)) from None
