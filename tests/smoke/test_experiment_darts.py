"""experiments/darts_2019.py: equal cost is what it says, and the smallest scale runs from search to test."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nas.record import read_run
from nas.space import Architecture
from nas.trial import Measurement, Trial
from search_spaces.darts import genotype_of, read_genotype

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "experiments")


@pytest.fixture(scope="module")
def experiment():
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module("darts_2019")
    finally:
        sys.path.remove(FOLDER)


def trial(number: int, accuracy: float, seconds: float) -> Trial:
    measured = [Measurement(k, accuracy, 1.0, 0.5, 1.0, train_seconds=seconds / 2) for k in (1, 2)]
    return Trial(number, Architecture({"n": number}), 2, 0, status="completed", measurements=tuple(measured))


def test_random_search_has_the_trials_that_ended_in_time(experiment):
    trials = [trial(0, 0.2, 10), trial(1, 0.6, 10), trial(2, 0.4, 10), trial(3, 0.9, 10), trial(4, 0.95, 0.1)]
    run = SimpleNamespace(trials={t.id: t for t in trials})
    for seconds, chosen in ((5, [0]), (10, [0]), (29.9, [0, 1]), (39, [0, 1, 2]), (41, [0, 1, 2, 3, 4])):
        assert [t.id for t in experiment.in_time(run, seconds)] == chosen, seconds


def test_scales_search_and_train_the_same_cells(experiment):
    """Of every scale: the space has cells left to choose, and nothing else."""
    for scale in experiment.SCALES.values():
        space = experiment.narrowed(
            experiment.options_of(scale, experiment.Config(), "random", 0), {"darts": experiment.SPACE}
        )
        open_choices = {name for name, choice in space.choices.items() if len(choice.options()) > 1}
        assert open_choices
        assert all(name.startswith(("normal_", "reduce_")) for name in open_choices)


def script(*options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    return subprocess.run(
        [sys.executable, "experiments/darts_2019.py", "--scale", "smoke", *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
def test_smoke_and_going_on(tmp_path):
    out = tmp_path / "run"
    begun = script("--out", out, "--search-only")
    assert begun.returncode == 0, begun.stderr
    assert not (out / "table.md").exists()
    done = script("--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    searched = read_run(out / "search-0")
    assert searched.best is not None
    genotype = read_genotype((out / "genotype.txt").read_text())
    assert genotype == genotype_of(searched.best.chosen)
    assert str(genotype) in begun.stdout
    assert str(genotype) in done.stdout
    assert (out / "errors.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text()
    assert table in done.stdout
    assert "| 3.00 ± 0.14 |" in table
    assert read_run(out / "train-darts").finals[0].arch == searched.best.chosen
    for folder in ("train-darts", "train-random", "train-sample-0"):
        assert read_run(out / folder).finals[0].test_accuracy > 0.2
