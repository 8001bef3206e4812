"""Searches over a table in memory: budgets, incumbents and costs against the engine that records every epoch."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.table import TableObjective
from nas.record import Record
from nas.record.comparison import SEARCHES, Job, Search, is_comparison, planned, read_comparison
from nas.report import standings
from nas.report.report import write_comparison
from nas.report.statistics import trace
from nas.run import local, simulated
from nas.run.simulated import TableOptions, benchmark, compare, sensible
from nas.space import Architecture, Categorical, SearchSpace
from nas.strategies import STRATEGIES, combined_config
from nas.tables import Curve, Size, Task, write_table
from nas.tables.scores import read_scores, write_scores
from nas.tables.table import Cost
from tests.planted import TEST, VALID, planted

Config: Any = combined_config(STRATEGIES.values())

SPACE = SearchSpace("toy", {f"edge_{k}": Categorical(("none", "skip", "conv")) for k in range(4)})
BEST, TABLE = planted(SPACE, 4, noise=0.01)
MEAN = TableObjective(SPACE, TABLE).mean_training_seconds


def spaces(name: str) -> Mapping[str, SearchSpace]:
    return {"toy": SPACE}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tables") / "toy.npz"
    write_table(TABLE, path)
    return str(path)


def options(file: str, **more: object) -> TableOptions:
    given: dict[str, object] = {
        "table": file,
        "seeds": 4,
        "strategies": ("random", "hyperband"),
        "processes": 1,
    }
    return TableOptions(**{**given, **more})  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------- one search


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_is_what_the_recording_engine_does_up_to_the_budget(name: str, tmp_path: Path) -> None:
    """Same architectures, promotions paid for once, cut at the last unit that the budget holds."""
    objective = TableObjective(SPACE, TABLE)
    plan = Config(seed=3, epochs=9, iterations=None, startup=6)
    budget = 20.3 * MEAN
    found = simulated.execute(STRATEGIES[name](SPACE, plan), objective, Job(3, name), budget)
    with Record.create(tmp_path / "run", {"strategy": name}, env={}, fsync=False) as record:
        run = local.execute(
            STRATEGIES[name](SPACE, plan), objective, record, epochs=9, total_epochs=found.units + 9
        )
    seconds = np.array([seen.measurement.seconds for seen in run.history])
    costs = np.cumsum(seconds)
    inside = costs <= budget
    assert found.units == inside.sum() < len(costs)
    assert found.cost_seconds == pytest.approx(costs[inside][-1])
    seen = run.history[: found.units]
    archs = [run.trials[s.trial_id].arch for s in seen]
    assert found.trials == len({s.trial_id for s in seen})
    test = [objective.test_accuracies[objective.row(arch)] for arch in archs]
    expected = trace(costs[inside], [s.measurement.valid_accuracy for s in seen], test)
    for mine, theirs in zip(found.trace, expected, strict=True):
        np.testing.assert_allclose(mine, theirs)
    leads = [archs[int(np.searchsorted(costs, cost * (1 - 1e-12)))] for cost in expected.cost]
    assert found.archs == tuple(map(SPACE.to_string, leads))


def test_failures_cost_nothing_and_end_a_hopeless_search() -> None:
    curve = TABLE.curve(VALID)
    values = curve.values.copy()
    values[::2] = np.nan  # every second architecture is not known
    table = dataclasses.replace(TABLE, columns={**TABLE.columns, VALID: curve._replace(values=values)})
    objective = TableObjective(SPACE, table)
    plan = Config(seed=1, epochs=9)
    # So long that there are more failures in all than the search would bear in a row.
    found = simulated.execute(STRATEGIES["random"](SPACE, plan), objective, Job(1, "random"), 200 * MEAN)
    assert found.trials > 150
    assert found.units // 9 <= found.trials
    assert all(objective.row(SPACE.from_string(text)) % 2 for text in found.archs)

    def nothing(arch: Architecture, seed: int) -> object:
        raise TrialFailed("not known")

    objective.measurements = nothing  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="100 trials failed in a row, the last with: not known"):
        simulated.execute(STRATEGIES["random"](SPACE, plan), objective, Job(1, "random"), MEAN)


def test_a_budget_too_small_is_said() -> None:
    with pytest.raises(InputError, match=r"budget_seconds: 0\.1 is too little: random with seed 2 measured"):
        simulated.execute(
            STRATEGIES["random"](SPACE, Config(epochs=9)),
            TableObjective(SPACE, TABLE),
            Job(2, "random"),
            0.1,
        )


def test_a_filter_takes_the_best_of_the_candidates_and_its_cost_counts(file: str, tmp_path: Path) -> None:
    """Parameters rank as test accuracies do here: the best of n draws by them is the best of n draws."""
    archs = list(SPACE.enumerate())
    objective = TableObjective(SPACE, TABLE)
    truth = [float(objective.test_accuracies[objective.row(arch)]) for arch in archs]
    write_scores(tmp_path / "s.csv", SPACE, archs, {"truth": truth, "truth_seconds": [0.5] * len(archs)})
    labels = ("random", "random+params", "random+truth", "random+macs_per_image")
    shared = benchmark(options(file, strategies=labels, scores=tmp_path / "s.csv"), spaces)
    plain, params, told, equal = (shared.search(Job(7, label)) for label in labels)
    first = max(
        (SPACE.sample((7, 0) if k == 0 else (7, 0, k)) for k in range(10)),
        key=lambda a: truth[archs.index(a)],
    )
    assert params.archs[0] == told.archs[0] == SPACE.to_string(first)
    assert dataclasses.replace(equal, strategy="random") == plain  # ties go to the earlier candidate
    # Ten draws are scored before the first training; none again, so at most all 81 in the end.
    scored = len({SPACE.sample((7, 0) if k == 0 else (7, 0, k)) for k in range(10)})
    assert told.costs_seconds[0] == pytest.approx(params.costs_seconds[0] + 0.5 * scored)
    assert told.units < params.units
    assert told.cost_seconds <= shared.budget_seconds


def test_what_the_table_does_not_have_is_scored_last(tmp_path: Path) -> None:
    keep = [k for k, text in enumerate(TABLE.archs) if "edge_3=none" not in text]
    part = dataclasses.replace(
        TABLE,
        archs=tuple(TABLE.archs[k] for k in keep),
        columns={name: Curve(c.epochs, c.values[keep]) for name, c in TABLE.columns.items()},
        sizes={name: Size(*(values[keep] for values in size)) for name, size in TABLE.sizes.items()},
        costs={name: Cost(*(seconds[keep] for seconds in cost)) for name, cost in TABLE.costs.items()},
    )
    write_table(part, tmp_path / "part.npz")
    labels = ("random+params", "random")
    shared = benchmark(options(str(tmp_path / "part.npz"), strategies=labels), spaces)
    filtered, plain = (shared.search(Job(1, label)) for label in labels)
    assert filtered.test_accuracies[0] > plain.test_accuracies[0]


# ------------------------------------------------------------------------------------------- a comparison


def test_the_budget_is_the_tables_own_or_in_trainings(file: str, tmp_path: Path) -> None:
    assert benchmark(options(file), spaces).budget_seconds == pytest.approx(50 * MEAN)
    assert benchmark(options(file, budget_trainings=3.0), spaces).budget_seconds == pytest.approx(3 * MEAN)
    assert benchmark(options(file, budget_seconds=7.0), spaces).budget_seconds == 7
    write_table(
        dataclasses.replace(TABLE, tasks={"planted": Task(VALID, TEST, 123.0)}), tmp_path / "published.npz"
    )
    published = options(str(tmp_path / "published.npz"))
    assert benchmark(published, spaces).budget_seconds == 123
    costs = [
        sum(m.seconds for m in TableObjective(SPACE, TABLE).measurements(arch, k))
        for arch in SPACE.enumerate()
        for k in range(2)
    ]
    assert pytest.approx(np.mean(costs), rel=1e-6) == MEAN


def test_without_a_rung_halving_is_random_search() -> None:
    """What is left out is the same search; with rungs it is not."""

    def left_out(epochs):
        return set(STRATEGIES) - set(sensible(SPACE, Config(epochs=epochs)))

    assert left_out(1) == {"successive_halving", "hyperband", "asha", "mo_asha"}
    assert left_out(2) == {"successive_halving", "hyperband"}
    assert left_out(3) == set()
    objective = TableObjective(SPACE, TABLE, epochs=(9,))
    plan = Config(seed=1, epochs=1, iterations=None)
    searches = {
        name: simulated.execute(STRATEGIES[name](SPACE, plan), objective, Job(1, "same"), 20 * MEAN)
        for name in STRATEGIES
    }
    same = {name for name, found in searches.items() if found == searches["random"]}
    assert same - {"random"} == left_out(1)


def test_one_process_or_two_and_interrupted_or_not_the_record_has_the_same_bytes(tmp_path: Path) -> None:
    """The processes are new ones, which find the space by importing it."""
    from search_spaces import spaces_with

    space = spaces_with("nasbench201")["nasbench201"]
    fixed = ("edge_0_1=none", "edge_0_2=none", "edge_0_3=skip_connect")
    write_table(planted(space.restrict(fix=fixed), 1)[1], tmp_path / "t.npz")
    told = TableOptions(table=str(tmp_path / "t.npz"), fix=fixed, seeds=2, budget_trainings=11.0, processes=1)
    compare(told, spaces_with, tmp_path / "here")
    compare(dataclasses.replace(told, processes=2), spaces_with, tmp_path / "there")
    whole = (tmp_path / "here" / SEARCHES).read_bytes()
    assert whole.count(b"\n") == 2 * sum(record.objectives != "several" for record in STRATEGIES.values())
    assert (tmp_path / "there" / SEARCHES).read_bytes() == whole
    for kept in (1, len(whole) - 1):
        (tmp_path / "there" / SEARCHES).write_bytes(whole[:kept])
        compare(told, spaces_with, tmp_path / "there", resume=True)
        assert (tmp_path / "there" / SEARCHES).read_bytes() == whole


def test_all_strategies_from_one_seed_come_before_the_next_seed() -> None:
    assert planned(("b", "a"), 5, 2) == ((5, "b"), (5, "a"), (6, "b"), (6, "a"))


def test_a_resumption_must_mean_the_same(file: str, tmp_path: Path) -> None:
    compare(options(file), spaces, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        compare(options(file), spaces, tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume there"):
        compare(options(file), spaces, tmp_path / "none", resume=True)
    for change in ({"seeds": 5}, {"budget_seconds": 9.0}, {"strategies": ("random",)}):
        with pytest.raises(InputError, match="cannot resume with another config"):
            compare(options(file, **change), spaces, tmp_path / "run", resume=True)
    path = tmp_path / "run" / SEARCHES
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match="not in the order planned"):
        compare(options(file), spaces, tmp_path / "run", resume=True)
    path.write_text("".join([lines[0], '{"strategy": "random"}\n']))
    with pytest.raises(InputError, match=r"searches\.jsonl:2: not a search \(KeyError"):
        read_comparison(tmp_path / "run")
    for field, value, says in (
        ("cost_seconds", 1e300, "cost_seconds=1e"),
        ("units", -1, "units=-1 is below 0"),
        (
            "incumbents",
            {**json.loads(lines[1])["incumbents"], "test_accuracy": [2.0]},
            "test_accuracy=2.0 is not",
        ),
    ):
        path.write_text(lines[0] + json.dumps({**json.loads(lines[1]), field: value}) + "\n")
        with pytest.raises(InputError, match=rf"searches\.jsonl:2: not a search \(ValueError: {says}"):
            read_comparison(tmp_path / "run")
    path.write_text("".join(lines))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for field, value in (
        ("strategies", 3),
        ("seeds", 10**15),
        ("optimum_test_accuracy", 2),
        ("budget_seconds", None),
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps({**config, field: value}))
        with pytest.raises(InputError, match=rf"config\.json: {field}"):
            read_comparison(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"table": None}, "table: say --table or --space"),
        ({"table": None, "space": "toy"}, "table: there is none named toy, only nasbench201"),
        ({"space": "chain"}, "space: 'chain' is not one of toy"),
        ({"strategies": ("random", "random")}, "strategies: random random: each is to be named once"),
        ({"strategies": ("randm",)}, "strategies: 'randm' is not one of grid"),
        ({"strategies": ("random+synflow",)}, "score: 'synflow' is not one of params, macs_per_image"),
        ({"strategies": ("hyperband",), "steps": (9,)}, "hyperband with trials of at most 1 of the table's units"),
        ({"steps": (3, 12)}, "has no planted/9/valid_accuracy@12"),
        ({"epochs": 10}, "epochs: 10 is more than the 9 units of planted/9/valid_accuracy"),
        ({"dataset": "mnist"}, "dataset: 'mnist' is not one of planted"),
        ({"seeds": 0}, "seeds: 0 is below 1"),
        ({"budget_seconds": -1.0}, "budget_seconds: -1.0 is not a number above 0"),
        ({"budget_trainings": math.nan}, "budget_trainings: nan is not a number above 0"),
        ({"budget_seconds": 1.0, "budget_trainings": 1.0}, "say one of them"),
        ({"scores": Path("none.csv")}, "scores: there is no file none.csv"),
        ({"fix": ("edge_9=conv",)}, "edge_9"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(file: str, tmp_path: Path, given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        compare(options(file, **given), spaces, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its first line is not architecture,SCORE"),
        ("arch,ntk\n", "its first line is not architecture,SCORE"),
        ("architecture,ntk,ntk\n", "with each name once"),
        ("architecture,ntk\n\"edge_0=none,edge_1=none,edge_2=none,edge_3=none\",x\n", "s.csv:2: could not convert"),
        ("architecture,ntk\nnone,1\n", "s.csv:2: toy: 'none' is not name=value"),
        ("architecture,ntk\n" + 2 * "\"edge_0=none,edge_1=none,edge_2=none,edge_3=none\",1\n", "is there twice"),
        ("architecture,ntk\n\"edge_0=none,edge_1=none,edge_2=none,edge_3=none\",\n", "has no ntk of 80 of the 81"),
    ],
)  # fmt: skip
def test_a_file_of_scores_that_cannot_be_meant(file: str, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        benchmark(options(file, strategies=("random+ntk",), scores=tmp_path / "s.csv"), spaces)
    assert says in str(caught.value)


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    archs = list(SPACE.enumerate())[:3]
    columns = {"ntk": [0.1, math.nan, -3e-7], "ntk_seconds": [1.0, 2.0, 3.0], "wall_seconds": [4.0, 5.0, 6.0]}
    write_scores(tmp_path / "s.csv", SPACE, archs, columns)
    found = read_scores(tmp_path / "s.csv", SPACE)
    assert list(found) == ["ntk", "wall_seconds"]  # there is no score named wall
    np.testing.assert_array_equal([found["ntk"].values[arch] for arch in archs], columns["ntk"])
    assert [found["ntk"].seconds[arch] for arch in archs] == columns["ntk_seconds"]
    assert found["wall_seconds"].seconds == {}


# ---------------------------------------------------------------------------------------------- standings


def made(strategy: str, seed: int, test: float) -> Search:
    return Search(strategy, seed, 10, 90, 95.0, (1.0, 50.0), (0.5, 0.6), (0.4, test), ("a", "b"))


def folder_of(tmp_path: Path, tests: Mapping[str, list[float]]) -> Path:
    """A comparison in which the last incumbents have these test accuracies."""
    folder = tmp_path / "made"
    folder.mkdir()
    config = {
        "strategies": list(tests),
        "seed": 5,
        "seeds": len(next(iter(tests.values()))),
        "budget_seconds": 100.0,
    }
    config |= {"optimum_test_accuracy": 0.9, "mean_training_seconds": 10.0, "table": "t", "table_seconds": ""}
    config |= {
        "valid": "v",
        "test": "t@9",
        "architectures": 81,
        "filter_candidates": 10,
        "left_out": [],
        "epochs": 9,
    }
    (folder / "config.json").write_text(json.dumps(config))
    jobs = planned(tuple(tests), 5, config["seeds"])
    searches = (made(job.strategy, job.seed, tests[job.strategy][job.seed - 5]) for job in jobs)
    (folder / SEARCHES).write_text("".join(search.to_json() + "\n" for search in searches))
    return folder


def test_standings_by_hand(tmp_path: Path) -> None:
    tests = {"evolution": [0.9, 0.88, 0.9, 0.7, 0.88], "random": [0.5, 0.8, 0.6, 0.4, 0.5]}
    comparison = read_comparison(folder_of(tmp_path, tests))
    held = standings.standings(comparison)
    assert held.baseline == "random"
    first, second = held.rows
    assert (first.test_accuracy.mean, first.found_best, first.mean_rank) == (pytest.approx(0.852), 0.4, 1.0)
    assert first.test_deviation == pytest.approx(np.std(tests["evolution"], ddof=1))
    assert float(first.regret.value) == pytest.approx(0.04 / 3)  # of 0, 0, 0.02, 0.02, 0.2 the middle
    assert float(first.better.value) == pytest.approx(24 / 25)  # of the pairs one is lost: 0.7 against 0.8
    assert second.mean_rank == 2
    (test,) = held.tests
    assert (test.first, test.wins, test.losses, test.ties) == ("evolution", 5, 0, 0)
    head, *lines = standings.cells(held)
    assert [len(line) for line in lines] == [len(head)] * 2
    assert dict(zip(head, lines[0], strict=True))["Test %"].startswith("85.20 ± ")
    (row,) = [
        row for row in csv.DictReader(standings.to_csv(held).splitlines()) if row["strategy"] == "random"
    ]
    assert float(row["test_accuracy_mean"]) == pytest.approx(0.56)
    assert float(row["regret_value"]) == pytest.approx(1.1 / 3)


def test_a_comparison_under_way_is_of_the_seeds_that_all_have(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"evolution": [0.9, 0.8, 0.9], "random": [0.5, 0.8, 0.6]})
    lines = (folder / SEARCHES).read_text().splitlines(keepends=True)
    (folder / SEARCHES).write_text("".join(lines[:5]) + lines[5][:20])
    comparison = read_comparison(folder)
    held = standings.standings(comparison)
    assert [row.searches for row in held.rows] == [2, 2]
    assert standings.notes(comparison, held)[-1].endswith("interrupted: 1 searches are to come.")
    assert is_comparison(folder)
    (folder / SEARCHES).write_text(lines[0])
    with pytest.raises(InputError, match="no seed yet from which every strategy has been searched"):
        write_comparison(folder)


@pytest.mark.parametrize(
    "tests",
    [
        {"random": [0.5]},
        {"random": [0.5, 0.6], "grid": [0.9, 0.9]},
        {"random": [0.9, 0.9], "grid": [0.9, 0.9], "a_rather_long_name": [0.9, 0.9]},
    ],
)
def test_a_report_is_drawn_of_anything(tmp_path: Path, tests: dict[str, list[float]]) -> None:
    report = write_comparison(folder_of(tmp_path, tests), tmp_path / "out")
    names = {path.name for path in report.files}
    several = len(tests) > 1
    assert {
        "table.md",
        "table.csv",
        "table.tex",
        "tests.md",
        "regret.png",
        "profiles.png",
        "report.html",
    } <= names
    assert ("ranks.png" in names, "improvement.png" in names) == (several, several)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == (4 if several else 2)
    # A window of 1,300 pixels shows every column; in a smaller one a table scrolls by itself.
    assert page.count("<table") == page.count('<div class="wide"><table') == 2
    rules = dict(re.findall(r"^(\S[^{]*) \{ ([^}]*) \}$", page, re.MULTILINE))
    assert "overflow-x: auto" in rules[".wide"]
    assert "white-space: normal" in rules["thead th"]
    (width,) = re.findall(r"max-width: (\d+)rem; margin: 2rem auto", page)
    assert int(width) * 16 >= 1268
