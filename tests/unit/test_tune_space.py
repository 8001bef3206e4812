"""A search space as Ray Tune's parameter space, sampled by Tune's own searcher and changed as its schedulers do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.search import BasicVariantGenerator

from nas.errors import InputError
from nas.run.tune.space import from_tune, to_tune
from nas.space import (
    Architecture,
    Categorical,
    Constraint,
    Integer,
    LogUniform,
    Range,
    SearchSpace,
    Uniform,
    When,
)
from search_spaces import SPACES

SPACE = SearchSpace(
    "toy",
    {
        "depth": Integer(1, 3),
        "width_1": Categorical((16, 32)),
        "width_2": Categorical((16, 32)),
        "width_3": Categorical((16, 32)),
        "bias": Categorical((True, False, None)),
        "head": Categorical(("none", "dense")),
        "head_width": Integer(4, 9),
        "learning_rate": LogUniform(1e-4, 1.0, changes_program=False),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
    },
    {
        "width_2": When("depth", at_least=2),
        "width_3": When("depth", at_least=3),
        "head_width": When("head", ("dense",)),
    },
)
CONFIG: dict[str, Any] = {
    "depth": 2,
    "width_1": 16,
    "width_2": 32,
    "width_3": 16,
    "bias": None,
    "head": "none",
    "head_width": 5,
    "learning_rate": 0.01,
    "dropout": 0.25,
}


def configs(space: SearchSpace, samples: int) -> list[dict[str, Any]]:
    """What Tune's random search draws for ``tune.Tuner(…, param_space=to_tune(space))``."""
    searcher = BasicVariantGenerator(random_state=np.random.RandomState(0))
    experiment = tune.Experiment("toy", run=lambda config: None, config=to_tune(space), num_samples=samples)
    searcher.add_configurations([experiment])
    drawn = []
    while (trial := searcher.next_trial()) is not None:
        drawn.append(trial.config)
    return drawn


def test_what_tune_draws_are_points_of_the_space() -> None:
    drawn = configs(SPACE, 200)
    assert all(set(config) == set(SPACE.choices) for config in drawn)
    archs = [from_tune(SPACE, config) for config in drawn]
    for arch in archs:
        SPACE.validate(arch)
    assert {arch["depth"] for arch in archs} == {1, 2, 3}
    assert {arch["bias"] for arch in archs} == {True, False, None}
    assert {arch["head_width"] for arch in archs if "head_width" in arch} == set(range(4, 10))
    assert all(("width_3" in arch) == (arch["depth"] == 3) for arch in archs)
    rates = np.log10([arch["learning_rate"] for arch in archs])
    assert np.mean(rates) == pytest.approx(-2, abs=0.3)  # even in the logarithm
    assert -4 <= rates.min() < -3.5
    assert np.mean([arch["dropout"] for arch in archs]) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("name", ["chain", "nasbench201", "resnet"])
def test_the_families_can_be_drawn_by_tune(name: str) -> None:
    space = SPACES[name].searched()
    for config in configs(space, 5):
        space.validate(from_tune(space, config))


def test_choices_that_do_not_exist_are_dropped_and_other_keys_ignored() -> None:
    assert from_tune(SPACE, {**CONFIG, "data_dir": "/data", "workers": [1, 2]}) == Architecture(
        depth=2, width_1=16, width_2=32, bias=None, head="none", learning_rate=0.01, dropout=0.25
    )
    without = {name: value for name, value in CONFIG.items() if name not in ("width_3", "head_width")}
    assert from_tune(SPACE, without) == from_tune(SPACE, CONFIG)


def test_narrowed_choices_are_drawn_from_what_is_left() -> None:
    space = SPACE.narrow("depth", Range(1, 2)).fix("head", "none").narrow("learning_rate", Range(0.1, 0.2))
    assert set(to_tune(space)) == set(SPACE.choices) - {"width_3", "head_width"}
    assert {config["depth"] for config in configs(space, 30)} == {1, 2}
    assert all(0.1 <= config["learning_rate"] <= 0.2 for config in configs(space, 30))


@pytest.mark.parametrize(
    ("perturbed", "taken"),
    [
        ({"learning_rate": 1.2}, {"learning_rate": 1.0}),
        ({"learning_rate": 8e-5}, {"learning_rate": 1e-4}),
        ({"dropout": np.float64(0.6)}, {"dropout": 0.5}),
        ({"depth": 4}, {"depth": 3}),
        ({"depth": 1.6}, {"depth": 2}),
        ({"width_1": 19.2}, {"width_1": 16}),
    ],
)
def test_numbers_changed_by_a_scheduler_stay_in_their_range(
    perturbed: dict[str, Any], taken: dict[str, Any]
) -> None:
    arch = from_tune(SPACE, {**CONFIG, **perturbed})
    SPACE.validate(arch)
    assert {name: arch[name] for name in taken} == taken
    assert [type(arch[name]) for name in taken] == [type(value) for value in taken.values()]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "toy: depth is missing from Tune's config; it is one of 1..3"),
        ({**CONFIG, "bias": "yes"}, "toy: bias=yes is not one of True, False, None"),
        ({**CONFIG, "dropout": float("nan")}, "architecture: dropout=nan is not finite"),
    ],
)
def test_bad_configs_are_one_line(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_tune(SPACE, config)
    assert str(caught.value) == said


def test_a_config_that_breaks_a_constraint_is_one_line() -> None:
    odd = Constraint("odd", lambda arch: arch["a"] % 2 == 1, ["a"])
    space = SearchSpace("s", {"a": Integer(0, 3)}, constraints=[odd])
    assert from_tune(space, {"a": 3}) == Architecture(a=3)
    with pytest.raises(InputError, match="s: a=2 breaks the constraint: odd"):
        from_tune(space, {"a": 2})
