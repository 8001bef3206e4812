"""A space trained completely: the record, its resumption, and the table made of it."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.base import Trained
from nas.objectives.table import TableObjective
from nas.objectives.train import TrainObjective, TrainSetup
from nas.record import read_run
from nas.run.tabulation import listed, narrowing, notes_of, table_of, tabulate
from nas.space import Integer, SearchSpace
from nas.tables import Column, Table, read_table, write_table
from nas.tables.shipped import read, write_sheet
from nas.training.config import TrainingConfig
from nas.trial import Final, Trial
from search_spaces import SPACES

SPACE = SPACES["minichain"].restrict(
    fix=["depth=2", "width=4", "kernel=3", "normalisation=batch", "augmentation=none"],
    narrow=["learning_rate=0.02,0.1"],
)
SETUP = TrainSetup(SPACE, DataConfig("digits"), TrainingConfig(), epochs=2, defaults={"batch_size": 128})
ARCHS = tuple(SPACE.enumerate())
VALID, TEST = Column("digits", 2, "valid_accuracy"), Column("digits", 2, "test_accuracy")


def tabulated(out: Path, seeds: int = 2, **more: bool) -> Table:
    run = tabulate(SETUP, out, seeds=seeds, cluster=None, **more)
    return table_of(run, SPACE, name="small", seeds=seeds, within=(), notes={})


def same(a: Table, b: Table) -> bool:
    return a.archs == b.archs and all(
        np.array_equal(curve.values, b.columns[column].values) for column, curve in a.columns.items()
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tabulation") / "run"
    tabulate(SETUP, folder, seeds=2, cluster=None)
    return folder


@pytest.fixture(scope="module")
def table(out: Path) -> Table:
    return table_of(read_run(out), SPACE, name="small", seeds=2, within=(), notes={})


def test_every_number_is_that_of_the_training_alone(table: Table) -> None:
    assert len(ARCHS) == 4
    assert table.archs == tuple(map(SPACE.to_string, ARCHS))
    objective = SETUP(None)
    for row, seed in ((0, 1), (3, 0)):
        measurements, final = objective.trained(ARCHS[row], seed, 2)
        for quantity in ("valid_accuracy", "valid_loss", "train_accuracy", "train_loss"):
            values = table.curve(Column("digits", 2, quantity)).values[row, seed]
            assert values.tolist() == [np.float32(getattr(m, quantity)) for m in measurements]
        assert table.at(TEST)[row, seed] == np.float32(final.test_accuracy)
        assert table.sizes["digits"].params[row] == final.params
        assert table.sizes["digits"].macs_per_image[row] == final.macs_per_image
    assert (table.costs["digits", 2].train_seconds > 0).all()
    assert table.require(VALID) == (1, 2)
    assert table.require(TEST) == (2,)


def test_the_table_is_an_objective_of_its_space(table: Table) -> None:
    objective = TableObjective(SPACE, table)
    measurements = list(objective(Trial(0, ARCHS[2], 2, seed=1)))
    assert [m.valid_accuracy for m in measurements] == pytest.approx(table.curve(VALID).values[2, 1])
    assert objective.final(ARCHS[2], 1, 2).test_accuracy == pytest.approx(float(table.at(TEST)[2, 1]))


def test_killed_anywhere_it_goes_on_to_the_same_table(out: Path, table: Table, tmp_path: Path) -> None:
    lines = (out / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 8 * 5  # begun, two epochs, tested, ended
    for k, torn in ((22, 30), (24, 0), (29, 5)):  # within a line, after a test, before one
        folder = tmp_path / str(k)
        shutil.copytree(out, folder)
        (folder / "trials.jsonl").write_bytes(b"".join(lines[:k]) + lines[k][:torn])
        with pytest.raises(
            InputError, match=rf"{folder}: {k // 5} of 8 trainings are done; go on with --resume"
        ):
            table_of(read_run(folder), SPACE, name="small", seeds=2, within=(), notes={})
        assert same(tabulated(folder, resume=True), table)


def test_seeds_may_be_added(table: Table, tmp_path: Path) -> None:
    one = tabulated(tmp_path / "run", seeds=1)
    assert one.at(TEST).tolist() == table.at(TEST)[:, :1].tolist()
    assert same(tabulated(tmp_path / "run", seeds=2, resume=True), table)
    assert same(tabulated(tmp_path / "run", seeds=1, resume=True), one)
    other = dataclasses.replace(SETUP, epochs=3)
    with pytest.raises(InputError, match="epochs"):
        tabulate(other, tmp_path / "run", seeds=2, cluster=None, resume=True)


def test_a_training_that_fails_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = TrainObjective.trained

    def failing(
        self, arch, seed, epochs
    ):  # the second architecture diverges in its second epoch, from seed 1
        measurements, final = trained(self, arch, seed, epochs)
        if arch == ARCHS[1] and seed == 1:
            return Trained(measurements[:1], Final(arch, seed, epochs, error="loss is nan by step 9"))
        return Trained(measurements, final)

    monkeypatch.setattr(TrainObjective, "trained", failing)
    table = tabulated(tmp_path / "run")
    for curve in table.columns.values():
        assert np.isnan(curve.values[1, 1]).all()
        assert not np.isnan(np.delete(curve.values, 1, axis=0)).any()
    assert np.isnan(table.costs["digits", 2].train_seconds[1, 1])
    assert not math.isnan(table.costs["digits", 2].train_seconds[1, 0])
    assert table.sizes["digits"].params[1] > 0
    assert read_run(tmp_path / "run").failed[0].error == "loss is nan by step 9"


def test_spaces_without_end_are_refused() -> None:
    with pytest.raises(InputError, match=r"^space chain: dropout is continuous: --fix dropout="):
        listed(SPACES["chain"])
    many = SearchSpace("many", {name: Integer(1, 100) for name in "abc"})
    with pytest.raises(InputError, match=r"^space many: 1,000,000 architectures are more than 100,000"):
        listed(many)


def test_narrowing_says_what_was_fixed() -> None:
    whole = SPACES["minichain"]
    part = whole.restrict(["depth=2", "normalisation=batch"], ["learning_rate=0.02,0.1", "width=8..16"])
    texts = narrowing(whole, part)
    assert texts == ("depth=2", "width=8,16", "normalisation=batch", "learning_rate=0.02,0.1")
    assert list(whole.restrict(narrow=texts).enumerate()) == list(part.enumerate())
    assert narrowing(whole, whole) == ()


def test_sheet_and_sum_guard_a_shipped_table(table: Table, out: Path, tmp_path: Path) -> None:
    noted = dataclasses.replace(
        table, notes=notes_of(read_run(out), "python scripts/make_table.py --epochs 2")
    )
    path = tmp_path / "small.npz"
    sheet = write_sheet(noted, path, write_table(noted, path))
    assert same(read("small", tmp_path), table)
    assert read_table(path).notes["command"] == "python scripts/make_table.py --epochs 2"
    assert '"batch_size": 128' in read_table(path).notes["hyperparameters"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"^table small: .*small\.npz is damaged: its sha256 is"):
        read("small", tmp_path)
    sheet.unlink()
    with pytest.raises(InputError, match=r"^table small: cannot read"):
        read("small", tmp_path)


def test_nothing_is_written_where_an_option_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^seeds: 0 is below 1$"):
        tabulate(SETUP, tmp_path / "run", seeds=0, cluster=None)
    with pytest.raises(InputError, match="continuous"):
        tabulate(dataclasses.replace(SETUP, space=SPACES["chain"]), tmp_path / "run", seeds=1, cluster=None)
    assert list(tmp_path.iterdir()) == []
