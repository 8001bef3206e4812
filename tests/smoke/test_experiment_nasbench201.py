"""experiments/nasbench201_2020.py at its smoke scale: numbers of the table, published ones beside them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from nas.errors import InputError
from nas.record.comparison import SEARCHES, read_comparison
from tests.benchmarks import bench_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch):
    bench_files("nasbench201/nb201.csv.gz", "nasbench201/latency_ms.csv.gz")
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("nasbench201_2020")


@pytest.mark.slow
def test_it_compares_resumes_and_shows_published_numbers(experiment, tmp_path: Path, capsys) -> None:
    folder = str(bench_files("nasbench201/nb201.csv.gz"))
    config = experiment.Config(out=tmp_path / "run", data_dir=folder, processes=1)
    experiment.main(config)
    table = (tmp_path / "run" / "table.md").read_text()
    assert capsys.readouterr().out.startswith(table)
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in table.splitlines()[2:]
        if line.startswith("|")
    }
    assert lines["best of the space"] == ["94.37", "94.37", "73.51", "73.51", "47.31", "47.31", "–"]
    assert lines["REINFORCE"][1::2] == ["93.85 ± 0.37", "71.71 ± 1.09", "45.24 ± 1.18"]
    comparison = read_comparison(tmp_path / "run" / "searches")
    found = [100 * search.test_accuracies[-1] for search in comparison.complete()["random"]]
    assert lines["random search"][0] == f"{np.mean(found):.2f} ± {np.std(found, ddof=1):.2f}"
    assert lines["random search"][1] == "93.70 ± 0.36"
    # What the search on CIFAR-10 ended with, looked up by hand in the other data sets' columns.
    objective = experiment.TableObjective(
        experiment.SPACE, experiment.load_table("nasbench201", folder), "cifar100"
    )
    rows = [
        objective.row(experiment.SPACE.from_string(s.archs[-1])) for s in comparison.complete()["evolution"]
    ]
    tested = 100 * objective.test_accuracies[rows]
    assert lines["evolution"][2] == f"{tested.mean():.2f} ± {tested.std(ddof=1):.2f}"

    whole = (tmp_path / "run" / "searches" / SEARCHES).read_bytes()
    (tmp_path / "run" / "searches" / SEARCHES).write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match="is not empty; go on with --resume"):
        experiment.main(config)
    experiment.main(experiment.Config(out=tmp_path / "run", data_dir=folder, processes=1, resume=True))
    assert (tmp_path / "run" / "searches" / SEARCHES).read_bytes() == whole
    assert (tmp_path / "run" / "table.md").read_text() == table
    assert re.search(r"a difference of [+-]0\.\d{3}, 95 % interval", table)


def test_the_papers_protocol_wants_the_official_times(experiment, tmp_path: Path) -> None:
    folder = str(bench_files("nasbench201/nb201.csv.gz"))
    with pytest.raises(
        InputError, match="its seconds are estimated; the paper's protocol needs: unpack NATS-tss"
    ):
        experiment.main(experiment.Config(scale="paper", out=tmp_path / "run", data_dir=folder))
    with pytest.raises(InputError, match="start it without --resume"):
        experiment.main(experiment.Config(out=tmp_path / "none", data_dir=folder, resume=True))
    assert list(tmp_path.iterdir()) == []
