"""experiments/asha_2020.py at less than its smoke scale, and its arithmetic on results known beforehand."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from nas.errors import InputError
from nas.record.comparison import SEARCHES, Trace, read_workers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("asha_2020")


def test_it_compares_workers_and_resumes(
    experiment: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(experiment.SCALES, "smoke", experiment.Scale(2, 15, (1, 8)))
    config = experiment.Config(out=tmp_path / "run", processes=1)
    experiment.main(config)
    table = (tmp_path / "run" / "table.md").read_text()
    assert capsys.readouterr().out.startswith(table)
    one, eight = read_workers(tmp_path / "run" / "searches")
    assert (one.workers, eight.workers) == (1, 8)
    faster = np.median([s.wall_seconds for s in one.complete()["asha"]]) / np.median(
        [s.wall_seconds for s in eight.complete()["asha"]]
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert ["asha", "8", f"{faster:.1f}"] in [[line[0], line[1], line[3]] for line in lines if len(line) == 4]
    searches = tmp_path / "run" / "searches" / "workers-8" / SEARCHES
    whole = searches.read_bytes()
    searches.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not empty; go on with --resume"):
        experiment.main(config)
    experiment.main(experiment.Config(out=tmp_path / "run", processes=1, resume=True))
    assert searches.read_bytes() == whole
    assert (tmp_path / "run" / "table.md").read_text() == table


def test_speed_ups_by_hand(experiment: ModuleType) -> None:
    """Regrets of 1 point are reached at the last incumbent; with 64 workers by one search of three."""

    def searches(times: list[float]) -> tuple[SimpleNamespace, ...]:
        traces = [
            Trace(
                np.array([0.1, time]), np.array([0.1, 0.2]), np.array([0.5, 0.89 if time < math.inf else 0.6])
            )
            for time in times
        ]
        return tuple(SimpleNamespace(wall_trace=trace) for trace in traces)

    compared = [
        SimpleNamespace(
            workers=n, optimum=0.9, strategies=("asha",), complete=lambda held=held: {"asha": held}
        )
        for n, held in (
            (1, searches([10.0, 12.0, 50.0])),
            (4, searches([1.0, 4.0, 5.0])),
            (16, searches([1.0, 2.0, 3.0])),
            (64, searches([1.0, math.inf, math.inf])),
        )
    ]
    rows = experiment.speed_ups(compared, (0.01,))
    assert [(row.workers, row.seconds, row.factor) for row in rows] == [
        (1, 12.0, 1.0),
        (4, 4.0, 3.0),
        (16, 2.0, 6.0),
        (64, math.inf, 0.0),
    ]
    assert experiment.verdict(rows) == [
        "ASHA to 1 points: at least half of linear up to 4 workers (3.0 times sooner)"
    ]
    text = experiment.speed_ups_text(rows)
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]] == [
        "asha",
        "1",
        "64",
        "∞",
        "–",
        "–",
    ]
    nobody = experiment.speed_ups([compared[3]], (0.01,))
    assert experiment.verdict(nobody)[0].endswith("less than half of the searches of one worker come there")
