"""experiments/oneshot_nasbench201.py at its smoke scale, as it is started from a shell; killed and resumed."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nas.objectives.oneshot import settings_space
from nas.oneshot.settings import METHODS
from tests.benchmarks import bench_files

ROOT = Path(__file__).parents[2]
FEW = ("darts_first", "gdas", "rsps")


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("oneshot_nasbench201")


def test_every_method_is_in_it_with_its_authors_settings(experiment) -> None:
    assert {*experiment.TRAINED, *experiment.STOPPED} == set(METHODS)
    for name, scale in experiment.SCALES.items():
        for method in experiment.TRAINED:
            told = dict(word.split("=") for word in experiment.settings(scale, method))
            said = experiment.published(method, experiment.supernet())
            if said["selection"] == "strongest":
                rate = said["alpha_learning_rate"]
                assert float(told["alpha_learning_rate"]) == pytest.approx(rate * scale.faster)
            settings_space(method, experiment.supernet(), experiment.settings(scale, method), scale.seeds)
        if name != "smoke":
            assert scale.seeds >= 5


def test_numbers_are_over_seeds(experiment) -> None:
    def of(*accuracies: float):
        module = importlib.import_module("_nasbench201")
        return [module.Outcome(False, 3, 3, 0, module.TableAccuracy(0.5, one), 1.0) for one in accuracies]

    chance = [experiment.Chance(one, 3, 1.0) for one in (0.90, 0.92)]
    found = {"darts_first": of(0.5, 0.6), "drnas": of(0.93, 0.95), "sdarts_rs": of(0.9, 0.9)}
    numbers = experiment.numbers(found, chance)
    assert set(numbers) == {"darts_first", "darts_first_gain", "drnas", "drnas_gain"}
    assert numbers["darts_first"].mean == pytest.approx(55)
    assert numbers["darts_first_gain"].mean == pytest.approx(np.mean([50 - 90, 60 - 92]))
    assert numbers["drnas_gain"].mean == pytest.approx(3)
    assert numbers["drnas_gain"].n == 2


def command(out: Path, *options: str) -> list[str]:
    script = ROOT / "experiments" / "oneshot_nasbench201.py"
    bench = ["--bench-dir", str(bench_files("nasbench201/nb201.csv.gz"))]
    return [
        sys.executable,
        str(script),
        "--scale",
        "smoke",
        "--out",
        str(out),
        *bench,
        "--methods",
        *FEW,
        *options,
    ]


@pytest.mark.slow
def test_killed_and_resumed_it_says_the_same(tmp_path: Path) -> None:
    whole = subprocess.run(command(tmp_path / "whole"), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while time.monotonic() < end and not (out / "gdas-0").is_dir():
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    again = subprocess.run(command(out, "--resume"), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr

    def searches(folder: Path) -> dict[str, float]:
        numbers = json.loads((folder / "result.json").read_text())["numbers"]
        return {
            name: of["mean"] for name, of in numbers.items() if not name.endswith("_gain")
        }  # within seconds

    assert searches(out) == searches(tmp_path / "whole")
    text = (out / "table.md").read_text()
    for name in (*FEW, "darts_plus", "robust_darts", "random search, equal cost"):
        assert f"| {name} |" in text


@pytest.mark.slow
def test_what_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    for methods, says in (
        (("darts_first", "gads"), "methods: gads is not one of darts"),
        (("gdas",), "methods: darts_first is needed"),
    ):
        words = [*command(tmp_path / "none")[:6], "--methods", *methods]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
