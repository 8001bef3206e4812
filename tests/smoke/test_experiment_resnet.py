"""experiments/resnet_2015.py at its smoke scale, as it is started from a shell."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.record import find_runs, read_run, record_difference
from nas.trial import MeasurementWithTest

ROOT = Path(__file__).parents[2]
NETWORKS = ("plain-8", "plain-14", "residual-8", "residual-14")


def command(out: Path, *options: str) -> list[str]:
    script = ROOT / "experiments" / "resnet_2015.py"
    return [sys.executable, str(script), "--scale", "smoke", "--out", str(out), *options]


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one run and what it printed."""
    out = tmp_path_factory.mktemp("resnet") / "run"
    ended = started(out)
    assert ended.returncode == 0, ended.stderr
    return out, ended.stdout


@pytest.mark.slow
def test_table_and_figure_are_of_the_records(done: tuple[Path, str]) -> None:
    out, printed = done
    table = (out / "table.md").read_text()
    assert printed.startswith(table)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in NETWORKS:
        run = read_run(out / name)
        assert run.done
        last = run.trials[0].measurements[-1]
        assert isinstance(last, MeasurementWithTest)
        errors = [f"{100 * (1 - accuracy):.2f}" for accuracy in (last.train_accuracy, last.test_accuracy)]
        assert f"| {name} | {run.finals[0].params:,} | {errors[0]} | {errors[1]} |" in table
        assert last.test_accuracy > 0.5  # ten classes: it has learned


@pytest.mark.slow
def test_results_are_neither_overwritten_nor_made_up(
    done: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    experiment = importlib.import_module("resnet_2015")
    out, _ = done
    with pytest.raises(InputError, match="is not empty; go on with --resume or choose another --out"):
        experiment.main(experiment.Config(out=out))
    with pytest.raises(InputError, match="start it without --resume"):
        experiment.main(experiment.Config(out=tmp_path / "none", resume=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_same_curves(done: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = done
    out = tmp_path / "run"
    with subprocess.Popen(
        command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        trials, limit = out / NETWORKS[1] / "trials.jsonl", time.monotonic() + 120
        while process.poll() is None and not (trials.exists() and "measurement" in trials.read_text()):
            assert time.monotonic() < limit, "no progress"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not read_run(out / NETWORKS[1]).done
    ended = started(out, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert [run.name for run in find_runs([out])] == [run.name for run in find_runs([whole])]
    for name in NETWORKS:
        assert record_difference(whole / name, out / name) is None
