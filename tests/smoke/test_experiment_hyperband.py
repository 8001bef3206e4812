"""experiments/hyperband_2016.py at its smoke scale, and its arithmetic on results known beforehand."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from nas.errors import InputError
from nas.record import read_run
from nas.record.comparison import Search, read_comparison
from nas.tables import Column, Curve, Table, Task

ROOT = Path(__file__).parents[2]


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "experiments" / "hyperband_2016.py")
    command = [sys.executable, script, "--scale", "smoke", "--engine", "local", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("hyperband_2016")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one run and what it printed."""
    out = tmp_path_factory.mktemp("hyperband") / "run"
    ended = started(out)
    assert ended.returncode == 0, ended.stderr
    return out, ended.stdout


@pytest.mark.slow
def test_both_parts_run(done: tuple[Path, str], experiment: ModuleType) -> None:
    out, printed = done
    assert printed.startswith((out / "table.md").read_text().rstrip())
    for name in ("curves.png", "regret.png", "convnet.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    compared = read_comparison(out / "table")
    assert {len(each) for each in compared.complete().values()} == {20}
    hyperband, random = (read_run(out / "convnet" / f"{name}-0") for name in ("hyperband", "random"))
    assert hyperband.done
    assert random.done
    # R = 4, eta = 4: one bracket of 4 trials for a unit, of which 1 goes on for 3, and one of 2 for 4 each.
    assert hyperband.epochs_spent == 4 + 3 + 8
    assert random.epochs_spent == 2 * hyperband.epochs_spent
    with pytest.raises(InputError, match="is not empty; go on with --resume"):
        experiment.main(experiment.Config(out=out))


@pytest.mark.slow
def test_it_goes_on_where_it_ended(done: tuple[Path, str]) -> None:
    out, printed = done
    again = started(out, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed


def test_nothing_to_resume_is_said(experiment: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start it without --resume"):
        experiment.main(experiment.Config(out=tmp_path / "none", resume=True))


def test_speed_up_is_of_the_medians_until_the_regret(experiment: ModuleType) -> None:
    def one(strategy: str, seed: int, costs: list[float]) -> Search:
        return Search(strategy, seed, 9, 9, 100.0, (1.0, *costs), (0.1, 0.2), (0.5, 0.89), ("a", "b"))

    groups = {
        "random": [one("random", seed, [80.0 + seed]) for seed in range(5)],
        "hyperband": [one("hyperband", seed, [20.0]) for seed in range(5)],
    }
    compared = SimpleNamespace(complete=lambda: groups, optimum=0.9, config={"mean_training_seconds": 10.0})
    random, fast, never, _ = experiment.speed_ups(compared, [0.01, 0.001])
    assert (random.cost, random.reached, random.factor) == (8.2, 1.0, 1.0)
    assert (fast.cost, fast.reached, fast.factor) == (2.0, 1.0, pytest.approx(4.1))
    assert 4.0 <= fast.low <= fast.high <= 4.2
    assert (never.cost, never.reached) == (math.inf, 0.0)
    text = experiment.speed_ups_text([random, fast, never])
    assert "| 4.1 (4.0 to 4.2) |" in text
    assert text.splitlines()[-1].replace(" ", "") == "|random|0.1|∞|0|–|"


def test_crossing_is_of_ranks(experiment: ModuleType) -> None:
    # Six networks, two epochs: the first epoch has the order turned round, but for the two in the middle.
    last = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    first = np.array([0.1, 0.2, 0.4, 0.3, 0.5, 0.6])
    values = np.stack([first, last], axis=1)[:, None, :].astype(np.float32)
    valid, test = Column("d", 2, "valid_accuracy"), Column("d", 2, "test_accuracy")
    table = Table("t", "s", tuple("abcdef"), {valid: Curve((1, 2), values)}, tasks={"d": Task(valid, test)})
    early, late = experiment.crossing(table, (1, 2))
    # d = (5, 3, 0, 0, 3, 5): the squares of the differences of the ranks sum to 68; 1 - 6 * 68 / (6 * 35)
    assert early.correlation == pytest.approx(1 - 68 / 35)
    assert (early.winner, early.best_of_third) == (6, 5)
    assert (late.correlation, late.winner, late.best_of_third) == (pytest.approx(1), 1, 1)


def test_units_until_an_accuracy_are_those_spent(experiment: ModuleType) -> None:
    run = SimpleNamespace(
        trials={0: SimpleNamespace(status="completed"), 1: SimpleNamespace(status="failed")},
        history=[
            (0, SimpleNamespace(budget=1, valid_accuracy=0.3), 0.0),
            (1, SimpleNamespace(budget=1, valid_accuracy=0.9), 0.0),
            (0, SimpleNamespace(budget=3, valid_accuracy=0.5), 0.0),
        ],
    )
    assert [experiment.units_to(run, accuracy) for accuracy in (0.2, 0.5, 0.6)] == [1, 4, math.inf]
    assert experiment.best_by(run, 3) == (2, 0.3)
    assert experiment.best_by(run, 4) == (4, 0.5)
