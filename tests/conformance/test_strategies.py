"""What every strategy must do, whatever it searches and however many workers it has."""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.check import strategies as checks
from nas.check.strategies import asked, drive, outcome, some_fail
from nas.space import Categorical, Constraint, Integer, LogUniform, SearchSpace, Uniform, When
from nas.strategies import STRATEGIES, combined_config, filtered, recorded
from search_spaces import SPACES

Config: Any = combined_config(STRATEGIES.values())

TABLE = SearchSpace(
    name="table",
    choices={
        "depth": Integer(1, 4),
        "width": Categorical((8, 16, 32)),
        "skip": Categorical((False, True)),
        "span": Integer(1, 3),
    },
    conditions={"span": When("skip", values=(True,))},
)  # 48 architectures

TRICKY = SearchSpace(
    name="tricky",
    choices={
        "depth": Integer(1, 3),
        "width_2": Categorical((8, 16)),
        "width_3": Categorical((8, 16)),
        "kind": Categorical(("sgd", "adam", None)),
        "momentum": Uniform(0.0, 0.99, changes_program=False),
        "rate": LogUniform(1e-4, 1e-1, changes_program=False),
        "only": Integer(7, 7),
    },
    conditions={
        "width_2": When("depth", at_least=2),
        "width_3": (When("depth", at_least=3), When("width_2", values=(16,))),
        "momentum": When("kind", values=("sgd",)),
    },
    constraints=(Constraint("deep networks want a low rate", lambda a: a["depth"] < 3 or a["rate"] < 1e-2),),
)

FINITE = [
    TABLE,
    SearchSpace("cell", {f"edge_{k}": Categorical(("none", "skip", "conv")) for k in range(4)}),
    SearchSpace("ordered", {"depth": Integer(1, 12), "width": Categorical((8, 16, 32, 64, 128))}),
    SearchSpace(
        "constrained",
        {"a": Integer(0, 4), "b": Integer(0, 4), "c": Categorical(("x", "y")), "d": Integer(2, 3)},
        conditions={"d": (When("a", at_least=2), When("c", values=("y",)))},
        constraints=(Constraint("the sum of a and b is not 4", lambda a: a["a"] + a["b"] != 4),),
    ),
    SearchSpace("one", {"only": Categorical(("this",))}),
]

TRIALS = 30
CONFIG = Config(seed=1, trials=TRIALS, epochs=9, population=6, startup=8)


def table_score(arch):
    """One best architecture in 48, nothing that deceives."""
    peak = {"depth": 3, "width": 32, "skip": True, "span": 2}
    return 0.1 + sum(0.2 * (arch.get(name) == value) for name, value in peak.items()) - 0.01 * arch["depth"]


def any_score(arch):
    """Numbers that any architecture has, without equal ones where a choice is continuous."""
    numbers = [value for value in arch.values() if isinstance(value, float)]
    return round(0.5 + 0.1 * math.sin(sum(numbers) * 1000), 6)


def told(calls):
    return [trial for kind, trial in calls if kind == "tell"]


def making(name, space):
    """A fresh strategy of a config, as the checks that users' strategies are held to take it."""
    return functools.partial(STRATEGIES[name], space)


# Of these the models are those of tpe and bananas.
SLOW = ("mo_tpe", "parego")
each_strategy = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STRATEGIES]
)
each_space = pytest.mark.parametrize("space", [TABLE, TRICKY], ids=lambda space: space.name)


@each_strategy
@each_space
@pytest.mark.parametrize("workers", [1, 4])
def test_every_trial_is_well_formed(name, space, workers):
    checks.trials_are_well_formed(making(name, space), space, CONFIG, workers)
    assert {trial.id for trial in asked(drive(STRATEGIES[name](space, CONFIG), outcome(any_score)))} == set(
        range(TRIALS)
    )


@each_strategy
@each_space
def test_a_promoted_trial_is_itself_with_more_budget(name, space):
    checks.promoted_trials_are_themselves(making(name, space), space, CONFIG)


@each_strategy
def test_the_whole_budget_is_reached_and_not_passed(name):
    calls = drive(STRATEGIES[name](TABLE, CONFIG), outcome(table_score))
    assert max(trial.spent for trial in told(calls)) == CONFIG.epochs
    reached = [trial for trial in told(calls) if trial.spent == CONFIG.epochs]
    assert len({trial.id for trial in reached}) == len(reached)


@each_strategy
@each_space
def test_the_seed_decides_everything(name, space):
    def run(seed):
        return drive(
            STRATEGIES[name](space, dataclasses.replace(CONFIG, seed=seed)),
            outcome(any_score, some_fail),
            workers=3,
        )

    first = run(1)
    assert run(1) == first
    assert [trial.arch for trial in asked(run(2))] != [trial.arch for trial in asked(first)]


