"""What an objective or a constraint may be of: quantities by name, each with its direction and where it comes from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from nas.data.config import DataConfig
from nas.data.dataset import Dataset
from nas.errors import InputError, one_of
from nas.goals import ACCURACY, LATENCY, PREDICTED_LATENCY, ROOFLINES, SUMMED_LATENCY, LatencyConfig
from nas.nn.bridge import build
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Latency, Meter, MeterSetup
from nas.objectives.predicted_latency import LatencyPredictor
from nas.objectives.score import Scorer
from nas.own_file import named_in_file, value_named
from nas.proxies import PROXIES
from nas.space import Architecture, SearchSpace
from nas.training.network import Outline, outline

TRAINED: dict[str, int] = {ACCURACY: 1, "valid_loss": -1}
"""Those that a training shows."""
SIZES: dict[str, int] = {"params": -1, "macs_per_image": -1, "flops": -1, "activation_bytes": -1}
"""Those of a network's shapes; flops are its multiply-adds, activation bytes all its modules' float32 outputs."""
PREDICTIONS: dict[str, int] = {PREDICTED_LATENCY: -1, SUMMED_LATENCY: -1}
"""Those that a `nas.objectives.predicted_latency.LatencyPredictor` answers."""
SCORES = {name: proxy.sign for name, proxy in PROXIES.items() if name not in SIZES}
KNOWN: dict[str, int] = {
    **TRAINED,
    **SIZES,
    LATENCY: -1,
    **PREDICTIONS,
    **dict.fromkeys(ROOFLINES, -1),
    **SCORES,
}
"""All but those of a table and of a file, with 1 where more is better and -1 where less is."""

Function = Callable[[Architecture], float]


def sign_of(name: str, place: str) -> int:
    """The direction of a quantity that can be had without a table; raises InputError, which names ``place``.

    ``FILE.py:FUNCTION`` is a user's own: more is better unless said otherwise (``:min``).
    """
    if named_in_file(name) is not None:
        function_of(name, place)
        return 1
    if name not in KNOWN:
        raise one_of(place, name, (*KNOWN, "FILE.py:FUNCTION"))
    return KNOWN[name]


def function_of(name: str, place: str = "objective") -> Function:
    """The function ``FILE.py:FUNCTION``, which takes an architecture. Raises InputError."""
    function = value_named(name, place)
    if not callable(function):
        raise InputError(f"{place}: {name} is a {type(function).__name__}, not a function")
    return cast(Function, function)


class Measured(NamedTuple):
    """Quantities by name, and what belongs to them; with the seconds that this took."""

    values: Mapping[str, float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class QuantitiesSetup:
    """What a worker needs to measure ``names`` of untrained networks.

    ``meter`` makes what measures latencies; None: they are measured in the process that asks. Networks' weights are
    drawn from ``seed`` for scores, on ``batch_size`` images.
    """

    space: SearchSpace
    data: DataConfig
    names: tuple[str, ...]
    latency: LatencyConfig = dataclasses.field(default_factory=LatencyConfig)
    seed: int = 0
    batch_size: int = 32
    meter: Callable[[], Meter] | None = None
    predictor: LatencyPredictor | None = None
    """of the names in `PREDICTIONS`, where there are any"""
    roofline: Callable[[tuple[int, int, int], int], Callable[[Architecture], Mapping[str, float]]] | None = (
        None
    )
    """called with the images' shape and the number of classes: what answers those in `ROOFLINES`"""

    def __call__(self) -> Quantities:
        return Quantities(self)

    def meter_setup(self, dataset: Dataset) -> MeterSetup:
        return MeterSetup(self.space, dataset.image_shape, dataset.num_classes, self.latency)


class Quantities:
    """Measures what can be known of a network before it is trained."""

    def __init__(self, setup: QuantitiesSetup) -> None:
        self.setup = setup
        self._dataset = setup.data.load()
        names = setup.names
        self._sizes = [name for name in names if name in SIZES]
        self._predictions = [name for name in names if name in PREDICTIONS]
        self._functions = {name: function_of(name) for name in names if named_in_file(name) is not None}
        scores = [name for name in names if name in SCORES]
        self._scorer = (
            Scorer(setup.space, setup.data, scores, seed=setup.seed, batch_size=setup.batch_size)
            if scores
            else None
        )
        self._rooflines = [name for name in names if name in ROOFLINES]
        if self._rooflines:
            assert setup.roofline is not None
            self._roofline = setup.roofline(self._dataset.image_shape, self._dataset.num_classes)
        self._meter: Meter | None = None
        if LATENCY in names:
            self._meter = (setup.meter or setup.meter_setup(self._dataset))()
        self._latencies: dict[Architecture, Latency] = {}

    def network(self, arch: Architecture) -> Any:
        return build(self.setup.space, arch, self._dataset.num_classes)

    def outline(self, arch: Architecture) -> Outline:
        return outline(self.network(arch), self._dataset.image_shape)

    def size(self, arch: Architecture) -> tuple[int, int] | tuple[None, None]:
        """Parameters and multiply-adds; None where the space has no networks, which own objectives may not need."""
        if self.setup.space.build is None:
            return None, None
        found = self.outline(arch)
        return found.params, found.macs_per_image

    def __call__(self, arch: Architecture) -> Measured:
        """Raises TrialFailed where one cannot be had, or is not a finite number."""
        start = time.perf_counter()
        values: dict[str, float] = {}
        if self._sizes:
            found = self.outline(arch)
            sizes = (float(found.params), float(found.macs_per_image), float(found.macs_per_image))
            named = dict(zip(SIZES, (*sizes, float(found.activation_bytes)), strict=True))
            values |= {name: named[name] for name in self._sizes}
        if self.setup.predictor is not None:
            for name in self._predictions:
                of = self.network(arch), self._dataset.image_shape, self.setup.latency.latency_batch
                values[name] = self.setup.predictor.predict(name, arch, *of)
        for name, function in self._functions.items():
            values[name] = _called(name, function, arch)
        if self._scorer is not None:
            for name, scored in self._scorer(arch).items():
                if scored.error:
                    raise TrialFailed(f"{name}: {scored.error}")
                values[name] = scored.value
        if self._rooflines:
            answered = self._roofline(arch)
            values |= {name: answered[name] for name in self._rooflines}
        if self._meter is not None:
            if arch not in self._latencies:
                self._latencies[arch] = self._meter(arch)
            values |= self._latencies[arch].values()
        check_finite(values, self.setup.names)
        return Measured(values, time.perf_counter() - start)


def _called(name: str, function: Function, arch: Architecture) -> float:
    try:
        return float(function(arch))
    except (Exception, SystemExit) as error:
        raise TrialFailed(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def check_finite(values: Mapping[str, Any], names: Sequence[str], when: str = "") -> None:
    """Raises TrialFailed where one of ``names`` is there and not a finite number."""
    for name in names:
        if name in values and not math.isfinite(values[name]):
            raise TrialFailed(f"{name} is {values[name]}, not a finite number{when}")
