"""Searches with shared weights as a user starts them: both engines, a comparison, the derived network, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.record import read_run, record_difference
from nas.trial import SupernetMeasurement

ROOT = Path(__file__).parents[2]
SMALL = ["--space", "nasbench201", "--dataset", "digits", "--subset", "400"]
SMALL += ["--supernet", "channels=4", "cells=1", "--evaluate-batch-size", "40"]
CHAIN = ["--space", "chain", "--fix", "depth=2", "width=16", "--dataset", "digits", "--subset", "400"]
CHAIN += ["--evaluate-batch-size", "40"]


def start(script: str, *arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )


def script(name: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    process = start(name, *arguments)
    said, complained = process.communicate(timeout=400)
    assert process.returncode == code, complained
    assert "Traceback" not in complained
    return said, complained


@pytest.mark.slow
def test_two_seeds_side_by_side_then_the_derived_network(tmp_path):
    out = tmp_path / "run"
    arguments = [*CHAIN, "--strategy", "darts_first", "--trials", "2", "--epochs", "2", "--test-seeds", "1"]
    said, _ = script("search.py", *arguments, "--out", str(out))
    run = read_run(out)
    assert run.done
    assert [trial.status for trial in run.trials.values()] == ["completed"] * 2
    assert len({trial.seed for trial in run.trials.values()}) == 2
    assert run.best is not None
    (best,) = (line for line in said.splitlines() if line.startswith("best: chain:"))
    assert {f"{name}={run.best.chosen[name]}" for name in ("kernel_1", "kernel_2")} <= set(
        best[12:].split(",")
    )
    assert run.finals[0].arch == run.best.chosen
    assert (run.finals[0].params or 0) < (run.best.params or 0)  # of the derived network, of the supernet
    for trial in run.trials.values():
        for measurement in trial.measurements:
            assert isinstance(measurement, SupernetMeasurement)
            assert set(measurement.weights) == {"kernel_1", "kernel_2"}
    script("train.py", "--arch", str(out), "--dataset", "digits", "--subset", "400", "--epochs", "1",
           "--out", str(tmp_path / "trained"))  # fmt: skip
    assert read_run(tmp_path / "trained").finals[0].arch == run.best.chosen
    # The other engine does the same.
    script("search.py", *arguments, "--engine", "local", "--out", str(tmp_path / "local"))
    same = [read_run(folder).trials for folder in (out, tmp_path / "local")]
    for k in range(2):
        one, other = (trials[k].measurements for trials in same)
        assert [m.fields()["derived"] for m in one] == [m.fields()["derived"] for m in other]
        assert [m.train_loss for m in one] == pytest.approx([m.train_loss for m in other], rel=1e-3)


@pytest.mark.slow
def test_a_comparison_with_other_strategies(tmp_path):
    said, _ = script(
        "compare.py", *CHAIN, "--strategies", "random", "rsps", "--engine", "local", "--trials", "1", "--epochs", "1",
        "--total-epochs", "2", "--test-seeds", "1", "--out", str(tmp_path / "c"),
    )  # fmt: skip
    rows = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")]
    assert rows[2:] == ["random", "rsps"]
    runs = [read_run(tmp_path / "c" / f"{name}-0") for name in ("random", "rsps")]
    assert all(run.seconds > 0 for run in runs)


def killed_and_resumed(folder: Path, method: str, at: list[int], *more: str) -> None:
    """``search.py`` killed whenever so many measurements are recorded, and resumed to its end."""
    arguments = [*SMALL, "--strategy", method, "--epochs", "4", "--engine", "local", "--test-seeds", "0"]
    arguments += [*more, "--out", str(folder)]
    for count in at:
        process = start("search.py", *arguments, *(["--resume"] if folder.exists() else []))
        limit = time.monotonic() + 400
        while process.poll() is None and measurements(folder) < count:
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    script("search.py", *arguments, "--resume")


def measurements(folder: Path) -> int:
    path = folder / "trials.jsonl"
    return path.read_text().count('"measurement"') if path.exists() else 0


@pytest.mark.slow
def test_killed_in_mid_search_and_resumed_the_same_to_the_bit(tmp_path):
    arguments = [*SMALL, "--strategy", "darts", "--epochs", "4", "--engine", "local", "--test-seeds", "0"]
    script("search.py", *arguments, "--out", str(tmp_path / "undisturbed"))
    killed_and_resumed(tmp_path / "killed", "darts", [1, 2])
    assert record_difference(tmp_path / "undisturbed", tmp_path / "killed") is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gdas", "p_darts", "spos", "sdarts_adv"])
def test_others_killed_and_resumed(method, tmp_path):
    more = ["--supernet", "stages=5-3", "deeper=1"] if method == "p_darts" else []
    arguments = [*SMALL, "--strategy", method, "--epochs", "4", "--engine", "local", "--test-seeds", "0"]
    script("search.py", *arguments, *more, "--out", str(tmp_path / "undisturbed"))
    killed_and_resumed(tmp_path / "killed", method, [1, 2, 3], *more)
    assert record_difference(tmp_path / "undisturbed", tmp_path / "killed") is None


@pytest.mark.slow
def test_the_darts_space_on_images(tmp_path):
    """A cell for real images: the network of the derived genotype trains."""
    arguments = ["--space", "darts", "--dataset", "digits", "--subset", "400", "--strategy", "darts_first"]
    arguments += ["--supernet", "channels=4", "cells=3", "--fix", "cells=3", "channels=4", "--epochs", "1"]
    script("search.py", *arguments, "--engine", "local", "--test-seeds", "1", "--out", str(tmp_path / "r"))
    run = read_run(tmp_path / "r")
    assert run.best is not None
    assert run.finals[0].error is None
    assert run.best.chosen["cells"] == 3
    lines = [json.loads(line) for line in (tmp_path / "r" / "trials.jsonl").read_text().splitlines()]
    [measured] = [line for line in lines if line["event"] == "measurement"]
    assert len(measured["weights"]) == 28