@each_strategy
@each_space
@pytest.mark.parametrize("workers", [1, 4])
def test_replaying_the_calls_gives_the_same_answers(name, space, workers):
    """At every point of the search, so that it can be picked up there."""
    checks.calls_are_replayed(making(name, space), space, CONFIG, workers)


@each_strategy
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("trials", [TRIALS, 60])
def test_the_end_is_the_end(name, workers, trials):
    """None with nothing outstanding, and None ever after; nothing is left paused."""
    strategy = STRATEGIES[name](TABLE, dataclasses.replace(CONFIG, trials=trials))
    drive(strategy, outcome(table_score, some_fail), workers)
    assert strategy.paused == frozenset()
    assert [strategy.ask() for _ in range(3)] == [None] * 3


@each_strategy
def test_a_failed_trial_never_comes_back(name):
    checks.failures_are_over(making(name, TABLE), TABLE, CONFIG)


@each_strategy
def test_a_search_in_which_everything_fails_ends(name):
    calls = drive(STRATEGIES[name](TABLE, CONFIG), outcome(table_score, lambda trial: True), workers=3)
    assert [trial.id for trial in asked(calls)] == list(range(TRIALS))


@each_strategy
@pytest.mark.parametrize("workers", [1, 3])
def test_paused_are_exactly_those_that_come_back_or_wait_for_a_decision(name, workers):
    """A told trial outside ``paused`` is over: it is not asked for again. Outstanding ones are not in it."""
    strategy = STRATEGIES[name](TABLE, CONFIG)
    rng = np.random.default_rng(0)
    outstanding, over = {}, set()
    known = set()
    while True:
        while len(outstanding) < workers and (trial := strategy.ask()) is not None:
            assert trial.id not in over
            outstanding[trial.id] = trial
            known.add(trial.id)
        if not outstanding:
            break
        i = sorted(outstanding)[rng.integers(len(outstanding))]
        strategy.tell(outcome(table_score, some_fail)(outstanding.pop(i)))
        assert strategy.paused <= known - set(outstanding)
        over |= known - set(outstanding) - strategy.paused
    assert over == known


@each_strategy
def test_the_planted_optimum_is_found(name):
    """Trained to the whole budget, and with the best measurement of the run."""
    best = max(TABLE.enumerate(), key=table_score)
    config = dataclasses.replace(CONFIG, trials=150, population=10)
    calls = drive(STRATEGIES[name](TABLE, config), outcome(table_score, lambda trial: trial.id % 10 == 3), 2)
    winner = max(told(calls), key=lambda trial: trial.score)
    assert winner.arch == best
    assert winner.spent == config.epochs


def planted(space, seed):
    """An architecture, and a score that falls with the distance from it."""
    every = list(space.enumerate())
    best = every[np.random.default_rng(seed).integers(len(every))]

    def score(arch):
        return 0.9 - 0.8 * float(np.abs(space.encode(arch) - space.encode(best)).mean())

    return best, score


@each_strategy
@pytest.mark.parametrize("space", FINITE, ids=lambda space: space.name)
@pytest.mark.some(11)
def test_an_optimum_planted_anywhere_is_found(name, space):
    """With twenty trials an architecture, some of which fail, on three workers."""
    for seed in (1, 2):
        best, score = planted(space, seed)
        config = Config(seed=seed, trials=20 * int(space.count()), epochs=9)
        run = outcome(score, lambda trial, best=best: trial.id % 9 == 5 and trial.arch != best)
        strategy, running = STRATEGIES[name](space, config), []
        while True:
            while len(running) < 3 and (trial := strategy.ask()) is not None:
                space.validate(trial.arch)
                running.append(trial)
            assert running, "the search ended without it"
            trial = run(running.pop(0))
            if trial.arch == best and trial.spent == config.epochs:
                break
            strategy.tell(trial)


