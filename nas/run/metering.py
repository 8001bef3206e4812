"""The process that measures latencies, so that no training disturbs it: one core of its own, one thread."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool

from nas.cores import local_cores
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Latency, Meter
from nas.objectives.several import SeveralSetup
from nas.run.serving import Serving
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
    serving = Serving(functools.partial(_on_last_core, make), ENVIRONMENT)

    def measure(arch: Architecture) -> Latency:
        try:
            return serving(arch)
        except BrokenProcessPool:
            raise TrialFailed("latency_ms: the process that measures died") from None

    try:
        yield measure
    finally:
        serving.close()


def _on_last_core(make: Callable[[], Meter]) -> Meter:
    if sys.platform == "linux":
        os.sched_setaffinity(0, {local_cores()[-1]})
    return make()
