"""Accel-NASBench: its rows, searches among them, and the models fitted to them."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.surrogate import SurrogateObjective, table_objective
from nas.objectives.table_goals import TableGoals
from nas.objectives.train import build, size_of
from nas.tables import load_table
from nas.tables.accel_nasbench import VALID
from nas.tables.official import accel_nasbench_file
from nas.tables.surrogate import Surrogate, fitted
from nas.trial import Trial
from search_spaces import SPACES
from search_spaces.accel_nasbench import SPACE, to_mbconv
from search_spaces.mbconv import NAMED, SUBSPACES
from tests.benchmarks import bench_files
from tests.golden.test_mbconv_counts import by_hand

B0 = "e1k3l1se1_e6k3l2se1_e6k5l2se1_e6k3l3se1_e6k5l3se1_e6k5l4se1_e6k3l1se1"


@pytest.fixture(scope="module")
def rows():
    return load_table("accel_nasbench", bench_files("accel_nasbench/anb.csv.gz"))


def test_the_space_is_that_part_of_mbconv():
    assert to_mbconv(SPACE.from_string(B0)) == NAMED["efficientnet_b0"].arch
    assert size_of(build(SPACE, SPACE.from_string(B0), 1000), (224, 224, 3)).params == 5_288_548
    assert SPACE.size().value == (3 * 2 * 2) ** 7 * 3**6 * 4
    part = SPACES["mbconv"].restrict(narrow=SUBSPACES["accel_nasbench"])
    for k in range(20):
        part.validate(to_mbconv(SPACE.sample(k)))
    with pytest.raises(InputError, match="is not 7 stages as e6k3l2se1 joined by _"):
        SPACE.from_string("e1k3l1se1")


def test_rows_have_the_sizes_of_our_networks(rows):
    """To the parameter, as the benchmark's own code counts them."""
    assert len(rows.archs) == 5_125
    params = rows.sizes["imagenet"].params
    for k in range(0, len(rows.archs), 20):
        assert by_hand(to_mbconv(SPACE.from_string(rows.archs[k])), 224)[0] == params[k]
    assert (np.diff(rows.sizes["imagenet"].macs_per_image) >= 0).all()


@pytest.mark.slow
def test_a_search_among_the_rows(rows):
    objective = table_objective(SPACE, rows)
    space = objective.space
    arch = space.from_string(rows.archs[7])
    assert arch == {"row": 7}
    assert space.to_string(arch) == rows.archs[7]
    assert len(objective.architectures) == 5_125
    (measured,) = objective(Trial(id=0, arch=arch, seed=0, budget=1))
    assert measured.valid_accuracy == pytest.approx(float(rows.at(VALID)[7, 0]), abs=1e-6)
    speed = objective.device_value(arch, "throughput:tpuv3")
    assert speed == (rows.devices["imagenet"]["throughput:tpuv3"][7], "images/s", 1)
    assert objective.optimum == pytest.approx(0.67052)
    assert space.features is not None
    assert np.array_equal(space.features(arch), SPACE.encode(SPACE.from_string(rows.archs[7])))
    assert build(space, arch, 10) == build(SPACE, SPACE.from_string(rows.archs[7]), 10)
    with pytest.raises(InputError, match=r"accel_nasbench: .*is none of the 5,125 rows"):
        space.from_string(B0)
    narrow = table_objective(SPACE.fix("expansion_1", 1).fix("kernel", 3).fix("depth_6", 4), rows)
    assert {SPACE.from_string(narrow.space.to_string(a))["kernel_5"] for a in narrow.architectures} == {3}
    with pytest.raises(InputError, match="holds no architecture of accel_nasbench as it is narrowed"):
        table_objective(SPACE.restrict(fix=[f"{k}={v}" for k, v in SPACE.from_string(B0).items()]), rows)


def made_up(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 4, (300, 3)).astype(float)
    return numbers, numbers @ [1.0, -2.0, 0.5] + 0.01 * rng.standard_normal(300)


def test_models_are_scikit_learns(monkeypatch):
    """Node by node as its own prediction, stopped where the second split is predicted best."""
    monkeypatch.setattr("nas.tables.surrogate.TREES", 60)
    numbers, target = made_up()
    trees = fitted(numbers, target)
    assert trees.kendall_tau > 0.9
    regressor: Any = HistGradientBoostingRegressor
    model = regressor(
        max_iter=60, max_leaf_nodes=4, learning_rate=0.1, l2_regularization=1.0, early_stopping=False
    )
    order = np.random.default_rng(0).permutation(300)
    model.fit(numbers[order[:240]], target[order[:240]])
    stages = list(model.staged_predict(numbers))
    errors = [np.square(stage[order[240:270]] - target[order[240:270]]).mean() for stage in stages]
    np.testing.assert_allclose(trees(numbers), stages[int(np.argmin(errors))], rtol=1e-9)


