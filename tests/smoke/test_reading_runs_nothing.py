"""A run folder may come from anybody: a file that its config names as space runs when the user names it, never else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas.record import Record
from nas.trial import SupernetMeasurement, Trial

FILE = """
from pathlib import Path
Path("it-ran").touch()
from search_spaces.nasbench201 import SPACE
"""
ASKED = "error: run: its space is the file {}; name it with --space for it to be run\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file, and in ``run`` a run of it by somebody who trained shared weights."""
    from search_spaces.nasbench201 import SPACE

    file = tmp_path / "theirs.py"
    file.write_text(FILE)
    config = {"space": str(file), "dataset": "digits", "split_seed": 0, "strategy": "darts", "seed": 0}
    with Record.create(tmp_path / "run", config, env={}, fsync=False) as record:
        record.start(Trial(0, SPACE.sample(0), 2, seed=0))
        for budget in (1, 2):
            derived = SPACE.sample(budget)
            weights = {name: {value: 0.6, "another": 0.4} for name, value in derived.items()}
            half: Any = dict.fromkeys(("valid_accuracy", "train_accuracy"), 0.5)
            losses: Any = dict.fromkeys(("valid_loss", "train_loss"), 1.0)
            record.measure(0, SupernetMeasurement(budget, **half, **losses, derived=derived, weights=weights))
        record.end(0, "completed")
        record.done()
    return file


def test_a_report_says_what_it_left_out_and_draws_it_when_the_file_is_named(script, file, tmp_path):
    code, out, err = script("report", "run")
    assert (code, err) == (0, "")
    (said,) = (line for line in out.splitlines() if str(file) in line)
    assert said.startswith(
        "- darts, seed 0: the names of its operations and the drawing of its cells are left out"
    )
    assert "only when it is named again (--space)" in said
    assert said[2:] in (tmp_path / "run" / "table.md").read_text()
    assert (tmp_path / "run" / "supernet_weights_trial_0.png").exists()
    assert not (tmp_path / "run" / "supernet_cells_trial_0.png").exists()
    assert not Path("it-ran").exists()
    code, out, err = script("report", "run", "--space", file)
    assert (code, err) == (0, "")
    assert "left out" not in out
    assert (tmp_path / "run" / "supernet_cells_trial_0.png").exists()
    assert Path("it-ran").exists()


def test_describing_and_training_its_best_architecture_ask_for_the_file(script, file):
    for arguments in (("describe", "run", "--static"), ("train", "--arch", "run")):
        assert script(*arguments) == (2, "", ASKED.format(file))
    code, _, err = script("describe", "run", "--space", "theirs", "--static")
    assert (code, err) == (2, "error: space: 'theirs' is not the name of a Python file\n")
    assert not Path("it-ran").exists()
    code, out, err = script("describe", "run", "--space", file, "--static", "--json")
    assert (code, err) == (0, "")
    assert '"space": "nasbench201"' in out
    assert Path("it-ran").exists()
