"""Local search, REINFORCE, BANANAS, BOHB and the training-free filter against independent calculations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.space import (
    Architecture,
    Categorical,
    Choice,
    Integer,
    LogUniform,
    SearchSpace,
    Uniform,
    When,
    path_encoding,
)
from nas.strategies import STRATEGIES, Strategy, combined_config, filtered, recorded, sample_architecture
from nas.strategies import bananas as bananas_module
from nas.strategies import bohb as bohb_module
from nas.strategies import reinforce as reinforce_module
from nas.strategies.asha import cutoff
from nas.strategies.bananas import bananas, fit, normal_scores
from nas.strategies.base import generator
from nas.strategies.bohb import bohb
from nas.strategies.local_search import local_search
from nas.strategies.reinforce import reinforce
from nas.trial import Measurement, Trial

Config: Any = combined_config(STRATEGIES.values())

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELL = SearchSpace("cell", {f"op_{k}": Categorical(OPERATIONS) for k in range(6)})
MIXED = SearchSpace(
    "mixed",
    {
        "pool": Categorical(("none", "max", "mean")),
        "size": Integer(2, 6),
        "rate": LogUniform(1e-4, 1e-1),
        "drop": Uniform(0.0, 0.9),
    },
    {"size": When("pool", values=("max", "mean"))},
)


def ask(strategy: Strategy, arch: Architecture | None = None) -> Trial:
    trial = strategy.ask(arch)
    assert trial is not None
    return trial


def run(trial: Trial, accuracy: float) -> Trial:
    for epoch in range(trial.spent + 1, trial.budget + 1):
        trial = trial.add(Measurement(epoch, accuracy, 0.0, 0.0, 0.0))
    return trial.replace(status="completed")


def failed(trial: Trial) -> Trial:
    return trial.replace(status="failed", error="loss is nan")


def drive(
    strategy: Strategy, score: Callable[[Architecture], float], n: int, workers: int = 1
) -> list[Trial]:
    """The first ``n`` trials told, oldest first, ``workers`` at a time."""
    running: list[Trial] = []
    told: list[Trial] = []
    while len(told) < n:
        while len(running) < workers and (trial := strategy.ask()) is not None:
            running.append(trial)
        if not running:
            break
        told.append(run(running[0], score(running.pop(0).arch)))
        strategy.tell(told[-1])
    return told


def convolutions(arch: Architecture) -> float:
    """Best where every operation is a 3x3 convolution; no local optimum but that."""
    return 0.3 + 0.1 * sum(OPERATIONS.index(value) == 3 for value in arch.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"climb": "up"}, "strategy: climb: 'up' is not one of first, best"),
        ({"policy_rate": 0.0}, "strategy: policy_rate=0.0 is not above 0"),
        ({"policy_rate": math.nan}, "strategy: policy_rate=nan is not above 0"),
        ({"baseline_decay": 1.0}, "strategy: baseline_decay=1.0 is not from 0 to below 1"),
        ({"random_fraction": 1.5}, "strategy: random_fraction=1.5 is not from 0 to 1"),
        ({"ensemble": 0}, "strategy: ensemble=0 is less than 1"),
        ({"candidates": 0}, "strategy: candidates=0 is less than 1"),
        ({"refit": 0}, "strategy: refit=0 is less than 1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(InputError) as refused:
        Config(**changes)
    assert str(refused.value) == message


@given(st.lists(st.integers(0, 20).map(lambda k: k / 20) | st.floats(0, 1), min_size=1), st.integers(2, 5))
def test_ashas_cutoff_is_numpys_percentile_to_the_last_bit(scores, eta):
    assert cutoff(sorted(scores), eta) == np.nanpercentile(scores, (1 - 1 / eta) * 100)


# ---------------------------------------------------------------- local search


def climb_of(
    trials: list[Trial], space: SearchSpace, score: Callable[[Architecture], float]
) -> list[list[Trial]]:
    """The trials of each climb of a serial run that takes the first better neighbour."""
    climbs: list[list[Trial]] = []
    here = None
    for trial in trials:
        if here is None or trial.arch not in space.neighbours(here):
            climbs.append([])
            here = trial.arch
        elif score(trial.arch) > score(here):
            here = trial.arch
        climbs[-1].append(trial)
    return climbs


def test_a_climb_goes_to_the_first_better_neighbour_and_ends_where_there_is_none():
    told = drive(local_search(CELL, Config(seed=3)), convolutions, 200)
    assert len({trial.arch for trial in told}) == 200
    first, second, *_ = climb_of(told, CELL, convolutions)
    for start in (first[0], second[0]):
        assert start.arch == CELL.sample(generator(3, start.id, 1))
    # Every neighbour of the optimum was seen before the next start.
    summit = max(first, key=lambda trial: convolutions(trial.arch))
    assert set(summit.arch.values()) == {"nor_conv_3x3"}
    assert set(CELL.neighbours(summit.arch)) <= {trial.arch for trial in first}


def test_with_best_the_whole_neighbourhood_is_seen_before_a_step():
    told = drive(local_search(CELL, Config(climb="best")), convolutions, 25)
    assert {trial.arch for trial in told[1:]} == set(CELL.neighbours(told[0].arch))
    best = max(told, key=lambda trial: (convolutions(trial.arch), -trial.id))
    strategy = local_search(CELL, Config(climb="best"))
    following = drive(strategy, convolutions, 30)[25:]
    improved = [t.arch for t in told if convolutions(t.arch) == convolutions(best.arch)]
    assert any(all(t.arch in CELL.neighbours(arch) for t in following) for arch in improved)


@pytest.mark.parametrize("climb", ["first", "best"])
def test_where_a_climb_goes_does_not_depend_on_the_number_of_workers(climb):
    config = Config(seed=5, climb=climb)
    serial = drive(local_search(CELL, config), convolutions, 60)
    parallel = drive(local_search(CELL, config), convolutions, 400, workers=7)
    steps = [trial.arch for trial in serial]
    assert set(steps) <= {trial.arch for trial in parallel}


def test_a_failed_start_ends_its_climb_and_failed_neighbours_are_passed_by():
    strategy = local_search(CELL, Config())
    start = ask(strategy)
    strategy.tell(failed(start))
    again = ask(strategy)
    assert again.arch not in CELL.neighbours(start.arch)
    strategy.tell(run(again, 0.5))
    neighbour = ask(strategy)
    assert neighbour.arch in CELL.neighbours(again.arch)
    strategy.tell(failed(run(neighbour, 0.9)))
    assert ask(strategy).arch in CELL.neighbours(again.arch)


def test_what_another_climb_has_tried_is_not_tried_again():
    small = SearchSpace("small", {"a": Integer(0, 5), "b": Integer(0, 5)})
    told = drive(local_search(small, Config()), lambda arch: -((arch["a"] - 2) ** 2), 36)
    assert len({trial.arch for trial in told}) >= 35
    assert len(drive(local_search(small, Config()), lambda arch: 0.5, 80)) == 80  # then again


# ---------------------------------------------------------------- REINFORCE


@pytest.mark.slow
def test_the_policy_learns_as_adam_on_the_log_probability_by_jax():
    """Trials with and without the conditional choice and a failure: the same logits."""
    config = Config(seed=1, policy_rate=0.07, baseline_decay=0.8)
    policy = reinforce_module._Policy(MIXED, config)
    sizes = {"pool": 3, "size": 5, "rate": 10, "drop": 10}

    def bins(arch):
        place = {"pool": ("none", "max", "mean").index(arch["pool"])}
        if "size" in arch:
            place["size"] = arch["size"] - 2
        place["rate"] = min(int(math.log(arch["rate"] / 1e-4) / math.log(1e3) * 10), 9)
        place["drop"] = min(int(arch["drop"] / 0.9 * 10), 9)
        return place

    def loss(logits, place, advantage):
        return -advantage * sum(jax.nn.log_softmax(logits[name])[k] for name, k in place.items())

    with jax.enable_x64(True):
        logits = {name: jnp.zeros(size, jnp.float64) for name, size in sizes.items()}
        optimiser = optax.adam(0.07)
        state = optimiser.init(logits)
        above = below = 0.0
        rewards = [0.5, 0.7, None, 0.2, 0.9, 0.4, 0.8]
        for i, reward in enumerate(rewards):
            arch = MIXED.sample((9, i))
            trial = Trial(i, arch, 1, 0)
            policy.observe(failed(trial) if reward is None else run(trial, reward))
            reward = 0.5 if reward is None else reward  # the worst before it
            above, below = 0.8 * above + 0.2 * reward, 0.8 * below + 0.2
            gradient = jax.grad(loss)(logits, bins(arch), reward - above / below)
            updates, state = optimiser.update(gradient, state)
            logits = jax.tree.map(jnp.add, logits, updates)
        expected = np.concatenate([np.asarray(logits[name]) for name in sizes])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(policy._logits, expected, atol=1e-7)


def test_the_order_of_telling_does_not_change_the_policy():
    told = [run(Trial(i, MIXED.sample((4, i)), 1, 0), i % 5 / 5) for i in range(12)]
    policies = []
    for order in (range(12), [5, 3, 0, 11, 1, 2, 4, 10, 9, 8, 7, 6]):
        policies.append(reinforce_module._Policy(MIXED, Config()))
        for i in order:
            policies[-1].observe(told[i])
    np.testing.assert_array_equal(policies[0]._logits, policies[1]._logits)


@given(
    st.sampled_from(
        [
            Categorical(("a", 1, None)),
            Integer(3, 3),
            Integer(0, 6),
            Integer(-5, 40),
            Uniform(-1, 2),
            LogUniform(1, 9),
        ]
    ),
    st.integers(0, 10**6),
)
def test_a_value_drawn_from_a_bin_lies_in_it(choice: Choice, seed: int):
    part = reinforce_module._Part("x", choice, reinforce_module._bins(choice), slice(0, 1))
    rng = np.random.default_rng(seed)
    for k in range(part.bins):
        value = reinforce_module._value(part, k, rng)
        assert choice.accepts(value)
        assert reinforce_module._bin(part, value) == k or isinstance(choice, Uniform | LogUniform)


def test_reinforce_comes_to_draw_what_was_rewarded():
    told = drive(reinforce(CELL, Config()), convolutions, 150)
    early, late = (np.mean([convolutions(t.arch) for t in part]) for part in (told[:30], told[-30:]))
    assert early < 0.5 < 0.75 < late


# ---------------------------------------------------------------- BANANAS


def test_networks_are_trained_as_by_jax_and_optax():
    rng = np.random.default_rng(0)
    inputs, targets, new = rng.random((30, 7)), rng.standard_normal(30), rng.random((5, 7))
    predicted = fit(inputs, targets, 3, np.random.default_rng(1))(new)

    draws, sizes = np.random.default_rng(1), (7, 20, 20, 1)
    weights = [
        jnp.asarray(draws.standard_normal((3, a, b), np.float32) * math.sqrt(2 / a))
        for a, b in itertools.pairwise(sizes)
    ]
    parameters = [(w, jnp.zeros((3, 1, w.shape[-1]))) for w in weights]

    def forward(parameters, x):
        for w, b in parameters[:-1]:
            x = jax.nn.relu(x @ w + b)
        return (x @ parameters[-1][0] + parameters[-1][1])[..., 0]

    def loss(parameters):
        return ((forward(parameters, inputs.astype(np.float32)) - targets) ** 2).mean(axis=1).sum()

    optimiser = optax.adam(bananas_module.RATE)

    @jax.jit
    def train(parameters):
        def step(carry, _):
            parameters, state = carry
            updates, state = optimiser.update(jax.grad(loss)(parameters), state)
            return (optax.apply_updates(parameters, updates), state), None

        return jax.lax.scan(step, (parameters, optimiser.init(parameters)), length=bananas_module.STEPS)[0][0]

    expected = forward(train(parameters), new.astype(np.float32))
    assert predicted.shape == (3, 5)
    np.testing.assert_allclose(predicted, expected, atol=2e-3)


def test_normal_scores_are_those_of_scipys_ranks():
    values = np.array([3.0, 1.0, 2.0, 2.0, -math.inf, 9.0])
    ranks = scipy.stats.rankdata(values)
    np.testing.assert_allclose(normal_scores(values), scipy.stats.norm.ppf((ranks - 0.375) / 6.25))


def test_the_path_encoding_of_a_nasbench201_cell():
    """Edges in the order 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2; the positions worked out by hand."""
    features = path_encoding(
        OPERATIONS, [["op_3"], ["op_0", "op_4"], ["op_1", "op_5"], ["op_0", "op_2", "op_5"]]
    )
    arch = CELL.decode(np.eye(5)[[1, 2, 0, 3, 4, 4]].ravel())
    encoded = features(arch)
    assert encoded.shape == (5 + 25 + 125,)
    assert np.flatnonzero(encoded).tolist() == [3, 5 + 1 * 5 + 4, 5 + 2 * 5 + 4, 30 + 1 * 25 + 0 * 5 + 4]
    same = CELL.decode(np.eye(5)[[1, 1, 0, 3, 4, 4]].ravel())  # two ways with the same operations
    assert features(same).sum() == 3


def test_bananas_asks_for_nothing_twice_and_goes_where_the_accuracy_is():
    told = drive(bananas(CELL, Config()), convolutions, 100, workers=3)
    assert len({trial.arch for trial in told}) >= 99  # random ones at the start may be the same
    assert max(convolutions(trial.arch) for trial in told) == pytest.approx(0.9)
    assert (
        np.mean([convolutions(t.arch) for t in told[-30:]])
        > np.mean([convolutions(t.arch) for t in told[:10]]) + 0.2
    )


def test_the_networks_are_trained_again_at_every_refit_only(monkeypatch):
    fitted = []

    def counted(inputs, *rest):
        fitted.append(len(inputs))
        return fit(inputs, *rest)

    monkeypatch.setattr(bananas_module, "fit", counted)
    drive(bananas(CELL, Config(startup=6, refit=4)), convolutions, 20)
    assert fitted == [6, 10, 14, 18]


def test_candidates_are_ranked_by_draws_not_by_means(monkeypatch):
    """All are predicted alike, but of those that pool first the networks are unsure: these win and lose."""

    def unsure(inputs, targets, members, rng):
        return lambda x: np.array([[1.0], [-1.0]]) * x[:, 0]

    def pools(arch):
        return np.array([float(arch["op_0"] == "avg_pool_3x3")])

    monkeypatch.setattr(bananas_module, "fit", unsure)
    strategy = bananas(CELL, Config(seed=3, startup=10), pools)
    drive(strategy, convolutions, 10)
    ranking = list(itertools.islice(strategy.candidates(), 100))
    places = [k for k, arch in enumerate(ranking) if pools(arch)[0]]
    assert 4 < len(places) < 60
    above = sum(k == place for k, place in enumerate(places))
    below = sum(99 - k == place for k, place in enumerate(reversed(places)))
    assert above + below == len(places)
    assert above
    assert below


def test_path_features_are_what_the_networks_see():
    seen = []

    def features(arch):
        seen.append(arch)
        return np.array([convolutions(arch)])

    told = drive(bananas(CELL, Config(startup=5, refit=5), features), convolutions, 12)
    assert {trial.arch for trial in told} <= set(seen)
    # One number that tells all: the best of a hundred mutants is known at once.
    assert convolutions(told[5].arch) > max(convolutions(trial.arch) for trial in told[:5])


def test_after_failures_alone_bananas_draws_at_random():
    strategy = bananas(CELL, Config(startup=3))
    for _ in range(4):
        strategy.tell(failed(ask(strategy)))
    assert ask(strategy).arch == sample_architecture(CELL, 0, 4)


def test_bananas_goes_on_from_a_record_told_in_another_order():
    config = Config(seed=2, startup=5, refit=3)
    strategy = bananas(CELL, config)
    told = drive(strategy, convolutions, 17)
    resumed = recorded(bananas(CELL, config), {trial.id: trial.arch for trial in told})
    for _ in told:
        ask(resumed)
    for trial in reversed(told):
        resumed.tell(trial)
    assert [ask(resumed) for _ in range(4)] == [ask(strategy) for _ in range(4)]


# ---------------------------------------------------------------- BOHB


def rows_of(model: bohb_module._Model, archs: list[Architecture]) -> np.ndarray:
    return np.stack([model._row(arch) for arch in archs])


def density_of(rows: np.ndarray, categories: np.ndarray) -> bohb_module._Density:
    narrowest = np.full(len(categories), bohb_module.NARROWEST)
    return bohb_module._Density(rows, bohb_module.features(rows, categories), categories, narrowest)


def test_the_density_is_a_sum_of_product_kernels():
    model = bohb_module._Model(MIXED, Config())
    categories = np.array([3, 0, 0, 0, 2])
    assert model._categories.tolist() == categories.tolist()
    rows = rows_of(model, [MIXED.sample((0, i)) for i in range(9)])
    points = rows_of(model, [MIXED.sample((1, i)) for i in range(20)])
    assert np.isnan(rows[:, 1]).any()
    assert not np.isnan(rows[:, 1]).all()
    np.testing.assert_array_equal(rows[:, 4], ~np.isnan(rows[:, 1]))
    density = density_of(rows, categories)

    def kernel(x, y):
        value = 1.0
        for j, many in enumerate(categories):
            if np.isnan(x[j]) or np.isnan(y[j]):
                continue
            if many:
                width = (many - 1) / (9 + many)
                value *= 1 - width if x[j] == y[j] else width / (many - 1)
            else:
                kept = rows[~np.isnan(rows[:, j]), j]
                width = 1.06 * kept.std() * 9 ** (-1 / 9)
                value *= scipy.stats.norm.pdf(x[j], y[j], width) * math.sqrt(2 * math.pi)
        return value

    expected = [math.log(sum(float(kernel(x, y)) for y in rows) / 9) for x in points]
    np.testing.assert_allclose(density.log(bohb_module.features(points, categories)), expected, rtol=1e-9)


def test_taken_alone_each_value_counts_as_if_one_trial_more_had_it():
    rows, categories = np.array([[0.0], [0.0], [0.0], [2.0]]), np.array([3])
    density = density_of(rows, categories)
    every = bohb_module.features(np.arange(3.0)[:, None], categories)
    np.testing.assert_allclose(np.exp(density.log(every)), np.array([3 + 1, 0 + 1, 1 + 1]) / (4 + 3))


def test_draws_are_near_the_rows_and_inside_the_space():
    model = bohb_module._Model(MIXED, Config())
    row = model._row(Architecture(pool="max", size=3, rate=1e-4, drop=0.45))
    rows = np.tile(row, (40, 1))
    density = density_of(rows, model._categories)
    drawn = density.draw(np.random.default_rng(0), 4000)
    assert drawn[:, 1:4].min() >= 0
    assert drawn[:, 1:4].max() <= 1
    assert drawn[:, 2].max() < 0.02  # three bandwidths of a thousandth
    kept = (drawn[:, 0] == 1).mean()  # moved with chance 2 / 43, a third of which changes nothing
    assert kept == pytest.approx(1 - 2 / 43 * 2 / 3, abs=0.01)
    absent = np.full((40, 5), np.nan)
    absent[:, 0], absent[:, 2:] = 0, 0.5
    density = density_of(absent, model._categories)
    sizes = density.draw(np.random.default_rng(0), 4000)[:, 1]
    assert scipy.stats.kstest(sizes, "uniform").pvalue > 0.01


def test_numbers_are_drawn_from_kernels_three_times_as_wide():
    rows = np.linspace(0.7, 0.9, 40)[:, None]
    drawn = density_of(rows, np.array([0])).draw(np.random.default_rng(0), 4000)
    width = 1.06 * rows.std() * 40 ** (-1 / 5)
    assert drawn.std() == pytest.approx(math.hypot(rows.std(), 3 * width), rel=0.1)
    assert (drawn < 0.4).mean() < 0.002


def test_what_a_draw_rules_out_does_not_count_in_its_density():
    model = bohb_module._Model(MIXED, Config())
    with_size, without = [1.0, 0.5, 0.1, 0.2, 1.0], [0.0, 0.5, 0.1, 0.2, 1.0]
    rows = model._existing(np.array([with_size, without]))
    np.testing.assert_array_equal(rows, [with_size, [0.0, math.nan, 0.1, 0.2, 0.0]])


def test_bohb_is_hyperband_until_there_are_trials_enough_and_with_random_ones_only():
    hyperband = STRATEGIES["hyperband"]
    for config, same in (
        (Config(seed=4, iterations=3, random_fraction=1.0), 51),
        (Config(seed=4, iterations=3, random_fraction=0.0), 9),  # d + 3 of them
    ):
        ours, theirs = bohb(CELL, config), hyperband(CELL, config)
        agree = []
        for _ in range(60):
            one, other = ours.ask(), theirs.ask()
            if one is None or other is None:
                break
            if one.measurements == ():
                agree.append(one.arch == other.arch)
            ours.tell(run(one, 0.1 + one.id / 1000))
            theirs.tell(run(other, 0.1 + other.id / 1000))
        assert all(agree[:same])
        assert all(agree) == (config.random_fraction == 1.0)


def test_the_model_is_of_the_largest_budget_with_trials_enough():
    model = bohb_module._Model(CELL, Config(random_fraction=0.0))
    skips, pools = (
        Architecture({f"op_{k}": name for k in range(6)}) for name in ("skip_connect", "avg_pool_3x3")
    )

    def tell(ids, budget, good, bad):
        for i in ids:
            trial = Trial(i, good if i % 2 else bad, budget, 0)
            model.observe(run(trial, i % 2 / 2 + 0.1))

    tell(range(8), 1, pools, skips)
    assert next(model.propose(0)) == sample_architecture(CELL, 0, 0)
    tell(range(8, 9), 1, pools, skips)  # d + 3
    assert next(model.propose(0)) != sample_architecture(CELL, 0, 0)
    tell(range(9, 14), 1, pools, skips)
    assert next(model.propose(0)) == pools
    tell(range(8), 3, skips, pools)
    assert next(model.propose(0)) == pools
    tell(range(8, 14), 3, skips, pools)
    assert next(model.propose(0)) == skips


def test_bohb_goes_where_the_accuracy_is_and_stays_away_from_failures():
    """Best at rate 0.01 with max pooling of size 6; rates above 0.03 diverge."""

    def score(arch):
        return (
            0.5
            + 0.1 * (arch["pool"] == "max")
            + 0.02 * arch.get("size", 0)
            - 0.1 * abs(math.log10(arch["rate"] / 1e-2))
        )

    strategy = bohb(MIXED, Config(epochs=3, trials=200))
    started = []
    while (trial := strategy.ask()) is not None:
        if not trial.measurements:
            started.append(trial.arch)
        strategy.tell(failed(trial) if trial.arch["rate"] > 0.03 else run(trial, score(trial.arch)))

    def share(archs, holds):
        return sum(map(holds, archs)) / len(archs)

    at_random = [MIXED.sample((0, i)) for i in range(500)]
    late = [arch for i, arch in enumerate(started) if i >= 110 and arch != sample_architecture(MIXED, 0, i)]
    assert 0.5 < len(late) / 90 < 0.8  # a third is random
    assert share(late, lambda a: a["rate"] > 0.03) < 0.02 < 0.1 < share(at_random, lambda a: a["rate"] > 0.03)
    assert share(late, lambda a: a["pool"] == "max" and a["size"] >= 5) > 0.6
    assert share(at_random, lambda a: a["pool"] == "max" and a["size"] >= 5) < 0.2
    for arch in started:
        assert MIXED.decode(MIXED.encode(arch)) == arch


# ---------------------------------------------------------------- the training-free filter


def test_a_filtered_random_search_takes_the_best_of_n_draws():
    strategy = filtered(STRATEGIES["random"](CELL, Config(seed=6)), convolutions, 8)
    for i in range(5):
        draws = [sample_architecture(CELL, 6, i), *(CELL.sample((6, i, k)) for k in range(1, 8))]
        assert ask(strategy).arch == max(draws, key=convolutions)


def test_a_filter_of_one_is_the_strategy_itself():
    alone, one = (STRATEGIES["evolution"](CELL, Config(seed=1)) for _ in range(2))
    assert drive(alone, convolutions, 40) == drive(filtered(one, lambda arch: math.nan, 1), convolutions, 40)


@pytest.mark.parametrize("n", [5, 36])
def test_a_filtered_grid_is_visited_once_the_promising_sooner(n):
    small = SearchSpace("small", {"a": Integer(0, 5), "b": Integer(0, 5)})
    strategy = filtered(STRATEGIES["grid"](small, Config()), lambda arch: arch["a"], n)
    tried = [trial.arch for trial in iter(strategy.ask, None)]
    assert len(tried) == 36
    assert set(tried) == set(small.enumerate())
    firsts = [arch["a"] for arch in tried]
    assert sum(firsts[:12]) > sum(firsts[-12:])
    assert n < 36 or firsts == sorted(firsts, reverse=True)


def test_scores_are_worked_out_once_and_for_new_trials_only():
    scored = []

    def score(arch):
        scored.append(arch)
        return convolutions(arch)

    strategy = filtered(STRATEGIES["successive_halving"](CELL, Config(epochs=3, trials=3)), score, 4)
    for _ in range(3):
        strategy.tell(run(ask(strategy), 0.5))
    before = len(scored)
    assert before == 12
    promoted = ask(strategy)
    assert promoted.rung == 1
    assert len(scored) == before
    assert strategy.ask() is None
    assert strategy.paused == frozenset()


def test_a_score_that_is_not_a_number_is_the_worst_and_ties_go_to_the_earlier():
    candidates = [CELL.sample((0, 0)), CELL.sample((0, 0, 1)), CELL.sample((0, 0, 2))]
    scores = dict(zip(candidates, (math.nan, 0.1, 0.1), strict=True))
    strategy = filtered(STRATEGIES["random"](CELL, Config()), scores.__getitem__, 3)
    assert ask(strategy).arch == candidates[1]
    with pytest.raises(InputError, match="strategy: n=0 is less than 1"):
        filtered(STRATEGIES["random"](CELL, Config()), convolutions, 0)


@pytest.mark.parametrize("name", ["evolution", "tpe", "bananas", "bohb", "reinforce", "local_search"])
def test_a_good_filter_finds_the_optimum_sooner(name):
    config = Config(seed=1, trials=60, epochs=1)
    told = drive(filtered(STRATEGIES[name](CELL, config), convolutions, 10), convolutions, 60)
    plain = drive(STRATEGIES[name](CELL, dataclasses.replace(config)), convolutions, 60)

    def mean(trials):
        return np.mean([convolutions(trial.arch) for trial in trials[:20]])

    assert mean(told) > mean(plain) + 0.1


def test_reinforce_told_late_is_as_if_told_in_order() -> None:
    """Parallel workers tell in any order: the policy is that of the trials in the order of their ids."""
    space = SearchSpace("toy", {f"edge_{k}": Categorical(("none", "skip", "conv")) for k in range(4)})
    early, late = (reinforce(space, Config(seed=5)) for _ in range(2))
    trials = [early.ask() for _ in range(70)]  # all outstanding at once
    assert trials == [late.ask() for _ in range(70)]
    scores = np.random.default_rng(0).random(70)
    told = [
        trial.add(Measurement(9, float(score), 1.0, 0.5, 1.0))
        for trial, score in zip(trials, scores, strict=True)
        if trial is not None
    ]
    for trial in told:
        early.tell(trial)
    for k in np.random.default_rng(1).permutation(70):
        late.tell(told[k])
    assert [early.ask() for _ in range(5)] == [late.ask() for _ in range(5)]
