"""Predicted latencies: operations of a network counted by hand, the regression on known latencies, folders of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import kendalltau

from nas.data import load
from nas.errors import InputError
from nas.goals import LatencyConfig
from nas.objectives import latency
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Latency
from nas.objectives.predicted_latency import (
    LatencyPredictor,
    MeasuredNetwork,
    features,
    fitted,
    measure_operation,
    operations_of,
)
from nas.objectives.table import TableObjective
from nas.run import latency_fitting
from nas.run.latency_fitting import agreements, checked_predictor, measure_latencies, read_predictor
from nas.tables import load_table
from search_spaces import SPACES
from tests.benchmarks import bench_files


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """These networks' latencies are nobody's: as few rounds as there may be."""
    monkeypatch.setattr(latency, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(latency, "MOST_SECONDS", 0.0)


def tau(one: Any, other: Any) -> float:
    agreement: Any = kendalltau(one, other)
    return float(agreement.statistic)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def test_operations_are_the_modules_that_call_no_other_with_their_counts() -> None:
    found = {operation.name: count for operation, count in operations_of(Network(), (8, 8, 4), 2)}
    assert found == {
        "Conv(features=4, kernel_size=(3, 3)) of float32[2, 8, 8, 4]": 2,
        "BatchNorm(use_running_average=True) of float32[2, 8, 8, 4]": 1,
        "Dense(features=10) of float32[2, 4]": 1,
    }


def test_an_operation_is_measured_alone() -> None:
    for operation, _ in operations_of(Network(), (8, 8, 4), 2):
        assert measure_operation(operation, device=jax.devices()[0], repetitions=5).ms > 0


def networks(count: int, noise: float = 0.0) -> list[MeasuredNetwork]:
    """Whose latency is a product of what its choices say."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        arch = {"kind": str(rng.choice(["conv", "pool"])), "width": int(rng.integers(100, 900)), "bias": None}
        ms = (2.0 if arch["kind"] == "conv" else 1.0) * arch["width"] * math.exp(noise * rng.normal())
        found.append(
            MeasuredNetwork(arch, 10 * arch["width"], 100, 5, {"conv": arch["width"], "pool": 1}, ms)
        )
    return found


@pytest.mark.slow
def test_the_regression_learns_what_latency_depends_on() -> None:
    predictor = LatencyPredictor(tuple(networks(60)), {"conv": 1.0, "pool": 0.5})
    regression, summed = agreements(predictor)
    assert regression.tau.value > 0.95
    assert regression.error < 0.05
    assert summed.tau.value == pytest.approx(
        tau([n.arch["width"] for n in networks(60)], [n.ms for n in networks(60)])
    )
    np.testing.assert_allclose(predictor.sums()[0], networks(1)[0].arch["width"] + 0.5)


@pytest.mark.slow
def test_held_out_predictions_are_of_regressions_that_have_not_seen_the_network() -> None:
    """Latencies drawn at random have nothing to learn: seen ones would be answered, held-out ones cannot be."""
    rng = np.random.default_rng(1)
    drawn = tuple(each._replace(ms=float(math.exp(rng.normal()))) for each in networks(80))
    [regression, _] = agreements(LatencyPredictor(drawn, {"conv": 1.0, "pool": 0.5}))
    assert abs(regression.tau.value) < 0.25


def test_an_operation_that_nobody_measured_fails_the_trial() -> None:
    predictor = LatencyPredictor(tuple(networks(20)), {})
    with pytest.raises(
        TrialFailed, match=r"^summed_latency_ms: Conv\(.* was not measured; measure more networks"
    ):
        predictor.predict("summed_latency_ms", {}, Network(), (8, 8, 4), 1)
    measured = {operation.name: 0.5 for operation, _ in operations_of(Network(), (8, 8, 4), 1)}
    predictor = LatencyPredictor(tuple(networks(20)), measured)
    assert predictor.predict("summed_latency_ms", {}, Network(), (8, 8, 4), 1) == 2.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring takes no time, and each is noted."""
    seen: list[str] = []

    def one(operation, **_) -> Latency:
        seen.append(operation.name)
        return Latency(1.0, 1.0, 1.0, 0.0)

    def whole(network, *_, **__) -> Latency:
        seen.append("network")
        return Latency(float(len(seen)), 1.0, 1.0, 0.0)

    monkeypatch.setattr(latency_fitting, "measure_operation", one)
    monkeypatch.setattr(latency_fitting, "measure", whole)
    return seen


@pytest.mark.slow
def test_a_folder_is_gone_on_with_and_each_thing_measured_once(quick: list[str], tmp_path: Path) -> None:
    space, data = SPACES["mlp"].searched(), load("digits")
    archs = list(dict.fromkeys(space.sample(k) for k in range(30)))[:22]
    with pytest.raises(InputError, match="10 networks are measured; a prediction needs 20"):
        measure_latencies(space, archs[:10], data, LatencyConfig(), tmp_path)
    with (tmp_path / "latencies.jsonl").open("a") as file:
        file.write('{"arch": {"torn')
    predictor = measure_latencies(space, archs, data, LatencyConfig(), tmp_path, resume=True)
    assert quick.count("network") == len(predictor.networks) == 22
    assert max(quick.count(name) for name in quick if name != "network") == 1
    assert [dict(each.arch) for each in predictor.networks] == [dict(arch) for arch in archs]
    checked_predictor(tmp_path, space, data, LatencyConfig())
    with pytest.raises(InputError, match=r"latency_predictor: .* is of space=mlp, not chain"):
        checked_predictor(tmp_path, SPACES["chain"], data, LatencyConfig())
    with pytest.raises(InputError, match="latency_batch=1, not 8"):
        checked_predictor(tmp_path, space, data, LatencyConfig(latency_batch=8))
    lines = (tmp_path / "latencies.jsonl").read_text().splitlines()
    (tmp_path / "latencies.jsonl").write_text("\n".join([*lines, json.dumps({"arch": 3})]) + "\n")
    with pytest.raises(InputError, match=f"line {len(lines) + 1} is not a measured latency"):
        read_predictor(tmp_path)


@pytest.mark.parametrize(("device", "least"), [("fpga", 0.9), ("edgegpu", 0.7)])
@pytest.mark.some(1)
@pytest.mark.slow
def test_two_hundred_networks_of_hw_nas_bench_predict_the_order_of_others(
    device: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_BENCH_DIR", str(bench_files("hw_nas_bench", "nasbench201")))
    objective = TableObjective(SPACES["nasbench201"], load_table("nasbench201"))
    archs = [objective.architectures[k] for k in np.random.default_rng(0).permutation(15_625)[:700]]

    def measured(arch) -> MeasuredNetwork:
        params, macs = objective.size(arch)
        ms = objective.device_value(arch, f"latency_ms:{device}").value
        return MeasuredNetwork(arch, params or 0, macs or 0, 0, {}, ms)

    rows = [measured(arch) for arch in archs]
    known, held = rows[:200], rows[200:]
    regression = fitted([features(r.arch, r) for r in known], [r.ms for r in known])
    found = regression(*(features(r.arch, r) for r in held))
    assert tau(found, [r.ms for r in held]) > least
