"""scripts/make_table.py as it is started from a shell: killed, resumed, and its table used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nas.objectives.table import TableObjective
from nas.tables import load_table
from nas.tables.shipped import read
from search_spaces import SPACES

ROOT = Path(__file__).parents[2]
FIX = ("depth=1..2", "width=4", "kernel=3", "learning_rate=0.02")


def command(out: Path, *options: str) -> list[str]:
    space = ("--space", "minichain", "--dataset", "digits", "--narrow", *FIX, "--hyper", "batch_size=128")
    wanted = (*space, "--epochs", "2", "--name", "small", "--out", str(out), *options)
    return [sys.executable, str(ROOT / "scripts" / "make_table.py"), *wanted]


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("make_table") / "run"
    ended = started(folder, "--engine", "local")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("12 architectures from 2 seeds: ")
    return folder


@pytest.mark.slow
def test_a_narrowed_space_becomes_a_table_of_it(out: Path) -> None:
    table = read("small", out)
    assert table.space == "minichain"
    assert set(table.within) == {"depth=1,2", "width=4", "kernel=3", "learning_rate=0.02"}
    space = SPACES["minichain"].restrict(narrow=table.within)
    objective = TableObjective(space, load_table(str(out / "small.npz")))
    assert objective.epochs == (1, 2)
    assert sorted(table.archs) == sorted(map(space.to_string, space.enumerate()))
    assert not np.isnan(table.at(objective.test)).any()
    sheet = json.loads((out / "small.json").read_text())
    assert sheet["command"].startswith("python scripts/make_table.py --space minichain --dataset digits ")
    assert "batch_size" in sheet["hyperparameters"]
    again = started(out)
    assert again.returncode == 2
    assert "holds a run already; go on with --resume" in again.stderr


@pytest.mark.slow
def test_killed_and_resumed_on_two_workers_it_is_the_same_table(out: Path, tmp_path: Path) -> None:
    whole, folder = read("small", out), tmp_path / "run"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    options = ("--workers", "2", "--cpus-per-worker", "1")
    with subprocess.Popen(
        command(folder, *options),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        trials, limit = folder / "trials.jsonl", time.monotonic() + 200
        while process.poll() is None and not (trials.exists() and trials.read_text().count('"end"') >= 5):
            assert time.monotonic() < limit, "no progress"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "small.npz").exists()
    before = (folder / "trials.jsonl").read_text()
    ended = started(folder, *options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert (folder / "trials.jsonl").read_text().startswith(before[: before.rindex("\n") + 1])
    table = read("small", folder)
    assert table.archs == whole.archs
    for column, curve in whole.columns.items():
        np.testing.assert_allclose(table.columns[column].values, curve.values, atol=0.03, err_msg=str(column))
