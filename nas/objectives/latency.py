"""How long a network takes for a batch, measured here: warm, on a stated device, with an interval.

One measurement is rounds some milliseconds apart. A round runs the network warm, then times ``repetitions`` calls one
by one; its value is their median, its interval that median's by order statistics (95 %, whatever the distribution).
What else runs on a machine, or on a virtual one's host, makes rounds slower and never faster: the result is the median
of the rounds that agree with the fastest to `NOISY`. There are rounds for `LEAST_SECONDS`, and until `ROUNDS` of them
agree, but no longer than `MOST_SECONDS`. The interval goes from the lowest to the highest bound of any round, so that
what drifts between rounds is in it; ``noise`` is how far rounds are apart, as a share of the result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
import scipy.special

from nas.errors import InputError, one_of
from nas.goals import LatencyConfig
from nas.nn.bridge import build
from nas.objectives.base import TrialFailed
from nas.space import Architecture, SearchSpace
from nas.training.network import apply_evaluate, initialise

Device: TypeAlias = Any  # jax's

ROUNDS = 5
NOISY = 0.05
LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0
PAUSE_SECONDS = 0.01  # between rounds
WARM_SECONDS, WARM_CALLS = 0.05, 3  # at least, before each round


class Latency(NamedTuple):
    """Of one batch, in ms: the median with its interval; see the module."""

    ms: float
    low: float
    high: float
    noise: float

    def values(self) -> dict[str, float]:
        """As what a `nas.trial.MeasurementWithValues` keeps."""
        return {
            "latency_ms": self.ms,
            "latency_ms_low": self.low,
            "latency_ms_high": self.high,
            "latency_noise": self.noise,
        }


class Meter(Protocol):
    """Measures one architecture's latency, here or on a worker of its own."""

    def __call__(self, arch: Architecture) -> Latency:
        """Raises TrialFailed where it cannot be measured."""
        ...


@dataclasses.dataclass(frozen=True)
class MeterSetup:
    """What a process needs to measure latencies of ``space``'s networks on images of ``image_shape``."""

    space: SearchSpace
    image_shape: tuple[int, int, int]
    num_classes: int
    config: LatencyConfig

    def __call__(self) -> Meter:
        """Raises InputError where there is no such device."""
        return functools.partial(self.measure, device_of(self.config.latency_device))

    def measure(self, device: Device, arch: Architecture) -> Latency:
        try:
            network = build(self.space, arch, self.num_classes)
            return measure(
                network,
                self.image_shape,
                device=device,
                batch=self.config.latency_batch,
                repetitions=self.config.latency_repetitions,
            )
        except (InputError, jax.errors.JaxRuntimeError) as error:
            said = " ".join(str(error).split())
            raise TrialFailed(f"latency_ms: cannot be measured: {said}") from None


def device_of(name: str | None) -> Device:
    """The first local device of this kind; None: the one that computes by default. Raises InputError, one line."""
    if name is None:
        return jax.local_devices()[0]
    try:
        return jax.local_devices(backend=name)[0]
    except RuntimeError:
        here = {device.platform for device in jax.local_devices()} | {"cpu"}
        raise one_of("latency_device", name, sorted(here)) from None


def measure(
    network: Any,
    image_shape: tuple[int, int, int],
    *,
    device: Device,
    batch: int = 1,
    repetitions: int = 30,
) -> Latency:
    """The latency of ``network``, untrained, in evaluation mode, compiled whole as for a user's own calls."""
    with jax.default_device(device):
        variables = jax.device_put(initialise(network, 0, image_shape, "float32"), device)
        images = jax.device_put(np.zeros((batch, *image_shape), np.float32), device)
        program = jax.jit(lambda variables, x: apply_evaluate(network, variables, (x,)))
        compiled = program.lower(variables, images).compile()
        return steady(lambda: jax.block_until_ready(compiled(variables, images)), repetitions)


def steady(
    call: Callable[[], object], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> Latency:
    """The latency of ``call``; see the module."""
    rounds: list[np.ndarray] = []
    start = clock()
    while True:
        rounds.append(one_round(call, repetitions, clock))
        seconds = clock() - start
        enough = len(agreeing(rounds)) >= ROUNDS and seconds >= LEAST_SECONDS
        if enough or (len(rounds) >= ROUNDS and seconds >= MOST_SECONDS):
            return combined(rounds)


def one_round(call: Callable[[], object], repetitions: int, clock: Callable[[], float]) -> np.ndarray:
    """The ms of ``repetitions`` calls, after it has run for a moment."""
    time.sleep(PAUSE_SECONDS)
    warm, calls = clock(), 0
    while calls < WARM_CALLS or clock() - warm < WARM_SECONDS:
        call()
        calls += 1
        if calls >= 1000:
            break
    times = np.empty(repetitions)
    for k in range(repetitions):
        start = clock()
        call()
        times[k] = 1e3 * (clock() - start)
    return times


def agreeing(rounds: list[np.ndarray]) -> np.ndarray:
    """The medians of the rounds that agree with the fastest."""
    medians = np.array([np.median(times) for times in rounds])
    return medians[medians <= (1 + NOISY) * medians.min()]


def combined(rounds: list[np.ndarray]) -> Latency:
    """Of rounds of ms [repetition]."""
    bounds = [median_interval(times) for times in rounds]
    ms = float(np.median(agreeing(rounds)))
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    spread = float(np.ptp([np.median(times) for times in rounds]))
    return Latency(ms, low, high, spread / ms if ms > 0 else math.inf)


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Of the median of the distribution that ``values`` are drawn from, by order statistics: at least ``level``."""
    n = len(values)
    # The largest k so that P(fewer than k of n are below the median) is at most (1 - level) / 2.
    tails = scipy.special.bdtr(np.arange(n), n, 0.5)
    k = int(np.searchsorted(tails, (1 - level) / 2, side="right"))
    ordered = np.sort(values)
    return (float(ordered[k - 1]), float(ordered[n - k])) if k else (float(ordered[0]), float(ordered[-1]))