def test_the_best_of_n_random_draws_is_distributed_as_order_statistics_say():
    """P(best of n <= x) = P(one draw <= x)^n, where a draw's chances follow from the space."""

    def chance(arch):
        return math.prod(Fraction(1, len(TABLE.choices[name].options())) for name in arch)

    every = list(TABLE.enumerate())
    assert sum(map(chance, every)) == 1
    n, seeds = 8, 1000
    found = []
    for seed in range(seeds):
        strategy = STRATEGIES["random"](TABLE, Config(seed=seed, trials=n))
        found.append(max(table_score(trial.arch) for trial in iter(strategy.ask, None)))
    levels = sorted({table_score(arch) for arch in every})
    upto = [float(sum(chance(a) for a in every if table_score(a) <= x)) ** n for x in levels]
    expected = np.diff([0.0, *upto]) * seeds
    seen = np.array([found.count(x) for x in levels])
    assert seen.sum() == seeds
    common = expected >= 5
    seen = np.append(seen[common], seen[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert len(expected) >= 8
    assert scipy.stats.chisquare(seen, expected).pvalue > 0.01
    mean = np.diff([0.0, *upto]) @ levels
    assert np.mean(found) == pytest.approx(mean, abs=3 * float(np.std(found)) / math.sqrt(seeds))


@pytest.mark.parametrize("name", ["successive_halving", "hyperband"])
def test_who_is_promoted_does_not_depend_on_timing(name):
    def budgets(workers, order):
        calls = drive(STRATEGIES[name](TABLE, CONFIG), outcome(table_score, some_fail), workers, order)
        return sorted((trial.id, trial.budget, trial.bracket, trial.rung) for trial in asked(calls))

    alone = budgets(1, 0)
    assert all(budgets(workers, order) == alone for workers in (2, 5, 40) for order in (1, 2))


@each_strategy
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    order=st.integers(0, 1000),
    workers=st.integers(1, 6),
    trials=st.integers(1, 25),
    epochs=st.integers(1, 12),
    eta=st.integers(2, 4),
)
def test_any_setting_ends_with_the_stated_number_of_trials(name, seed, order, workers, trials, epochs, eta):
    config = Config(seed=seed, trials=trials, epochs=epochs, eta=eta, startup=5, population=4)
    calls = drive(STRATEGIES[name](TRICKY, config), outcome(any_score, some_fail), workers, order)
    assert {trial.id for trial in asked(calls)} == set(range(trials))
    for trial in asked(calls):
        TRICKY.validate(trial.arch)


@each_strategy
def test_unbounded_strategies_go_on_and_planned_ones_end(name):
    strategy = STRATEGIES[name](TABLE, Config(epochs=3))
    ids, run = set(), outcome(table_score)
    for _ in range(100):
        if (trial := strategy.ask()) is None:
            break
        ids.add(trial.id)
        strategy.tell(run(trial))
    planned = {"grid": 48, "successive_halving": 3, "hyperband": 3 + 2, "bohb": 3 + 2}
    assert name not in planned or len(ids) == planned[name]
    assert name in planned or strategy.ask() is not None


@pytest.mark.parametrize("name", ["successive_halving", "hyperband", "bohb"])
def test_iterations_none_is_without_end(name):
    strategy = STRATEGIES[name](TABLE, Config(epochs=3, iterations=None))
    brackets = set()
    for _ in range(100):
        trial = strategy.ask()
        assert trial is not None
        brackets.add(trial.bracket)
        strategy.tell(outcome(table_score)(trial))
    assert len(brackets) > 10


@each_strategy
@pytest.mark.parametrize("workers", [1, 4])
def test_a_resumed_run_has_the_recorded_architectures(name, workers):
    """However the workers finish this time, trial i is what the record says, and is valid beyond it."""
    run = outcome(any_score, some_fail)
    calls = drive(STRATEGIES[name](TRICKY, CONFIG), run, workers, order=1)
    archs = {trial.id: trial.arch for trial in asked(calls)}
    half = {i: arch for i, arch in archs.items() if i < 15}
    again = asked(drive(recorded(STRATEGIES[name](TRICKY, CONFIG), half), run, workers, order=2))
    assert {trial.id: trial.arch for trial in again if trial.id < 15} == half
    assert {trial.id for trial in again} == set(archs)
    for trial in again:
        TRICKY.validate(trial.arch)


@each_strategy
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_registered_spaces_are_searched_validly(name, space):
    config = dataclasses.replace(CONFIG, trials=14)
    for trial in asked(drive(STRATEGIES[name](space, config), outcome(any_score), workers=2)):
        space.validate(trial.arch)


@each_strategy
@each_space
def test_the_first_candidate_is_what_is_asked_for_and_looking_changes_nothing(name, space):
    checks.candidates_come_first(making(name, space), space, dataclasses.replace(CONFIG, trials=24))


@each_strategy
@each_space
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.some(8)
def test_a_filtered_strategy_is_a_strategy(name, space, workers):
    """Valid, to the stated number of trials, the same when replayed and when picked up from a record."""

    def make():
        return filtered(STRATEGIES[name](space, CONFIG), any_score, 3)

    run = outcome(any_score, some_fail)
    calls = drive(make(), run, workers)
    assert {trial.id for trial in asked(calls)} == set(range(TRIALS))
    for trial in asked(calls):
        space.validate(trial.arch)
    replayed, resumed = make(), recorded(make(), {trial.id: trial.arch for trial in asked(calls)})
    for kind, trial in calls:
        for strategy in (replayed, resumed):
            if kind == "ask":
                assert strategy.ask() == trial
            else:
                strategy.tell(trial)


@each_strategy
@each_space
@pytest.mark.parametrize("made", [7, 16, 23])
def test_a_record_picked_up_at_any_point_goes_on_as_if_never_left(name, space, made):
    """One worker: the trials recorded are given, the others come out as they would have."""
    run = outcome(any_score, some_fail)
    calls = drive(STRATEGIES[name](space, CONFIG), run)
    archs = {trial.id: trial.arch for trial in asked(calls) if trial.id < made}
    assert drive(recorded(STRATEGIES[name](space, CONFIG), archs), run) == calls
