"""What every strategy must do over a table: find what is planted in it, at the cost that is told, and no other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from nas.objectives.table import TableObjective
from nas.record.comparison import Job, Search
from nas.run import simulated
from nas.space import SearchSpace
from nas.strategies import STRATEGIES, combined_config
from search_spaces import SPACES
from tests.conformance.test_strategies import FINITE
from tests.planted import planted

Config: Any = combined_config(STRATEGIES.values())

NARROWED = [
    SPACES["nasbench201"].restrict(
        narrow=["edge=none,nor_conv_3x3,skip_connect"], fix=["edge_0_1=nor_conv_3x3"]
    ),
    SPACES["natssize"].restrict(narrow=["channels=8,32,64"], fix=["channels_1=8"]),
]
each_strategy = pytest.mark.parametrize("name", STRATEGIES)


def search(name: str, objective: TableObjective, seed: int, budget_seconds: float) -> Search:
    plan = Config(seed=seed, epochs=objective.units, iterations=None)
    strategy = STRATEGIES[name](objective.space, plan)
    return simulated.execute(strategy, objective, Job(seed, name), budget_seconds)


def finds(name: str, space: SearchSpace, seed: int) -> Search:
    """The search that ends at the planted optimum, given up to twenty trainings an architecture."""
    best, table = planted(space, seed)
    objective = TableObjective(space, table)
    trainings = 20.0 * len(objective.architectures)
    budgets = [trainings / 2**k for k in reversed(range(7))]  # a longer search begins as a shorter one
    for budget in budgets:
        found = search(name, objective, seed, max(budget, 10.0) * objective.mean_training_seconds)
        assert found.cost_seconds <= max(budget, 10.0) * objective.mean_training_seconds
        for text in found.archs:
            space.validate(space.from_string(text))
        if found.test_accuracies[-1] == objective.optimum:
            assert space.from_string(found.archs[-1]) == best
            return found
    raise AssertionError(f"{name} did not find {space.to_string(best)}")


@each_strategy
@pytest.mark.parametrize("space", [*FINITE, *NARROWED], ids=lambda space: space.name)
@pytest.mark.some(20)
def test_the_planted_optimum_of_a_table_is_found(name: str, space: SearchSpace) -> None:
    finds(name, space, 1)


@each_strategy
@pytest.mark.parametrize("space", NARROWED, ids=lambda space: space.name)
@pytest.mark.some(12)
def test_the_seed_decides_a_search(name: str, space: SearchSpace) -> None:
    """The same again, the beginning of a longer one, and another from another seed."""
    objective = TableObjective(space, planted(space, 1)[1])
    seconds = 40 * objective.mean_training_seconds
    first = search(name, objective, 5, seconds)
    assert search(name, objective, 5, seconds) == first
    assert search(name, objective, 6, seconds).costs_seconds != first.costs_seconds
    longer = search(name, objective, 5, 1.5 * seconds)
    assert longer.archs[: len(first.archs)] == first.archs
    assert longer.costs_seconds[: len(first.archs)] == first.costs_seconds


@pytest.mark.slow
@each_strategy
@pytest.mark.parametrize("space", ["nasbench201", "natssize"])
def test_the_planted_optimum_of_a_whole_space_is_found(name: str, space: str) -> None:
    finds(name, SPACES[space], 2)


def test_the_best_of_n_over_a_table_is_as_order_statistics_say() -> None:
    """Of n draws from N equally likely, different accuracies: P(at most the k-th lowest) = (k / N)^n."""
    space = FINITE[1]  # 81 architectures, all choices categorical
    _, table = planted(space, 3, epochs=1, noise=1e-3)
    for cost in table.costs.values():
        cost.train_seconds[:] = 1.0
        cost.evaluate_seconds[:] = 0.0
    objective = TableObjective(space, table)
    # Validation orders the architectures of a repetition; the trial's seed picks one of the two at random.
    accuracies = np.sort(np.concatenate([table.at(objective.valid)[:, k] for k in range(2)]))
    assert len(set(accuracies.tolist())) == len(accuracies) == 162
    n, seeds = 10, 600
    found = np.array(
        [search("random", objective, seed, n + 0.5).valid_accuracies[-1] for seed in range(seeds)]
    )
    ranks = np.searchsorted(accuracies, found - 1e-6) + 1
    upto = (np.arange(163) / 162) ** n
    bins = np.searchsorted(upto, np.linspace(0, 1, 13)[1:-1])
    expected = np.diff(np.concatenate([[0.0], upto[bins], [1.0]])) * seeds
    seen = np.bincount(np.searchsorted(bins, ranks), minlength=12)
    assert scipy.stats.chisquare(seen, expected).pvalue > 0.01
    mean = float(np.diff(upto) @ accuracies)
    assert found.mean() == pytest.approx(mean, abs=3 * float(found.std()) / math.sqrt(seeds))
