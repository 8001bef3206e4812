"""The published tables, read: what their papers say of them, and the official records against the compact table."""

from __future__ import annotations

import numpy as np
import pytest

from nas.objectives.table import TableObjective
from nas.strategies import STRATEGIES, StrategyConfig
from nas.tables import Column, load_table, nasbench201, read_table, write_table
from nas.tables.nasbench201 import IMAGES, read_official
from search_spaces.nasbench201 import SPACE, Skeleton, architecture_of, official_order, to_text
from tests.benchmarks import bench_files

SAMPLES = "nasbench201/official_samples"


@pytest.fixture(scope="module")
def compact():
    return load_table("nasbench201", bench_files("nasbench201/nb201.csv.gz", "nasbench201/latency_ms.csv.gz"))


@pytest.fixture(scope="module")
def official():
    return nasbench201.convert(bench_files(SAMPLES) / SAMPLES)


def test_the_optimum(compact):
    """Dong et al. 2021: 94.37, 73.51, 47.31."""
    for name, best in (("cifar10", 94.37), ("cifar100", 73.51), ("ImageNet16-120", 47.31)):
        assert round(100 * compact.mean(compact.task(name).test, 200).max(), 2) == best


def test_sizes_are_exact(compact):
    """Also the multiply-adds that the file has to seven digits."""
    for name, shape, classes in (("cifar10", (32, 32, 3), 10), ("ImageNet16-120", (16, 16, 3), 120)):
        sizes = [Skeleton().size(SPACE.from_string(text), shape, classes) for text in compact.archs[:3000]]
        assert compact.sizes[name].params[:3000].tolist() == [size.params for size in sizes]
        assert compact.sizes[name].macs_per_image[:3000].tolist() == [size.macs_per_image for size in sizes]


def test_the_official_order():
    meta = read_official(bench_files(SAMPLES) / SAMPLES / "meta.pickle.pbz2")
    assert meta["meta_archs"] == [to_text(architecture_of(cell)) for cell in official_order()]


def test_official_records_equal_the_compact_table(official, compact):
    rows = [compact.archs.index(text) for text in official.archs]
    assert rows == [0, 11, 284]
    for column, curve in compact.columns.items():
        for epoch in curve.epochs:
            np.testing.assert_allclose(
                official.mean(column, epoch), compact.mean(column, epoch)[rows], rtol=0, atol=1e-7
            )
    for name, size in compact.sizes.items():
        assert official.sizes[name].params.tolist() == size.params[rows].tolist()
        assert official.sizes[name].macs_per_image.tolist() == size.macs_per_image[rows].tolist()


def test_official_records_have_every_epoch_and_repetition(official):
    valid = Column("cifar10-valid", 12, "valid_accuracy")
    assert official.require(valid) == tuple(range(1, 13))
    assert official.curve(valid).values.shape == (3, 2, 12)
    long = official.curve(Column("cifar10", 200, "test_accuracy"))
    assert (long.epochs, long.values.shape) == (tuple(range(1, 201)), (3, 3, 200))
    assert official.require(Column("cifar10-valid", 200, "test_accuracy")) == (200,)
    # architecture 11, seed 111: of the file itself
    assert official.at(valid, 12)[1, 0] == np.float32(0.6258)
    assert official.at(valid, 1)[1, 0] == pytest.approx(0.30008, abs=1e-7)
    with pytest.raises(ValueError, match="has no cifar10/12/valid_accuracy; it has"):
        official.at(Column("cifar10", 12, "valid_accuracy"))


def test_official_times_are_in_proportion_to_the_images(official):
    """What the estimate for the compact table takes for granted."""
    seconds = {d: official.costs[d, 12].train_seconds[:, 0] / images for d, (images, _) in IMAGES.items()}
    for name in IMAGES:
        np.testing.assert_allclose(seconds[name], seconds["cifar10-valid"], rtol=1e-3)


def test_estimated_times_are_near_the_official_ones(official, compact):
    rows = [compact.archs.index(text) for text in official.archs]
    for key in (("cifar10-valid", 12), ("cifar100", 12), ("ImageNet16-120", 12)):
        for known, estimated in zip(official.costs[key], compact.costs[key], strict=True):
            np.testing.assert_allclose(estimated[rows, 0], known[:, 0], rtol=0.25)


def test_official_records_come_back_from_our_format(official, tmp_path):
    write_table(official, tmp_path / "t.npz")
    again = read_table(tmp_path / "t.npz")
    for column, curve in official.columns.items():
        np.testing.assert_array_equal(again.curve(column).values, curve.values)
    objective = TableObjective(SPACE, again)
    curve = objective.measurements(SPACE.from_string(again.archs[1]), 1)
    assert (objective.units, objective.final_epochs) == (12, 200)
    assert curve[-1].valid_accuracy == 0.63976
    assert sum(m.train_seconds for m in curve) == pytest.approx(12 * 12.462, abs=0.01)
    last = TableObjective(SPACE, again, epochs=(12,)).measurements(SPACE.from_string(again.archs[1]), 1)
    assert last[0].seconds == pytest.approx(12 * 12.462 + 4.151, abs=0.01)  # as the authors simulate a query


def test_random_search_is_the_published_one(compact):
    """93.70 +- 0.36 (Dong and Yang 2020) in 12,000 simulated seconds: here over 100 searches."""
    objective = TableObjective(SPACE, compact)
    found = []
    for seed in range(100):
        strategy = STRATEGIES["random"](SPACE, StrategyConfig(seed=seed, epochs=objective.units))
        spent, best = 0.0, (-1.0, SPACE.sample(0))
        while True:
            trial = strategy.ask()
            assert trial is not None
            (shown,) = objective.measurements(trial.arch, trial.seed)
            spent += shown.seconds
            if spent > 12_000:
                break
            best = max(best, (shown.valid_accuracy, trial.arch), key=lambda pair: pair[0])
        found.append(100 * objective.test_accuracies[objective.row(best[1])])
    assert np.mean(found) == pytest.approx(93.70, abs=0.12)
    assert np.std(found) == pytest.approx(0.36, abs=0.12)


def test_macro():
    table = load_table("nasbench_macro", bench_files("nasbench_macro"))
    mean = table.mean(Column("cifar10", 50, "test_accuracy"), 50)
    assert len(table.archs) == 3**8
    best = {arch for arch, accuracy in zip(table.archs, mean, strict=True) if accuracy == mean.max()}
    assert "22212220" in best
    # where in a stage an identity stands makes no other network, and the authors trained each one once
    assert best == {"22212220", "22212202"}
    assert round(100 * mean.max(), 3) == 93.127
