"""Strategies for several objectives: their rules by hand, better fronts than random search, constraints, replay."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nas import pareto
from nas.check.strategies import drive
from nas.goals import Goal, Goals, Limit
from nas.objectives.several import with_values
from nas.space import Architecture, Categorical, Integer, SearchSpace
from nas.strategies import STRATEGIES, bananas, combined_config, dominance, recorded
from nas.strategies.dominance import Point
from nas.strategies.mo_asha import place
from nas.strategies.parego import drawn_weights, scalarised
from nas.trial import INFEASIBLE, Measurement, Trial

Config: Any = combined_config(STRATEGIES.values())
SEVERAL = [name for name, record in STRATEGIES.items() if record.objectives == "several"]
TABLE = SearchSpace(
    "two",
    {f"x{k}": Integer(0, 3) for k in range(4)} | {"kind": Categorical(("a", "b", "c"))},
)  # 768 architectures


def values(arch) -> dict[str, float]:
    """Large digits are good and dear; the kind b is both better and cheaper than the others."""
    digits = [arch[f"x{k}"] for k in range(4)]
    kind = {"a": 0.0, "b": 1.0, "c": 0.5}[arch["kind"]]
    good = sum(digits) / 12 + 0.3 * kind - 0.15 * abs(digits[0] - digits[1])
    dear = sum(d * d for d in digits) + 6 * (1 - kind)
    return {"good": good, "dear": float(dear)}


GOALS = Goals((Goal("good", 1), Goal("dear", -1)))


def run(goals=GOALS, fails=lambda trial: False):
    def measured(trial: Trial) -> Trial:
        if fails(trial):
            return trial.replace(status="failed", error="loss is nan")
        for unit in range(trial.spent + 1, trial.budget + 1):
            plain = Measurement(unit, 0.5, 0.0, 0.0, 0.0)
            trial = trial.add(with_values(plain, goals, values(trial.arch)))
        return trial.replace(status="completed")

    return measured


def told(calls):
    return {trial.id: trial for kind, trial in calls if kind == "tell"}.values()


def volume(name, seed, trials=100, epochs=1):
    config = Config(seed=seed, trials=trials, epochs=epochs)
    found = told(drive(STRATEGIES[name](TABLE, config), run()))
    return pareto.hypervolume([trial.gains for trial in found], (-0.2, -45))


@pytest.mark.parametrize("name", ["nsga2", "mo_evolution", "mo_local_search", "parego"])
@pytest.mark.some(2)
def test_fronts_are_better_than_those_of_random_search(name):
    """A hundred of 768 architectures, from equal seeds; more than twice the standard error apart."""
    gaps = np.array([volume(name, seed) - volume("random", seed) for seed in range(6)])
    assert gaps.mean() > 2 * gaps.std(ddof=1) / np.sqrt(len(gaps))


def test_nsga2_finds_most_of_the_true_front():
    """With half the space tried; random search with as many trials finds half of it."""
    every = [(arch, tuple(GOALS.judge(values(arch)).gains)) for arch in TABLE.enumerate()]
    best = pareto.nondominated([gains for _, gains in every])
    true = {gains for (_, gains), is_best in zip(every, best, strict=True) if is_best}
    tried = told(drive(STRATEGIES["nsga2"](TABLE, Config(seed=0, trials=384, epochs=1)), run()))
    assert len({trial.gains for trial in tried} & true) >= 0.9 * len(true)


def test_rungs_let_more_of_a_front_through_than_they_train():
    """For as many units, MO-ASHA sees many more architectures than random search."""
    calls = drive(STRATEGIES["mo_asha"](TABLE, Config(seed=0, trials=120, epochs=9)), run())
    units = sum(trial.spent for trial in told(calls))
    assert units < 0.5 * 120 * 9
    assert volume("mo_asha", 0, 120, 9) > volume("random", 0, units // 9, 9)


LIMITED = dataclasses.replace(GOALS, limits=(Limit("dear", "<=", 8.0),))


@pytest.mark.parametrize("name", ["nsga2", "mo_evolution", "mo_local_search", "mo_asha", "parego"])
def test_under_a_constraint_more_trials_keep_it_than_at_random(name):
    def share(name):
        found = told(drive(STRATEGIES[name](TABLE, Config(seed=1, trials=80, epochs=3)), run(LIMITED)))
        late = [trial for trial in found if trial.id >= 20 and trial.spent == 3]
        return np.mean([trial.feasible for trial in late])

    assert share(name) > 2 * share("random")


@pytest.mark.parametrize("name", ["reinforce", "bananas"])
def test_one_objective_far_below_zero_stays_better_than_a_violated_constraint(name):
    """What costs least is what violates most."""
    cheap = Goals((Goal("dear", -1),), (Limit("good", ">=", 0.9),))

    def share(name):
        config = Config(seed=1, trials=150, epochs=1)
        found = told(drive(STRATEGIES[name](TABLE, config), run(cheap)))
        return np.mean([trial.feasible for trial in found if trial.id >= 75])

    assert share(name) > 2 * share("random")


def test_scores_in_units_of_a_deviation_do_not_drown_in_violations():
    scores = np.array([0.5, 0.9, 3 * INFEASIBLE, -np.inf, 0.7])
    assert bananas.standardised(scores) == pytest.approx(
        bananas.standardised(np.array([0.5, 0.9, 0.5, 0.5, 0.7]))
    )


def test_failed_trials_are_the_worst_to_mo_tpe():
    """A third fail, and all others violate the constraint: what is drawn then goes where the violation is small."""
    never = dataclasses.replace(GOALS, limits=(Limit("dear", "<", -1.0),))

    def fails(trial: Trial) -> bool:
        return trial.arch["kind"] == "a"

    config = Config(seed=0, trials=60, epochs=1, startup=12)
    found = told(drive(STRATEGIES["mo_tpe"](TABLE, config), run(never, fails)))
    late = [trial.arch["kind"] for trial in found if trial.id >= 24]
    assert late.count("a") < 0.5 * len(late)  # all of them, if failed ones were better than violating ones


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_recorded_is_replayed_and_goes_on(name, workers):
    config = Config(seed=2, trials=30, epochs=3, startup=6, population=5)
    measured = run(LIMITED, lambda trial: trial.id % 7 == 3)
    calls = drive(STRATEGIES[name](TABLE, config), measured, workers)
    archs = {trial.id: trial.arch for kind, trial in calls if kind == "ask" and trial is not None}
    assert set(archs) == set(range(30))
    strategies = [STRATEGIES[name](TABLE, config), recorded(STRATEGIES[name](TABLE, config), archs)]
    for kind, trial in calls:
        for strategy in strategies:
            if kind == "ask":
                assert strategy.ask() == trial
            else:
                strategy.tell(trial)
    if workers == 1:
        half = {i: arch for i, arch in archs.items() if i < 15}
        assert drive(recorded(STRATEGIES[name](TABLE, config), half), measured) == calls


@pytest.mark.parametrize("name", SEVERAL)
def test_where_every_trial_violates_the_constraint_the_search_still_ends(name):
    never = dataclasses.replace(GOALS, limits=(Limit("dear", "<", -1.0),))
    found = told(
        drive(STRATEGIES[name](TABLE, Config(seed=0, trials=30, epochs=3, startup=6)), run(never), 2)
    )
    assert len(found) == 30
    assert not any(trial.feasible for trial in found)


@pytest.mark.parametrize("model", ["bananas", "tpe"])
def test_parego_has_two_models(model):
    config = Config(seed=0, trials=16, startup=6, model=model, epochs=1)
    assert len(told(drive(STRATEGIES["parego"](TABLE, config), run()))) == 16


def point(i, gains, violation=0.0):
    return Point(i, Architecture({"a": i}), gains, violation)


def test_constrained_domination_by_hand():
    """Deb et al. 2002, section VI: feasible by fronts and crowding, then by violation."""
    points = [
        point(0, (9.0, 9.0), 2.0),
        point(1, (1.0, 1.0)),
        point(2, (0.0, 5.0)),
        point(3, (5.0, 0.0)),
        point(4, (2.0, 2.0)),
        point(5, (9.0, 9.0), 0.5),
    ]
    inf = float("inf")
    assert dominance.keys(points) == [(4, 0), (1, -inf), (0, -inf), (0, -inf), (0, -2.0), (2.5, 0)]
    assert [held.id for held in dominance.best(points, 3)] == [2, 3, 4]
    assert [held.id for held in dominance.best(points, 5)] == [1, 2, 3, 4, 5]
    assert [held.id for held in dominance.front(points)] == [2, 3, 4]
    assert [held.id for held in dominance.front([points[0], points[5]])] == [5]


def test_a_place_at_a_rung_by_hand():
    """Fronts first; within one the best by the first objective, then each time the farthest from those."""
    points = [point(k, (float(k), -float(k))) for k in range(5)] + [
        point(5, (0.0, -5.0)),
        point(6, (9.0, 9.0), 0.1),
    ]
    assert [place(held, points) for held in points] == [1, 3, 2, 4, 0, 5, 6]


def test_a_scalarisation_by_hand():
    losses = np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    expected = [0.4 + 0.05 * 0.5, 0.25 + 0.05 * 0.5, 0.5 + 0.05 * 0.5]
    assert scalarised(losses, np.array([0.5, 0.5])) == pytest.approx(expected)
    weights = np.array([drawn_weights(0, i, 3) for i in range(2000)])
    assert weights.sum(axis=1) == pytest.approx(np.ones(2000))
    assert weights.mean(axis=0) == pytest.approx(np.full(3, 1 / 3), abs=0.02)
