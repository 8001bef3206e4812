"""Trackers hear what a search does and write what its record holds: read back from the files themselves."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.errors import InputError
from nas.record import Record, Run
from nas.report import trackers
from nas.run import local
from nas.run.tracking import Tracking, tracking
from nas.strategies import STRATEGIES, combined_config
from nas.trial import Final, Trial
from tests.synthetic import SPACE, Setup

ROOT = Path(__file__).parents[2]
Config: Any = combined_config(STRATEGIES.values())


def events(file: Path) -> Iterator[Any]:
    """TFRecords: length, its checksum, the event, its checksum."""
    from tensorboardX.proto import event_pb2

    kind: Any = vars(event_pb2)["Event"]
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = kind()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        yield event
        at += 12 + length + 4


def curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By folder and tag the steps and values."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for file in sorted(folder.glob("*/events.*")):
        for event in events(file):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    tags = found.setdefault(file.parent.name, {})
                    tags.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
    return found


def search(
    folder: Path, listener: Any = None, *, resume: bool = False, raises: dict[int, int] | None = None
) -> Run:
    config = Config(epochs=3, trials=20)
    opened = Record.resume if resume else Record.create
    with opened(folder, {"seed": 0}, env={}, fsync=False) as record:
        setup = Setup(folder.with_suffix(".log"), raises=raises or {})
        objective = setup(folder / "checkpoints")
        strategy = STRATEGIES["asha"](SPACE, config)
        run = local.execute(strategy, objective, record, epochs=3, on_event=listener)
        if run.best is not None and not run.finals:
            final = Final(run.best.arch, 0, 3, 0.5, params=7)
            record.final(final)
            if listener is not None:
                listener.final(final)
        return record.run()


def test_tensorboard_has_the_record_live_and_afterwards(tmp_path: Path) -> None:
    with tracking(("tensorboard",), tmp_path / "run", {}) as tracked:
        run = search(tmp_path / "run", tracked, raises={2: 1})
    live = curves(tmp_path / "run" / "tensorboard")
    assert len(live) == len(run.trials) + 1 > trackers.MOST_OPEN
    for trial in run.trials.values():
        tags = live[f"trial_{trial.id:04}"]
        expected = [(m.budget, round(m.valid_accuracy, 6)) for m in trial.measurements]
        assert tags.get("valid_accuracy", []) == expected
        assert tags["epochs"] == [(trial.spent, trial.spent)]
    (final,) = (tags for name, tags in live.items() if name.startswith("final_"))
    assert final["test_accuracy"] == [(3, 0.5)]
    trackers.export(run, trackers.TensorBoard(tmp_path / "after", {}))
    assert curves(tmp_path / "after") == live
    # A second time replaces, so that a resumed search is not shown twice.
    trackers.export(run, trackers.TensorBoard(tmp_path / "after", {}))
    assert curves(tmp_path / "after") == live


def test_the_choices_are_hyperparameters(tmp_path: Path) -> None:
    from tensorboardX.proto import plugin_hparams_pb2

    kind: Any = vars(plugin_hparams_pb2)["HParamsPluginData"]

    run = search(tmp_path / "run")
    trackers.export(run, trackers.TensorBoard(tmp_path / "board", {}))
    trial = run.trials[0]
    (file,) = (tmp_path / "board" / "trial_0000").glob("events.*")
    found = {}
    for event in events(file):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                data = kind.FromString(value.metadata.plugin_data.content)
                found = {
                    k: v.number_value or v.string_value for k, v in data.session_start_info.hparams.items()
                }
    assert found == {name: v if isinstance(v, str) else pytest.approx(v) for name, v in trial.arch.items()}


def test_a_tracker_that_fails_is_given_up_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def measured(trial: Trial) -> None:
        raise ConnectionError("no\nnetwork")

    broken: Any = SimpleNamespace(measured=measured, ended=None, final=None, close=None)
    run = search(tmp_path / "run", Tracking({"wandb": lambda: broken}))
    assert len(run.trials) == 20
    note = "note: wandb is given up (ConnectionError: no network); the record has it all\n"
    assert capsys.readouterr().err == note

    def refuse() -> Any:
        raise ConnectionError("no network")

    assert len(search(tmp_path / "again", Tracking({"wandb": refuse})).trials) == 20
    assert capsys.readouterr().err == note


def test_what_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"log: 'wand' is not one of tensorboard, wandb, mlflow \(did you mean wandb\?\)"
    ):
        trackers.check(("wand",))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"^log: mlflow is not installed; pip install mlflow$"):
        trackers.check(("tensorboard", "mlflow"))


@pytest.mark.slow
def test_the_script_writes_it_below_the_run_or_where_it_is_told(tmp_path: Path) -> None:
    search(tmp_path / "run")
    for more, where in (((), tmp_path / "run" / "tensorboard"), ((tmp_path / "to",), tmp_path / "to")):
        command = [sys.executable, ROOT / "scripts" / "report.py", tmp_path / "run", "--tensorboard", *more]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"tensorboard --logdir {where}\n" in done.stdout
        assert len(curves(where)) == 21
