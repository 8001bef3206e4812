"""experiments/knas_2021.py at its smoke scale, as it is started from a shell, and its selection by hand."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nas.objectives.table import TableObjective
from nas.run.scoring import read_score_table
from nas.tables import load_table
from search_spaces.nasbench201 import SPACE
from tests.benchmarks import bench_files

ROOT = Path(__file__).parents[2]
TABLE = ("nasbench201/nb201.csv.gz", "nasbench201/latency_ms.csv.gz")


def command(out: Path, *options: str) -> list[str]:
    script = ROOT / "experiments" / "knas_2021.py"
    bench = ["--bench-dir", str(bench_files(*TABLE))]
    return [sys.executable, str(script), "--scale", "smoke", "--out", str(out), *bench, *options]


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, timeout=600)


def without_seconds(table: str) -> list[str]:
    """The correlations, which no timing is in."""
    return [line.rpartition(" | ")[0] for line in table.splitlines() if line.count("|") == 8]


@pytest.mark.slow
def test_killed_and_resumed_it_says_the_same(tmp_path: Path) -> None:
    whole = started(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    table = (tmp_path / "whole" / "table.md").read_text()
    assert table in whole.stdout
    for name in ("correlations.png", "scatter.png"):
        assert (tmp_path / "whole" / name).read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "killed"
    process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    scores = out / "others" / "scores.csv"
    end = time.monotonic() + 300
    while time.monotonic() < end and not (scores.is_file() and len(scores.read_text().splitlines()) > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "table.md").exists()
    again = started(out, "--resume")
    assert again.returncode == 0, again.stderr
    for part in ("gradients", "others", "regions"):
        first, second = (read_score_table(tmp_path / of / part) for of in ("whole", "killed"))
        assert first.archs == second.archs
        for name, values in first.values.items():
            np.testing.assert_array_equal(values, second.values[name])
    assert without_seconds((out / "table.md").read_text()) == without_seconds(table)
    refused = started(tmp_path / "whole")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error:")
    assert "--resume" in refused.stderr


def test_the_selection_is_the_published_one() -> None:
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        knas = importlib.import_module("knas_2021")
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    folder = bench_files(*TABLE)
    objective = TableObjective(SPACE, load_table("nasbench201", folder / "nasbench201"), "cifar10")
    archs = [knas.architecture_at(k) for k in range(0, 15_625, 125)]
    tested = 100 * objective.test_accuracies[[objective.row(arch) for arch in archs]]
    valid = np.array([objective.measurements(arch, 0)[-1].valid_accuracy for arch in archs])
    scale = knas.Scale("cifar10", (), drawn=60, best=5)
    # By the validation accuracy itself the best of those drawn is kept, and scoring for nothing buys nothing.
    oracle = knas.selection(objective, archs, tested, knas.Scored(valid, 0.0, None), scale, 0)
    for k in range(3):
        drawn = np.unique(np.random.default_rng((0, k)).integers(len(archs), size=60))
        assert oracle.chosen[k] == tested[drawn[valid[drawn].argmax()]]
    assert (oracle.trained == 5).all()
    assert (oracle.random_trained < 15).all()
    # Where scores cost more than all trainings, random search can train every network there is.
    dear = knas.selection(objective, archs, tested, knas.Scored(valid, 1e6, None), scale, 0)
    assert (dear.random_trained == len(archs)).all()
    assert (dear.random == tested[valid.argmax()]).all()
    # A score that is infinite or missing is the worst there is.
    broken = np.full(len(archs), np.nan)
    broken[7] = 0.0
    one = knas.Scale("cifar10", (), drawn=5000, best=1)
    kept = knas.selection(objective, archs, tested, knas.Scored(broken, 0.0, None), one, 0)
    assert (kept.chosen == tested[7]).all()
    worst, best = knas.ranked(np.array([1.0, -np.inf, np.nan, 2.0]))[[1, 3]]
    assert worst < best
    assert np.isnan(knas.ranked(np.array([1.0, np.nan]))[1])
