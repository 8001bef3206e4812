"""The report by the number of simulated workers, against numbers worked out by hand."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.record.comparison import SEARCHES, ClusterUse, Search, read_workers, worker_folders
from nas.report import scaling
from nas.report.scaling_report import write_workers


def search(seed: int, at: Sequence[float], tests: Sequence[float], wall: float, workers: int) -> Search:
    """A search whose incumbents come at these times, one worker's at equal cost; 100 worker-seconds."""
    use = ClusterUse(wall, 5.0, 0, 2, 1, tuple(at)) if workers > 1 else None
    costs = tuple(workers * time for time in at)
    valid = tuple(0.5 + 0.1 * k for k in range(len(at)))
    texts = tuple("abc"[: len(at)])
    return Search("random", seed, 10, 90, 100.0, costs, valid, tuple(tests), texts, use)


CONFIG = {
    "strategies": ["random"],
    "seed": 0,
    "seeds": 3,
    "budget_seconds": 100.0,
    "optimum_test_accuracy": 0.9,
    "mean_training_seconds": 10.0,
    "table": "t",
    "table_seconds": "",
    "valid": "v",
    "test": "t@9",
    "architectures": 81,
    "filter_candidates": 10,
    "left_out": [],
    "epochs": 9,
}
CLUSTER = {
    "worker_speeds": [1.0, 0.5],
    "straggler_rate": 0.1,
    "straggler_factor": 3.0,
    "failure_rate": 2.0,
    "preemption_rate": 0.5,
    "startup_seconds": 30.0,
    "price_per_worker_hour": 36.0,
}
# The target is the median of 0.80, 0.85 and 0.82, the test accuracies at half of the budget: a regret of 0.08.
ONE = [
    search(0, (10, 40), (0.7, 0.8), 100, 1),  # never there
    search(1, (10, 40, 90), (0.7, 0.85, 0.84), 100, 1),  # at 40
    search(2, (20, 50, 80), (0.6, 0.82, 0.9), 100, 1),  # at 50
]
FOUR = [
    search(0, (5, 20), (0.7, 0.83), 25, 4),  # at 20
    search(1, (5, 15, 23), (0.7, 0.85, 0.84), 30, 4),  # at 15
    search(2, (5, 15, 22), (0.6, 0.8, 0.9), 40, 4),  # at 22
]
TWENTY = [search(k, (5, 6), (0.7, 0.8), 10, 20) for k in range(3)]  # never there


def written(folder: Path, groups: dict[int, Sequence[Search]], **more: object) -> Path:
    for workers, searches in groups.items():
        one = folder / f"workers-{workers}"
        one.mkdir(parents=True)
        cluster = {"workers": workers, **CLUSTER} if workers > 1 else {}
        (one / "config.json").write_text(json.dumps({**CONFIG, **cluster, **more}))
        (one / SEARCHES).write_text("".join(each.to_json() + "\n" for each in searches))
    return folder


def test_speed_ups_by_hand(tmp_path: Path) -> None:
    comparisons = read_workers(written(tmp_path, {4: FOUR, 1: ONE, 20: TWENTY}))
    one, four, twenty = scaling.scaling(comparisons)
    assert [row.workers for row in (one, four, twenty)] == [1, 4, 20]
    assert one.target_regret == pytest.approx(0.08)
    assert (one.target_seconds, one.target_reached) == (50, pytest.approx(2 / 3))
    assert (four.target_seconds, four.target_reached) == (20, 1)
    assert float(four.speed_up.value) == 2.5
    assert four.efficiency == 0.625
    assert float(four.all_speed_up.value) == pytest.approx(100 / 30)
    assert four.wall_seconds == 30
    assert four.cost == pytest.approx(4 * 30 / 3600 * 36)
    assert four.utilisation == pytest.approx((25 / 25 + 25 / 30 + 25 / 40) / 3)
    assert four.lost == pytest.approx((5 / 100 + 5 / 120 + 5 / 160) / 3)
    assert one.utilisation == 1
    assert (twenty.target_seconds, twenty.efficiency) == (math.inf, 0)
    assert scaling.stops((one, four, twenty)) == 4
    assert scaling.stops((one, four)) is None
    assert scaling.stops((one, twenty)) == 1
    assert scaling.stops_said((one, four, twenty)) == "random to 4"
    assert scaling.stops_said((one, four)) == "random scales to all 4"
    assert scaling.stops_said((one, twenty)) == "random not beyond 1"
    assert scaling.cluster_said(comparisons[-1].config) == (
        "speeds 1 0.5 in turn, 0.1 of the pieces of work 3 times slower, 2 failures an hour at work, "
        "0.5 preemptions an hour at work, 30 s to start, 36 an hour each"
    )


def test_the_report_is_made_from_records_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "run", {1: ONE, 4: FOUR, 20: TWENTY[:2]})
    report = importlib.import_module("report")
    report.main(report.Config(runs=(str(folder),)))
    printed = capsys.readouterr().out
    names = ["table.md", "table.csv", "table.tex", "scaling.png", "regret_wall.png", "regret_cost.png"]
    assert [Path(line).name for line in printed.splitlines()[-7:]] == [*names, "report.html"]
    assert printed.startswith((folder / "table.md").read_text().partition("\n\n")[0])
    assert "at every smaller number: random to 4." in printed
    assert "Incomplete, still running or interrupted: 1 searches are to come." in printed
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [(row["workers"], row["target_seconds"]) for row in rows] == [
        ("1", "50.0"),
        ("4", "20.0"),
        ("20", "inf"),
    ]
    assert (folder / "report.html").read_text().count("<figure>") == 3
    alone = write_workers(written(tmp_path / "alone", {4: FOUR}), tmp_path / "out")
    assert "scaling.png" not in {path.name for path in alone.files}
    assert all(path.parent == tmp_path / "out" for path in alone.files)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    assert worker_folders(tmp_path) == ()
    (tmp_path / "workers-x").mkdir()
    with pytest.raises(InputError, match="holds no comparison of workers"):
        read_workers(tmp_path)
    written(tmp_path, {1: ONE})
    written(tmp_path, {4: FOUR}, budget_seconds=50.0)
    with pytest.raises(InputError, match="workers-1 and workers-4 differ in budget_seconds, so they are not"):
        write_workers(tmp_path)
    (tmp_path / "workers-4" / SEARCHES).write_text("")
    (tmp_path / "workers-4" / "config.json").write_text(json.dumps({**CONFIG, "workers": 4, **CLUSTER}))
    with pytest.raises(
        InputError, match="workers-4: no seed yet from which every strategy has been searched"
    ):
        write_workers(tmp_path)
