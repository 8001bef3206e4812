"""The shipped table: the file that was made, what it says, and two of its entries trained again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nas.data.config import DataConfig
from nas.objectives.table import TableObjective
from nas.objectives.train import TrainSetup
from nas.tables import Column, Table, load_table
from nas.tables.shipped import FOLDER
from nas.training.config import TrainingConfig
from search_spaces.minichain import SPACE

ROOT = Path(__file__).parents[2]
VALID, TEST = Column("mnist5k", 27, "valid_accuracy"), Column("mnist5k", 27, "test_accuracy")
SHA256 = "979db38983c51eccfc73208508f7abceac83d5fed8aa86dbf3c9866b466617d1"


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table("minichain")


def test_it_is_the_file_that_was_made_and_small(table: Table) -> None:
    sheet = json.loads((FOLDER / "minichain.json").read_text())
    assert sheet["sha256"] == SHA256  # `load_table` holds the file to its sheet
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6
    assert sheet["command"].startswith("python scripts/make_table.py --space minichain --dataset mnist5k ")
    assert {"data", "hyperparameters", "hardware", "versions", "wall_seconds"} <= set(sheet)


def test_every_architecture_has_every_epoch_from_two_seeds(table: Table) -> None:
    assert table.archs == tuple(map(SPACE.to_string, SPACE.enumerate()))
    assert len(table.archs) == 360
    for quantity in ("valid_accuracy", "valid_loss", "train_accuracy", "train_loss"):
        curve = table.curve(Column("mnist5k", 27, quantity))
        assert curve.epochs == tuple(range(1, 28))
        assert curve.values.shape == (360, 2, 27)
        assert np.isfinite(curve.values).all()
    assert table.at(TEST, 27).shape == (360, 2)
    assert np.isfinite(table.at(TEST)).all()
    cost = table.costs["mnist5k", 27]
    assert (cost.train_seconds > 0).all()
    assert (cost.evaluate_seconds > 0).all()
    objective = TableObjective(SPACE, table)
    assert objective.epochs == tuple(range(1, 28))
    assert objective.valid == VALID


def test_architectures_differ_and_their_curves_cross(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    crossing = importlib.import_module("hyperband_2016").crossing
    assert np.ptp(np.quantile(table.mean(TEST), [0.1, 0.9])) > 0.1
    first, third, ninth, _ = crossing(table)
    assert 0.5 < first.correlation < third.correlation < ninth.correlation < 0.98
    assert first.among_best < 0.4
    assert (
        ninth.among_best < 0.7
    )  # of the good ones, the first third of the training does not say which is best
    # The two seeds are two trainings: they agree on what is good, and not on more.
    apart = np.abs(np.diff(table.at(TEST), axis=1))
    assert 0.001 < np.median(apart) < 0.02


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("depth=1,width=8,kernel=5,normalisation=none,learning_rate=0.1,augmentation=none", 1),
        pytest.param(
            "depth=3,width=4,kernel=3,connections=dense,normalisation=batch,learning_rate=0.02,"
            "augmentation=crop+cutout",
            0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_trained_again_an_entry_is_the_same(table: Table, text: str, seed: int) -> None:
    data = DataConfig("mnist5k", image_size=14, valid_fraction=0.4286, test_fraction=0.3)
    setup = TrainSetup(SPACE, data, TrainingConfig(evaluate_batch_size=500), epochs=27)
    arch = SPACE.from_string(text)
    measurements, final = setup(None).trained(arch, seed, 27)
    row = table.archs.index(text)
    assert (final.params, final.macs_per_image) == tuple(int(part[row]) for part in table.sizes["mnist5k"])
    # To the bit where it was made; other kernels round otherwise, and rounding grows in training.
    found = np.array([m.valid_accuracy for m in measurements])
    recorded = table.curve(VALID).values[row, seed]
    assert np.abs(found - recorded)[:3].max() < 0.02
    assert np.abs(found - recorded).mean() < 0.02
    assert final.test_accuracy == pytest.approx(float(table.at(TEST)[row, seed]), abs=0.02)
