"""Hyperband's brackets against Li et al. (JMLR 18, 2018)."""

import itertools
from typing import Any

import pytest

from nas.errors import InputError
from nas.strategies import STRATEGIES, combined_config
from nas.strategies.hyperband import brackets, plan

Config: Any = combined_config(STRATEGIES.values())

# Table 1 of the paper, R=81 and eta=3: (trials, budget) by rung, for s = 4, 3, 2, 1, 0.
PAPER_TABLE = [
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(27, 3), (9, 9), (3, 27), (1, 81)],
    [(9, 9), (3, 27), (1, 81)],
    [(6, 27), (2, 81)],
    [(5, 81)],
]
# Algorithm 1 of the same paper rounds the first rung up instead.
PAPER_PSEUDOCODE = [
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(34, 3), (11, 9), (3, 27), (1, 81)],
    [(15, 9), (5, 27), (1, 81)],
    [(8, 27), (2, 81)],
    [(5, 81)],
]
# The CIFAR-10 experiments' setting, R=300 and eta=4; budgets 300/256, 300/64, ... in whole units.
CUDA_CONVNET = [
    [(256, 1), (64, 4), (16, 18), (4, 75), (1, 300)],
    [(80, 4), (20, 18), (5, 75), (1, 300)],
    [(27, 18), (6, 75), (1, 300)],
    [(10, 75), (2, 300)],
    [(5, 300)],
]


def rungs(some_brackets):
    return [[tuple(rung) for rung in bracket.rungs] for bracket in some_brackets]


def test_brackets_of_the_papers_table():
    assert rungs(brackets(81, 3, "floor")) == PAPER_TABLE


def test_brackets_of_the_papers_pseudocode():
    assert rungs(brackets(81, 3, "ceil")) == PAPER_PSEUDOCODE
    assert rungs(brackets(81, 3)) == PAPER_PSEUDOCODE
    assert [bracket.s for bracket in brackets(81, 3)] == [4, 3, 2, 1, 0]


def test_brackets_of_the_papers_cifar10_experiments():
    assert rungs(brackets(300, 4)) == CUDA_CONVNET


@pytest.mark.parametrize(
    ("max_budget", "eta", "s_max"), [(243, 3, 5), (1000, 10, 3), (999, 10, 2), (1, 3, 0), (2, 3, 0)]
)
def test_the_number_of_brackets_is_exact_where_logarithms_round(max_budget, eta, s_max):
    """log(243)/log(3) and log(1000)/log(10) come out below 5 and 3 in floating point."""
    assert [bracket.s for bracket in brackets(max_budget, eta)] == list(range(s_max, -1, -1))


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@pytest.mark.parametrize("max_budget", [1, 2, 3, 9, 10, 26, 27, 50, 81, 100])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_every_bracket_narrows_and_reaches_the_whole_budget(max_budget, eta, rounding):
    for bracket in brackets(max_budget, eta, rounding):
        trials, budgets = zip(*bracket.rungs, strict=True)
        assert len(trials) == bracket.s + 1
        assert trials[-1] >= 1
        assert list(trials) == [trials[0] // eta**k for k in range(len(trials))]
        assert budgets[0] >= 1
        assert budgets[-1] == max_budget
        assert all(a < b for a, b in itertools.pairwise(budgets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "hyperband: max_budget=0 is less than 1"),
        ((81, 1), "hyperband: eta=1 is less than 2"),
        ((81, 3, "round"), "hyperband: rounding: 'round' is not one of ceil, floor"),
    ],
)
def test_impossible_brackets_are_refused(arguments, message):
    with pytest.raises(InputError) as refused:
        brackets(*arguments)
    assert str(refused.value) == message


def test_a_plan_passes_over_the_brackets_as_often_as_told():
    config = Config(epochs=81)
    assert rungs(plan(config)) == PAPER_PSEUDOCODE
    twice = Config(epochs=81, iterations=2)
    assert rungs(plan(twice)) == PAPER_PSEUDOCODE * 2
    endless = plan(Config(epochs=81, iterations=None))
    assert rungs(next(endless) for _ in range(13)) == (PAPER_PSEUDOCODE * 3)[:13]


def test_a_plan_of_so_many_trials_cuts_its_last_bracket():
    config = Config(epochs=81, trials=100)
    assert rungs(plan(config)) == [PAPER_PSEUDOCODE[0], [(19, 3), (6, 9), (2, 27), (1, 81)]]
    beyond_one_pass = Config(epochs=9, trials=24)
    started = [bracket.rungs[0].trials for bracket in plan(beyond_one_pass)]
    assert started == [9, 5, 3, 7]
