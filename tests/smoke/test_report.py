"""The report from end to end: run folders in, tables, plots and a page out."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nas.errors import InputError
from nas.record import TRIALS, Record
from nas.report.report import write_report
from nas.space import Architecture
from nas.trial import Final, Measurement, Trial

ROOT = Path(__file__).parents[2]
FIGURES = {
    "anytime_epochs.png",
    "anytime_seconds.png",
    "accuracy_over_params.png",
    "which_choices_mattered.png",
}
TABLES = {"table.md", "table.csv", "table.tex"}


def search(folder: Path, strategy: str, seed: int, *, trials: int = 9, final: bool = True) -> None:
    rng = np.random.default_rng(seed)
    config = {"space": "<chain>", "dataset": "digits", "strategy": strategy, "seed": seed}
    with Record.create(folder, config, env={"cpu": "a & b"}, fsync=False) as record:
        for index in range(trials):
            arch = Architecture(depth=int(rng.integers(1, 4)), rate=float(rng.uniform()))
            record.start(Trial(index, arch, 3, seed=index, params=1000 * arch["depth"]))
            for budget in range(1, 4):
                accuracy = 0.8 + 0.03 * arch["depth"] + 0.02 * budget + 0.01 * float(rng.uniform())
                record.measure(index, Measurement(budget, accuracy, 0.1, 0.9, 0.1, 0.5, 1.0, 0.1))
            record.end(index, "completed")
        best = record.run().best
        if final and best is not None:
            for training in range(2):
                record.final(Final(best.arch, training, 9, 0.9 + 0.01 * training, 0.1, params=best.params))
            record.done()


def test_the_report_of_a_comparison_is_complete_and_stands_alone(tmp_path):
    for strategy in ("random", "grid", "asha"):
        for seed in range(2):
            search(tmp_path / "compare" / f"{strategy}-{seed}", strategy, seed)
    report = write_report([tmp_path / "compare"])
    assert {path.name for path in report.files} == FIGURES | TABLES | {"report.html"}
    assert {path.parent for path in report.files} == {tmp_path / "compare"}
    assert report.markdown.count("\n") == 5
    for path in report.files:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
            assert 10_000 < path.stat().st_size < 500_000
    page = (tmp_path / "compare" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing to fetch
    assert "&lt;chain&gt; on digits" in page
    assert "<chain>" not in page
    assert "a &amp; b" in page


def test_the_same_records_give_the_same_files(tmp_path):
    search(tmp_path / "run", "random", 0)
    first = write_report([tmp_path / "run"], tmp_path / "one")
    second = write_report([tmp_path / "run"], tmp_path / "two")
    for left, right in zip(first.files, second.files, strict=True):
        assert left.read_bytes() == right.read_bytes()


def test_a_killed_run_is_reported_as_incomplete(tmp_path):
    search(tmp_path / "run", "random", 0, final=False)
    with (tmp_path / "run" / TRIALS).open("rb+") as file:
        file.truncate(file.seek(0, 2) - 200)
    report = write_report([tmp_path / "run"])
    assert any("incomplete, still running or interrupted (9 trials so far" in note for note in report.notes)
    assert "incomplete" in (tmp_path / "run" / "report.html").read_text()
    assert "incomplete" in (tmp_path / "run" / "table.md").read_text()


def test_a_run_with_nothing_in_it_yet_gets_its_table_and_no_plots(tmp_path):
    search(tmp_path / "full", "random", 0)
    search(tmp_path / "empty", "random", 0, trials=0)
    write_report([tmp_path / "full"], tmp_path / "out")
    report = write_report([tmp_path / "empty"], tmp_path / "out")
    assert {path.name for path in report.files} == TABLES | {"report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == TABLES | {"report.html"}


@pytest.mark.parametrize(
    ("accuracies", "figures"),
    [((0.5, 1.0, 1.0), 3), ((0.0,) * 3, 3), ((math.nan,) * 3, 0), ((0.7,), 3)],
    ids=["perfect", "zero", "nan", "one"],
)
def test_odd_accuracies_are_drawn_without_a_warning(tmp_path, accuracies, figures):
    with Record.create(tmp_path / "run", {"strategy": "random", "seed": 0}, env={}) as record:
        for index, accuracy in enumerate(accuracies):
            record.start(Trial(index, Architecture(depth=index), 1, seed=0, params=10))
            record.measure(index, Measurement(1, accuracy, math.inf, 0.1, 0.1, train_seconds=1.0))
    written = write_report([tmp_path / "run"]).files
    assert sum(path.suffix == ".png" for path in written) == figures


def test_where_the_report_cannot_be_written_is_one_line(tmp_path):
    search(tmp_path / "run", "random", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: cannot write the report \(Not a directory\)"):
        write_report([tmp_path / "run"], tmp_path / "file" / "out")
    with pytest.raises(InputError, match="no run folder given"):
        write_report([])


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_prints_the_table_and_names_what_it_wrote(tmp_path):
    search(tmp_path / "runs" / "a", "random", 0)
    search(tmp_path / "runs" / "b", "grid", 0)
    done = script(tmp_path / "runs" / "a", tmp_path / "runs" / "b", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| Strategy | Seeds |")
    assert "| random   |     1 |" in done.stdout
    assert str(tmp_path / "out" / "report.html") in done.stdout
    assert done.stderr == ""


def test_the_script_says_in_one_line_what_is_wrong(tmp_path):
    search(tmp_path / "run", "random", 0)
    lines = (tmp_path / "run" / TRIALS).read_text().splitlines(keepends=True)
    lines[2] = lines[2][:20] + "\n"
    (tmp_path / "run" / TRIALS).write_text("".join(lines))
    done = script(tmp_path / "run")
    said = f"error: {tmp_path}/run/trials.jsonl:3: damaged line, not JSON\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_reporting_needs_no_jax():
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import nas.report.report; "
        "print([name for name in ('jax', 'flax', 'ray', 'matplotlib.pyplot') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"