def test_models_are_kept_in_the_cache_and_a_damaged_one_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("nas.tables.surrogate.TREES", 20)
    numbers, target = made_up()
    target[:5] = np.nan
    first = Surrogate(("a", "b", "c"), numbers, {"latency_ms:x": target}, "sum")
    expected = first.predict("latency_ms:x", [{"a": 1, "b": 2, "c": 3}])
    (path,) = (tmp_path / "surrogates").iterdir()
    again = dataclasses.replace(first, _models={})
    assert again.model("latency_ms:x").kendall_tau == first.model("latency_ms:x").kendall_tau
    path.write_bytes(path.read_bytes()[:100])
    again = dataclasses.replace(first, _models={})
    np.testing.assert_array_equal(again.predict("latency_ms:x", [{"a": 1, "b": 2, "c": 3}]), expected)
    with pytest.raises(InputError, match="surrogate: column: 'speed' is not one of latency_ms:x"):
        first.model("speed")


def test_a_surrogate_answers_for_the_whole_space(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("nas.tables.surrogate.TREES", 100)
    objective = table_objective(SPACE, load_table("accel_nasbench_surrogate", bench_files("accel_nasbench")))
    assert isinstance(objective, SurrogateObjective)
    b0 = SPACE.from_string(B0)
    (measured,) = objective(Trial(id=0, arch=b0, seed=3, budget=1))
    assert 0.6 < measured.valid_accuracy < 0.68
    assert 1_000 < measured.train_seconds < 6_000
    assert objective.test_accuracies[objective.row(b0)] == measured.valid_accuracy
    speed = objective.device_value(b0, "throughput:tpuv3")
    assert (300 < speed.value < 2_000, speed.unit, speed.direction) == (True, "images/s", 1)
    assert objective.optimum >= max(objective.test_accuracies)
    assert objective.regret(b0) == pytest.approx(objective.optimum - measured.valid_accuracy)
    assert objective.final(b0, 0, 16).test_accuracy == measured.valid_accuracy
    assert objective.size(b0) == (None, None)
    assert objective.size(SPACE.from_string(rows.archs[3]))[0] == rows.sizes["imagenet"].params[3]
    with pytest.raises(InputError, match="'latency_ms:a100' is not one of throughput:tpuv2, "):
        objective.device_value(b0, "latency_ms:a100")
    goals = TableGoals(objective, ("valid_accuracy", "throughput:tpuv3"), ())
    assert objective.row(b0) >= len(objective.architectures)  # the models answer, not a row
    (judged,) = goals.measurements(b0, 0)
    assert judged.values["throughput:tpuv3"] == speed.value
    assert goals.tested(b0).gains == judged.gains
    assert "models" in goals.front_of
    with pytest.raises(
        InputError, match="the models of table accel_nasbench_surrogate do not predict params"
    ):
        TableGoals(objective, ("valid_accuracy", "params"), ())
    assert objective.table.surrogate is not None
    assert 0.7 < objective.table.surrogate.model("valid_accuracy").kendall_tau < 1


def test_the_authors_archive_becomes_the_rows(rows, tmp_path):
    """A result in their form, as one row that reads back."""
    architecture = {}
    for stage, text in enumerate(rows.archs[0].split("_")):
        kernel = text.partition("k")[2][0]
        architecture |= {f"block{stage}_e": int(text[1]), f"block{stage}_k": int(kernel)}
        architecture |= {
            f"block{stage}_l": int(text.partition("l")[2][0]),
            f"block{stage}_se": text[-1] == "1",
        }
    result = {
        "architecture": architecture,
        "metrics": {"val_top1": 50.5, "val_top5": 80.0, "train_time": 1600.0},
        "model_info": {"macs": 100.0, "params": 2.5},
        "platform_perf": {"throughput_tpuv3": {"throughput_mean": 900.5, "throughput_std": None}},
    }
    with tarfile.open(tmp_path / "jsons.tar.gz", "w:gz") as archive:
        content = json.dumps(result).encode()
        member = tarfile.TarInfo("./anb_dataset_jsons/result_0.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    zipped, known = accel_nasbench_file(tmp_path / "jsons.tar.gz")
    assert not known
    (tmp_path / "anb.csv.gz").write_bytes(zipped)
    table = load_table("accel_nasbench", tmp_path)
    assert table.archs == rows.archs[:1]
    assert table.at(VALID)[0, 0] == np.float32(0.505)
    assert table.device("throughput:tpuv3").values[0] == 900.5
    assert np.isnan(table.device("latency_ms:zcu102").values[0])
    for content in (b"", gzip.compress(b"no tar"), b"{}"):
        (tmp_path / "wrong.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match="is not the authors' archive"):
            accel_nasbench_file(tmp_path / "wrong.tar.gz")
    objective = table_objective(SPACE, dataclasses.replace(table, sampled=False))
    with pytest.raises(TrialFailed, match="has no e"):
        objective.row(SPACE.sample(0))
