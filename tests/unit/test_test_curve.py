"""The test curve of a final training: beside validation, never in its place, and whole after a crash."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nas.data.config import DataConfig
from nas.record import Record, Run, read_run, record_difference
from nas.run.training import train_to_end
from nas.training.config import TrainingConfig
from nas.trial import Measurement, MeasurementWithTest
from search_spaces.chain import SPACE

ARCH = SPACE.from_string(
    "depth=1,width_1=8,kernel_1=3,stride=1,pooling=max,downsample_every=1,connections=plain,normalisation=batch,"
    "activation=relu,head_depth=0,dropout=0.0,optimiser=nesterov,learning_rate=0.05,schedule=cosine,"
    "batch_size=64,weight_decay=1e-05,label_smoothing=0.0,augmentation=none"
)
EPOCHS = 4


def trained(
    folder: Path, *, test_curve: bool = True, resume: bool = False, seeds: tuple[int, ...] = (0,)
) -> Run:
    return train_to_end(
        SPACE,
        ARCH,
        DataConfig("digits", subset=300),
        TrainingConfig(),
        folder,
        epochs=EPOCHS,
        seeds=seeds,
        validate=True,
        test_curve=test_curve,
        resume=resume,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One that was not interrupted."""
    return trained(tmp_path_factory.mktemp("whole") / "run")


def test_every_epoch_is_tested_and_the_last_is_the_result(whole: Run) -> None:
    points = whole.trials[0].measurements
    assert [type(point) for point in points] == [MeasurementWithTest] * EPOCHS
    last = points[-1]
    assert isinstance(last, MeasurementWithTest)
    assert (last.test_accuracy, last.test_loss) == (
        whole.finals[0].test_accuracy,
        whole.finals[0].test_loss,
    )
    assert last.test_loss != last.valid_loss  # two sets of images
    assert read_run(whole.folder).trials[0].measurements == points
    assert whole.trials[0].score == last.valid_accuracy


def test_the_curve_changes_nothing_else_and_comes_only_when_asked_for(whole: Run, tmp_path: Path) -> None:
    without = trained(tmp_path / "run", test_curve=False)
    assert {type(point) for point in without.trials[0].measurements} == {Measurement}
    for point, same in zip(without.trials[0].measurements, whole.trials[0].measurements, strict=True):
        for field in dataclasses.fields(Measurement):
            if not field.name.endswith("_seconds"):
                assert getattr(point, field.name) == getattr(same, field.name)
    assert without.finals[0].test_loss == whole.finals[0].test_loss


@pytest.mark.parametrize("written", [True, False])
def test_a_crash_loses_no_point(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Killed at the second epoch, before or after its line is on the disk; its checkpoint may be there."""
    folder = tmp_path / "run"
    record = Record.measure

    def dies(self: Record, trial_id: int, measurement: Measurement, **sizes: Any) -> None:
        if measurement.budget != 2 or written:
            record(self, trial_id, measurement, **sizes)
        if measurement.budget == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Record, "measure", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(folder)
    assert len(read_run(folder).trials[0].measurements) == (2 if written else 1)
    trained(folder, resume=True)
    assert record_difference(whole.folder, folder) is None


def test_another_seed_that_goes_on_in_the_folder_is_a_training_of_its_own(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", test_curve=False)
    more = trained(tmp_path / "run", test_curve=False, resume=True, seeds=(1,))
    alone = trained(tmp_path / "alone", test_curve=False, seeds=(1,))
    assert [final.seed for final in more.finals] == [0, 1]
    assert [trial.seed for trial in more.trials.values()] == [0, 1]
    assert more.finals[0] == run.finals[0]
    assert more.finals[1].test_loss == alone.finals[0].test_loss != more.finals[0].test_loss


def test_a_search_has_no_such_curve() -> None:
    """What objectives yield to strategies has no field that tests could be read from."""
    assert not [field.name for field in dataclasses.fields(Measurement) if "test" in field.name]
