"""Many networks' latencies and those of their operations, measured into a folder that latencies are predicted from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nas.data.dataset import Dataset
from nas.errors import InputError
from nas.goals import PREDICTED_LATENCY, SUMMED_LATENCY, LatencyConfig
from nas.nn.bridge import build
from nas.objectives.latency import device_of, measure
from nas.objectives.predicted_latency import (
    FEWEST,
    LatencyPredictor,
    MeasuredNetwork,
    measure_operation,
    operations_of,
)
from nas.record.files import RecordFile, holds, read
from nas.report.statistics import Estimate, kendall
from nas.space import Architecture, SearchSpace
from nas.training.network import outline

FILE = "latencies.jsonl"
_SIZES = ("params", "macs_per_image", "activation_bytes")


def measure_latencies(
    space: SearchSpace,
    archs: Sequence[Architecture],
    dataset: Dataset,
    config: LatencyConfig,
    out: Path,
    *,
    resume: bool = False,
    on_measured: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyPredictor:
    """Measure ``archs``, untrained, and each operation of theirs, into ``out``, a line once one is there.

    With ``resume`` goes on behind what is in the folder. ``on_measured`` hears how many architectures are done.
    Raises InputError.
    """
    device = device_of(config.latency_device)
    told = {
        **_networks(space, dataset, config),
        "latency_device": device.platform,
        "latency_repetitions": config.latency_repetitions,
    }
    known: list[Any] = []
    if resume and holds(out, FILE):
        record = RecordFile.resume(out, FILE, told, known.extend)
    else:
        record = RecordFile.create(out, FILE, told)
    try:
        measured = {line["operation"] for line in known if "operation" in line}
        done = {json.dumps(line["arch"]) for line in known if "arch" in line}

        def keep(line: Mapping[str, Any]) -> None:
            record.append(json.dumps(line), lambda: f"what is in {FILE} is")

        for k, arch in enumerate(archs):
            if json.dumps(dict(arch)) not in done:
                network = build(space, arch, dataset.num_classes)
                counted = operations_of(network, dataset.image_shape, config.latency_batch)
                for operation, _ in counted:
                    if operation.name not in measured:
                        found = measure_operation(
                            operation, device=device, repetitions=config.latency_repetitions
                        )
                        keep({"operation": operation.name, **found.values()})
                        measured.add(operation.name)
                found = measure(
                    network,
                    dataset.image_shape,
                    device=device,
                    batch=config.latency_batch,
                    repetitions=config.latency_repetitions,
                )
                size = outline(network, dataset.image_shape)
                keep(
                    {
                        "arch": dict(arch),
                        **{name: getattr(size, name) for name in _SIZES},
                        "operations": {operation.name: count for operation, count in counted},
                        **found.values(),
                    }
                )
                jax.clear_caches()  # hundreds of compiled networks would fill the memory
            on_measured(k + 1, len(archs))
    finally:
        record.close()
    return read_predictor(out)[0]


def _networks(space: SearchSpace, dataset: Dataset, config: LatencyConfig) -> dict[str, Any]:
    """What latencies are of, and are predicted for alone."""
    return {
        "space": space.name,
        "image_shape": list(dataset.image_shape),
        "num_classes": dataset.num_classes,
        "latency_batch": config.latency_batch,
    }


def read_predictor(folder: Path) -> tuple[LatencyPredictor, Mapping[str, Any]]:
    """What can be predicted from a folder of `measure_latencies`, and its config. Raises InputError."""
    config, _, lines = read(folder, FILE)
    networks, operations_ms = [], {}
    for number, line in enumerate(lines, 1):
        try:
            if "operation" in line:
                operations_ms[str(line["operation"])] = float(line["latency_ms"])
            else:
                params, macs, activation_bytes = (int(line[name]) for name in _SIZES)
                counts = {str(name): int(count) for name, count in line["operations"].items()}
                networks.append(
                    MeasuredNetwork(
                        dict(line["arch"]), params, macs, activation_bytes, counts, float(line["latency_ms"])
                    )
                )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(f"{folder / FILE}: line {number} is not a measured latency") from None
    if len(networks) < FEWEST:
        raise InputError(f"{folder}: {len(networks)} networks are measured; a prediction needs {FEWEST}")
    return LatencyPredictor(tuple(networks), operations_ms), config


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a prediction agrees with measured latencies of networks that it was not fitted to."""

    name: str
    tau: Estimate
    """Kendall's tau-b with its bootstrap interval over networks"""
    error: float
    """median of the predictions' errors, as a share of the latency"""


def agreements(
    predictor: LatencyPredictor, names: Sequence[str] = (PREDICTED_LATENCY, SUMMED_LATENCY)
) -> Iterator[Agreement]:
    """Of the regression by cross-validation; of the sum, which is fitted to nothing, plainly."""
    ms = np.array([each.ms for each in predictor.networks])
    for name in names:
        found = predictor.held_out() if name == PREDICTED_LATENCY else predictor.sums()
        yield Agreement(name, kendall(found, ms), float(np.median(np.abs(found / ms - 1))))


def checked_predictor(
    folder: Path, space: SearchSpace, dataset: Dataset, config: LatencyConfig
) -> LatencyPredictor:
    """The predictor in ``folder``. Raises InputError where its latencies are of another space, or other images."""
    predictor, told = read_predictor(folder)
    for name, value in _networks(space, dataset, config).items():
        if told.get(name) != value:
            raise InputError(f"latency_predictor: {folder} is of {name}={told.get(name)}, not {value}")
    return predictor
