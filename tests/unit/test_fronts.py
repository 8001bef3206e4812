"""Comparisons over a table by several objectives: measured, recorded, resumed, judged; what the table lacks."""

import dataclasses
import json
import math

import numpy as np
import pytest

from nas.errors import InputError
from nas.goals import Limit
from nas.objectives.base import TrialFailed
from nas.objectives.table import TableObjective
from nas.objectives.table_goals import TableGoals
from nas.record.fronts import FRONTS, FrontSearch, read_fronts
from nas.report import front, front_runs
from nas.report.front_report import write_fronts
from nas.run.simulated import TableOptions
from nas.run.simulated_fronts import FrontOptions, compare, front_benchmark
from nas.space import Integer, SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig
from nas.tables import Column, Curve, Size, Table, Task, write_table
from nas.tables.table import Cost
from nas.trial import Trial

SPACE = SearchSpace("digits", {f"x{k}": Integer(0, 3) for k in range(3)})
VALID, TEST = Column("toy", 2, "valid_accuracy"), Column("toy", 2, "test_accuracy")


def table(missing: int | None = None) -> Table:
    """64 architectures: the sum of the digits is good; their squares are slow; valid is what it is less a little."""
    every = list(SPACE.enumerate())
    digits = np.array([list(arch.values()) for arch in every], float)
    good = (0.1 + digits.sum(axis=1) / 10).astype(np.float32)
    slow = 1 + (digits**2).sum(axis=1)
    if missing is not None:
        slow[missing] = np.nan
    curve = np.stack([good / 2, good - 0.01], axis=1)[:, None, :].astype(np.float32)
    return Table(
        name="toy",
        space="digits",
        archs=tuple(map(SPACE.to_string, every)),
        columns={VALID: Curve((1, 2), curve), TEST: Curve((2,), good[:, None, None])},
        sizes={"toy": Size(np.arange(64), np.arange(64) * 2)},
        costs={("toy", 2): Cost(np.full((64, 1), 2.0, np.float32), np.full((64, 1), 0.5, np.float32))},
        tasks={"toy": Task(VALID, TEST, 300.0)},
        devices={"toy": {"latency_ms:phone": slow, "throughput:tpu": 1000 / slow}},
    )


def goals(*objectives: str, constraints: tuple[str, ...] = (), missing: int | None = None) -> TableGoals:
    return TableGoals(TableObjective(SPACE, table(missing)), objectives or ("valid_accuracy",), constraints)


def test_a_trial_has_the_tables_values_and_directions():
    made = goals(
        "valid_accuracy", "latency_ms:phone", "throughput:tpu", "params", constraints=("latency_ms:phone<=2",)
    )
    arch = SPACE.from_string("x0=1,x1=2,x2=0")
    first, second = made.measurements(arch, 0)
    assert second.values == {
        "valid_accuracy": 0.39,
        "params": 24,
        "latency_ms:phone": 6,
        "throughput:tpu": 1000 / 6,
    }
    assert second.gains == (0.39, -6, 1000 / 6, -24)
    assert (first.values["valid_accuracy"], first.violation, first.last) == (0.2, 2.0, False)
    assert (first.train_seconds, first.evaluate_seconds) == (2.0, 0.5)
    assert made.tested(arch).gains == pytest.approx((0.4, -6, 1000 / 6, -24))
    assert list(made(Trial(0, arch, 2, 0))) == [first, second]


@pytest.mark.parametrize(
    ("objectives", "constraints", "said"),
    [
        (
            ("valid_accuracy", "latency_ms:fridge"),
            (),
            "latency_ms:fridge' is not one of latency_ms:phone, throughput:tpu",
        ),
        (
            ("valid_accuracy", "latency_ms"),
            (),
            "objective: table toy: 'latency_ms' is not one of .*latency_ms:phone",
        ),
        (("valid_accuracy",), ("energy_mj:phone<3",), "energy_mj:phone' is not one of"),
        (("valid_accuracy", "naswot"), (), "'naswot' is not one of"),
    ],
)
def test_a_column_that_the_table_lacks_is_one_line_with_those_that_it_has(objectives, constraints, said):
    with pytest.raises(InputError, match=said) as error:
        goals(*objectives, constraints=constraints)
    assert "\n" not in str(error.value)


