"""experiments/lenet_1998.py at its smallest scale: records, table, figure; refusing, and going on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.record import read_run

ROOT = Path(__file__).parents[2]
FOLDERS = ("lenet5", "lenet5-moved", "lenet5_dense")


def experiment(*options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    return subprocess.run(
        [sys.executable, "experiments/lenet_1998.py", "--scale", "smoke", *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment") / "lenet"
    done = experiment("--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_smoke(finished):
    out, printed = finished
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text()
    assert table.strip() in printed
    for expected in ("| LeNet-5 | 60,000 | 340,908 |", "| 0.95 |", "| 0.80 |", "| 61,706 |"):
        assert expected in table
    for folder in FOLDERS:
        run = read_run(out / folder)
        assert run.done
        assert run.finals[0].test_accuracy > 0.6


@pytest.mark.slow
def test_an_existing_folder_is_refused_and_gone_on_with(finished):
    out, printed = finished
    refused = experiment("--out", out)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {out}: is not empty; go on with --resume or choose another --out\n"
    kept = [(out / folder / "trials.jsonl").read_bytes() for folder in FOLDERS[:2]]
    # As after a kill in the middle of the last network's record.
    record = out / FOLDERS[2] / "trials.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    again = experiment("--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert results(again.stdout) == results(printed)
    for folder, old in zip(FOLDERS[:2], kept, strict=True):
        assert (out / folder / "trials.jsonl").read_bytes().startswith(old)


def results(table):
    """The table's errors, which are the same to the last digit, unlike its seconds."""
    return [row.split("|")[1:7] for row in table.splitlines() if row.startswith("|")]
