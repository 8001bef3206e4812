"""The records of strategies, and what a search will be, from its options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from nas.errors import InputError
from nas.run import methods
from nas.run.methods import SEARCHES, SupernetConfig, foreign_options, options_of
from nas.run.options import SearchOptions
from nas.run.plan import DEFAULT_TRIALS, plan
from nas.space import Categorical, Integer, SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig, StrategyRecord, combined_config
from nas.strategies.base import FullBudget, drawn
from nas.strategies.evolution import EvolutionConfig
from nas.strategies.hyperband import HyperbandConfig
from nas.strategies.successive_halving import HalvingConfig
from search_spaces import SPACES
from tests.conformance.test_strategies import asked, drive, outcome, table_score

SPACE = SearchSpace("toy", {"depth": Integer(1, 4), "width": Categorical((8, 16, 32))})


def planned(strategy: str, config: StrategyConfig | None = None, **options: Any) -> Any:
    options = {"space": "toy", "plan": config or StrategyConfig()} | options
    return plan(SearchOptions(**options), strategy, {"toy": SPACE})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_planned_budget_is_what_the_search_comes_to(name: str) -> None:
    """To the trial; to the epoch for strategies that stop none early or all alike."""
    space = dataclasses.replace(SPACE, name=name)
    for trials in (None, 7):
        config = STRATEGIES[name].own(combined_config(STRATEGIES.values())(trials=trials, epochs=9))
        budget = STRATEGIES[name].planned_budget(config, space)
        if budget is None:
            assert trials is None, "a number of trials is an end"
            continue
        calls = asked(drive(STRATEGIES[name](space, config), outcome(lambda arch: arch["depth"] / 8)))
        assert len({trial.id for trial in calls}) == budget.trials
        epochs = sum(trial.budget - trial.spent for trial in calls)
        assert epochs <= budget.epochs
        assert name in ("asha", "mo_asha") or epochs == budget.epochs


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.some(5)
def test_what_has_no_planned_budget_goes_on_and_what_has_one_ends(name: str) -> None:
    record = STRATEGIES[name]
    config = record.own(StrategyConfig(epochs=3))
    strategy, run = record(SPACE, config), outcome(lambda arch: arch["depth"] / 8)
    for _ in range(200):
        if (trial := strategy.ask()) is None:
            break
        strategy.tell(run(trial))
    assert (strategy.ask() is None) == (record.planned_budget(config, SPACE) is not None)


def test_an_option_of_one_name_has_one_default_and_each_class_has_its_own() -> None:
    defaults: dict[str, Any] = {}
    for record in SEARCHES.values():
        for field in dataclasses.fields(record.config):
            assert defaults.setdefault(field.name, field.default) == field.default
    assert options_of(STRATEGIES["random"]) == ("seed", "trials", "epochs")
    assert {"population", "tournament"} <= foreign_options(["random", "tpe"])
    assert not foreign_options(SEARCHES)


def test_a_config_of_several_strategies_holds_each_ones_and_checks_all() -> None:
    both: Any = combined_config([STRATEGIES["evolution"], STRATEGIES["hyperband"]])
    config = both(seed=3, population=6, eta=4)
    assert STRATEGIES["evolution"].own(config) == EvolutionConfig(seed=3, population=6)
    assert STRATEGIES["hyperband"].own(config) == HyperbandConfig(seed=3, eta=4)
    with pytest.raises(InputError, match="tournament=9 is more than population=6"):
        both(population=6, tournament=9)
    with pytest.raises(InputError, match="eta=1 is less than 2"):
        both(eta=1)


def test_a_strategy_that_no_list_knows_ends_and_is_told_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """One record is all: what its author did not think of is the end that nobody else would give it."""

    def make(space: SearchSpace, config: StrategyConfig) -> Any:
        return FullBudget(space, config, lambda i: drawn(space, config.seed, i))

    monkeypatch.setitem(methods.SEARCHES, "mine", StrategyRecord(make))
    found = planned("mine")
    assert found.config.trials == DEFAULT_TRIALS
    assert len(asked(drive(found.strategy(), outcome(table_score_of_depth)))) == DEFAULT_TRIALS
    assert planned("mine", total_epochs=50).config.trials is None


def table_score_of_depth(arch: Any) -> float:
    return table_score({"width": 8, "skip": False, **arch})


def test_who_has_an_end_goes_round_again_where_the_epochs_of_all_are_given() -> None:
    assert planned("hyperband").config.iterations == 1
    assert planned("hyperband", total_epochs=500).config.iterations is None
    assert planned("hyperband", StrategyConfig(trials=9), total_epochs=500).config.iterations == 1
    endless = planned("successive_halving", HalvingConfig(iterations=None))
    assert endless.config.trials == DEFAULT_TRIALS


def test_a_grid_beyond_reason_is_refused_until_it_is_asked_for() -> None:
    wide = {"wide": SearchSpace("wide", {f"c{i}": Integer(0, 9) for i in range(5)})}
    options = SearchOptions(space="wide")
    with pytest.raises(InputError, match=r"^grid: 100000 architectures; say --trials or --total-epochs"):
        plan(options, "grid", wide)
    plan(dataclasses.replace(options, total_epochs=90), "grid", wide)


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        ("evolution", {"trials": 10}, "evolution draws its first 10 trials at random: with 10 trials it is random"),
        ("evolution", {"trials": 11}, None),
        ("tpe", {"trials": 3}, "tpe draws its first 10 trials at random"),
        ("bananas", {"trials": 3}, "bananas draws its first 10 trials at random"),
        ("bohb", {"trials": 5}, "bohb draws its first 5 trials at random"),
        ("bohb", {"trials": 6}, None),
        ("hyperband", {"epochs": 2}, "hyperband with epochs=2 has no rung to stop at: it is random search"),
        ("asha", {"epochs": 2}, None),
        ("random", {"trials": 1}, None),
    ],
)  # fmt: skip
def test_what_would_be_random_search_is_said(
    strategy: str, options: dict[str, int], says: str | None
) -> None:
    note = planned(strategy, StrategyConfig(**options)).note
    assert note is None if says is None else note is not None and note.startswith(says)


def test_few_epochs_for_all_are_few_trials() -> None:
    assert planned("tpe", total_epochs=90).note is not None  # ten trials of nine epochs
    assert planned("tpe", total_epochs=99).note is None


def test_settings_of_a_supernet_are_its_searches() -> None:
    options = SearchOptions(
        space="nasbench201", plan=SupernetConfig(epochs=4, supernet=("order=first,exact",))
    )
    found = plan(options, "darts", SPACES)
    assert found.planned_epochs == 8
    assert len(asked(drive(found.strategy(), outcome(lambda arch: 0.5)))) == 2
    shared = plan(dataclasses.replace(options, total_epochs=20), "darts", SPACES)
    assert (shared.config.epochs, shared.total_epochs) == (10, None)
    assert math.isinf(STRATEGIES["hyperband"].random_trials(HyperbandConfig(epochs=1), SPACE))