def test_a_value_that_nobody_measured_is_a_failed_trial_and_on_no_front():
    made = goals("valid_accuracy", "latency_ms:phone", missing=0)
    with pytest.raises(TrialFailed, match="latency_ms:phone of x0=0,x1=0,x2=0 is not known"):
        made.measurements(SPACE.from_string("x0=0,x1=0,x2=0"), 0)
    assert np.isfinite(made.front).all()


def test_the_true_front_by_hand():
    """For each sum of digits the even split is the fastest: 1 + the least sum of squares."""
    made = goals("valid_accuracy", "latency_ms:phone")
    least = {0: 0, 1: 1, 2: 2, 3: 3, 4: 6, 5: 9, 6: 12, 7: 17, 8: 22, 9: 27}
    expected = sorted((0.1 + total / 10, -1.0 - squares) for total, squares in least.items())
    assert np.array(sorted(map(tuple, made.front))) == pytest.approx(np.array(expected))
    kept = goals("valid_accuracy", "latency_ms:phone", constraints=("latency_ms:phone<4",))
    assert len(kept.front) == 3


def test_a_constraint_that_no_network_keeps_is_one_line():
    made = goals("valid_accuracy", "latency_ms:phone", constraints=("latency_ms:phone<1",))
    with pytest.raises(
        InputError, match="constraint: latency_ms:phone<1: none of the 64 architectures of table toy"
    ):
        _ = made.front


@pytest.fixture
def told(tmp_path):
    write_table(table(), tmp_path / "toy.npz")
    return TableOptions(
        table=str(tmp_path / "toy.npz"),
        strategies=("random", "nsga2", "mo_asha"),
        seeds=5,
        processes=1,
        plan=StrategyConfig(),
    )


FRONT = FrontOptions(("valid_accuracy", "latency_ms:phone"))


def spaces(name):
    return {"digits": SPACE}


