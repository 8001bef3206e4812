"""experiments/darts_collapse.py: stopped searches are DARTS's own cut short; the table says what is in the records."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.oneshot.monitor import STOPS, Epoch, stop_on_curvature, stopping
from nas.record import read_run
from nas.run.search import search
from nas.trial import SupernetMeasurement
from search_spaces.nasbench201 import SPACE
from tests.benchmarks import bench_files

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "experiments")


@pytest.fixture(scope="module")
def experiment():
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module("darts_collapse")
    finally:
        sys.path.remove(FOLDER)


def test_a_rule_stops_where_it_first_says_so():
    skips = [Epoch(count) for count in (0, 1, 1, 2, 0, 3)]
    assert stopping(STOPS["skips"], skips) == (3, 2)
    assert stopping(STOPS["skips"], skips[:3]) is None
    assert stopping(STOPS["none"], skips) is None
    rising = [Epoch(0, value) for value in [1] * 17 + [9] * 3]
    assert stopping(stop_on_curvature, rising) == (17, 12)


def timeless(measurement):
    return dataclasses.replace(measurement, compile_seconds=0.0, train_seconds=0.0, evaluate_seconds=0.0)


@pytest.fixture(scope="module")
def runs(experiment, tmp_path_factory):
    """Searches of a seed at the smallest scale: DARTS to the end, and its relatives that stop by a rule."""
    folder = tmp_path_factory.mktemp("searches")
    scale = experiment.SCALES["smoke"]
    methods = ("darts_first", *experiment.STOPPED)
    options = experiment.options_of(scale, 0, None)
    return {method: search(options, method, folder / method, {"nasbench201": SPACE}) for method in methods}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["darts_plus", "robust_darts"])
def test_a_stopped_search_is_the_other_cut_short(experiment, runs, method):
    whole, cut = (experiment.measurements(runs[name]) for name in ("darts_first", method))
    stop = stopping(STOPS[experiment.STOPPED[method]], [Epoch(m.skips, m.eigenvalue) for m in whole])
    if stop is None:
        stop = (len(whole) - 1, len(whole) - 1)
    assert len(cut) == stop[0] + 1
    assert cut[-1].derived == whole[stop[1]].derived
    for one, other in zip(cut, whole, strict=False):
        same = {"derived": other.derived, "skips": other.skips, "stopped": other.stopped}
        assert repr(timeless(dataclasses.replace(one, **same))) == repr(timeless(other))


@pytest.mark.slow
def test_outcomes_are_read_off_the_record(experiment, runs):
    from nas.tables import load_table

    lookup = experiment.Lookup(load_table("nasbench201", bench_files("nasbench201")))
    skips = dict.fromkeys(SPACE.choices, "skip_connect")
    assert lookup(skips).test == pytest.approx(0.5430, abs=1e-4)  # what is published of DARTS
    for method, rule in {"darts_first": "none", **experiment.STOPPED}.items():
        read = experiment.outcome(runs["darts_first"], lookup, STOPS[rule])
        (trial,) = runs[method].trials.values()
        assert read.epochs == len(trial.measurements)
        assert read.accuracy == lookup(trial.chosen)
        assert isinstance(trial.measurements[-1], SupernetMeasurement)
        assert read.skips == trial.measurements[-1].skips


def script(*options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    return subprocess.run(
        [sys.executable, "experiments/darts_collapse.py", "--scale", "smoke", *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_smoke_and_going_on(tmp_path):
    bench = bench_files("nasbench201")
    out = tmp_path / "run"
    done = script("--out", out, "--bench-dir", bench)
    assert done.returncode == 0, done.stderr
    assert (out / "collapse.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text()
    assert table in done.stdout
    assert "| 54.30 |" in table
    assert all(
        read_run(out / f"{method}-{seed}").done for method in ("darts_first", "sdarts_rs") for seed in (0, 1)
    )
    refused = script("--out", out, "--bench-dir", bench)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {out}: is not empty; go on with --resume or choose another --out\n"
    # As after a kill in the middle of the last search's record.
    record = out / "sdarts_rs-1" / "trials.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:3]) + lines[3][:10])
    again = script("--out", out, "--bench-dir", bench, "--resume")
    assert again.returncode == 0, again.stderr
    assert results(again.stdout) == results(done.stdout)


def results(table):
    """The table but for its seconds."""
    return [row.split("|")[1:-2] for row in table.splitlines() if row.startswith("|")]