def test_searches_are_recorded_resumed_to_the_same_bytes_and_reported(told, tmp_path):
    done = compare(told, FRONT, spaces, tmp_path / "a")
    assert len(done.searches) == 15
    assert read_fronts(tmp_path / "a").searches == done.searches
    whole = (tmp_path / "a" / FRONTS).read_bytes()
    for kept in (1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a" / FRONTS).write_bytes(whole[:kept])
        compare(told, FRONT, spaces, tmp_path / "a", resume=True)
        assert (tmp_path / "a" / FRONTS).read_bytes() == whole
    other = dataclasses.replace(FRONT, objectives=("valid_accuracy", "params"))
    with pytest.raises(InputError, match="cannot resume with another config"):
        compare(told, other, spaces, tmp_path / "a", resume=True)
    report = write_fronts(tmp_path / "a")
    names = {path.name for path in report.files}
    assert names == {
        *("table.md", "table.csv", "table.tex", "tests.md", "report.html"),
        *("front.png", "hypervolume.png", "front_ranks.png"),
    }
    assert "reference point valid_accuracy=0.1, latency_ms:phone=28" in " ".join(report.notes)
    assert report.markdown.count("\n") == 5


def test_a_searchs_points_are_those_that_none_before_dominates(told):
    made = front_benchmark(dataclasses.replace(told, workers=(3,)), FRONT, spaces)
    job = ("nsga2", 3)
    found = made.search(type("Job", (), {"strategy": job[0], "seed": job[1]})())  # type: ignore[arg-type]
    assert found.cost_seconds <= made.shared.budget_seconds
    assert list(found.costs_seconds) == sorted(found.costs_seconds)
    for k, new in enumerate(found.gains):
        assert not any(all(a >= b for a, b in zip(old, new, strict=True)) for old in found.gains[:k])
    assert FrontSearch.of(json.loads(found.to_json())) == found


@pytest.mark.parametrize(
    ("strategies", "reference", "said"),
    [
        (("evolution",), (), "evolution takes one objective; for several there are grid, random"),
        (("nsga3",), (), "'nsga3' is not one of"),
        (("random",), ("latency=3",), "reference: objective: 'latency' is not one of"),
        (("random",), ("latency_ms:phone=x",), "'x' is not a number"),
    ],
)
def test_what_cannot_be_compared_is_one_line(told, strategies, reference, said, tmp_path):
    given = dataclasses.replace(FRONT, reference=reference)
    with pytest.raises(InputError, match=said):
        compare(dataclasses.replace(told, strategies=strategies), given, spaces, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_every_strategy_takes_a_constraint_on_its_one_objective(told, tmp_path):
    limited = FrontOptions(("valid_accuracy",), ("latency_ms:phone<=7",))
    done = compare(
        dataclasses.replace(told, strategies=("evolution", "asha"), seeds=2),
        limited,
        spaces,
        tmp_path / "a",
    )
    best = {max(row[0] for row in search.tested) for search in done.searches}
    assert max(best) == pytest.approx(0.5)  # of those with at most 7 ms
    assert done.front.tolist() == [[pytest.approx(0.5)]]
    assert done.reference == pytest.approx([0.1]), "a front of one has no span: the worst of all"
    rows = front.rows(done.complete(), front.Scale(done.goals, done.reference, done.front))
    assert all(row.hypervolume.value > 0.5 for row in rows)


def test_hypervolume_over_cost_by_hand():
    """Of a unit square with a corner: the front is (0, 1), (1, 0) scaled, and (0.5, 0.5)."""
    scale = front.Scale(
        {"a": 1, "b": -1}, np.array([0.0, -10.0]), np.array([[1.0, -10.0], [0.5, -5.0], [0.0, 0.0]])
    )
    assert scale.volume == 0.25
    search = FrontSearch(
        "s",
        0,
        3,
        3,
        9.0,
        (1.0, 4.0, 9.0),
        ((0.2, -8.0), (0.5, -8.0), (0.5, -5.0)),
        ((0.2, -8.0), (0.4, -8.0), (0.5, -5.0)),
        ("p", "q", "r"),
    )
    held = front.progress(search, scale)
    assert held.volumes == pytest.approx([0.2 * 0.2 / 0.25, 0.4 * 0.2 / 0.25, 1.0])
    assert held.points == pytest.approx(np.array([[0.5, 0.5]]))
    assert front.at([held], np.array([0.5, 1.0, 5.0, 9.0])) == pytest.approx(np.array([[0, 0.16, 0.32, 1.0]]))
    empty = dataclasses.replace(search, costs_seconds=(), gains=(), tested=(), archs=())
    assert front.rows({"s": [empty]}, scale)[0].hypervolume.value == 0
    assert math.isnan(front.rows({"s": [empty]}, scale)[0].igd.value)


def test_attainment_is_what_so_many_searches_reach():
    """Of four searches with a point each along a diagonal, half reach the second best."""
    points = [np.array([[k / 4, k / 4]]) for k in range(1, 5)]
    assert front.attainment(points, 50).tolist() == [[0.75, 0.75]]
    assert front.attainment(points, 75).tolist() == [[0.5, 0.5]]
    nothing = [np.empty((0, 2))] * 4
    assert front.attainment([*points, *nothing], 25).tolist() == [[0.75, 0.75]], "two of eight"
    assert front.attainment([*points, *nothing], 75).tolist() == [], "six of eight reach nothing"


def test_a_strategy_that_finds_nothing_is_reported_beside_one_that_does(told, tmp_path):
    """With three objectives too, where points are drawn in place of surfaces."""
    names = ("valid_accuracy", "latency_ms:phone", "params")
    compare(dataclasses.replace(told, seeds=2), FrontOptions(names), spaces, tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / FRONTS).read_text().splitlines()]
    for line in lines:
        if line.get("strategy") == "random":
            line["points"] = {name: [] for name in line["points"]}
    (tmp_path / "a" / FRONTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "| random" in write_fronts(tmp_path / "a").markdown


def test_ranks_are_of_the_seeds_that_all_have():
    def search(label, seed):
        return FrontSearch(label, seed, 1, 1, 1.0, (), (), (), ())

    searches = {"a": [search("a", 1), search("a", 0)], "b": [search("b", 1), search("b", 2)]}
    volumes = {"a": np.array([0.1, 0.2]), "b": np.array([0.3, 0.4])}
    found = front_runs._of_common_seeds(volumes, searches)
    assert {label: of.tolist() for label, of in found.items()} == {"a": [0.1], "b": [0.3]}


def test_a_bound_is_told_in_full():
    assert str(Limit("params", "<", 1234567.0)) == "params<1234567.0"
    assert str(Limit("latency_ms", "<=", 5.0)) == "latency_ms<=5"


def test_strategies_for_several_objectives_are_compared_by_default(told):
    from nas.run.simulated_fronts import compared

    made = front_benchmark(told, FRONT, spaces)
    found = compared(dataclasses.replace(told, strategies=()), made)
    assert {"random", "nsga2", "mo_evolution", "mo_local_search", "mo_asha", "parego"} <= set(found)
    assert all(STRATEGIES[name].objectives != "one" for name in found)
