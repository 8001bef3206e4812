"""Statistics against numbers worked out by hand, or known from how the data were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.record import Observation, Run
from nas.report.statistics import (
    Cost,
    anytime,
    incumbent,
    mean_interval,
    pareto_front,
    which_choices_mattered,
)
from nas.space import Architecture
from nas.trial import Measurement, MeasurementWithValues, Status, Trial


def measured(budget: int, accuracy: float, seconds: float = 1.0) -> Measurement:
    return Measurement(budget, accuracy, 0.0, 0.0, 0.0, train_seconds=seconds)


def run_of(
    history: Sequence[tuple[int, Measurement]],
    status: Mapping[int, Status] | None = None,
    archs: Mapping[int, Architecture] | None = None,
) -> Run:
    trials: dict[int, Trial] = {}
    for index, measurement in history:
        arch = (archs or {}).get(index, Architecture(depth=index))
        old = trials.setdefault(index, Trial(index, arch, budget=9, seed=0))
        trials[index] = old.add(measurement).replace(status=(status or {}).get(index, "completed"))
    observations = tuple(Observation(i, m, 10.0 * n) for n, (i, m) in enumerate(history, 1))
    return Run(Path("run"), {}, {}, trials, (), observations, True, 10.0 * len(history), 0.0, 0.0, 0.0)


def test_the_t_interval_of_three_values():
    interval = mean_interval([1.0, 2.0, 3.0], fewest=2)
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (interval.high + interval.low) / 2 == pytest.approx(2.0)
    assert interval.n == 3
    cut = mean_interval([1.0, 2.0, 3.0], fewest=2, within=(0.0, 3.0))
    assert (cut.mean, cut.low, cut.high) == (2.0, 0.0, 3.0)
    assert math.isnan(mean_interval([1.0, 2.0, 3.0, 4.0]).low)
    assert not math.isnan(mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]).low)


def test_one_value_has_a_mean_and_no_interval_and_nan_is_left_out():
    one = mean_interval([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(mean_interval([]).mean)
    assert mean_interval([]).n == 0


def test_the_interval_covers_the_truth_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(size=(2000, 5))
    covered = sum(i.low <= 0 <= i.high for i in map(mean_interval, samples))
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_incumbent_over_epochs_seconds_and_wall_time():
    run = run_of(
        [
            (0, measured(1, math.nan)),
            (0, measured(2, 0.5, seconds=3)),
            (1, measured(1, 0.9)),  # fails later: its cost counts, its accuracy does not
            (2, measured(4, 0.4)),
            (0, measured(3, 0.6)),
            (2, measured(5, 0.2)),
        ],
        status={1: "failed"},
    )
    best = [0.5, 0.5, 0.5, 0.6, 0.6]
    expected: dict[Cost, list[int]] = {
        "epochs": [2, 3, 7, 8, 9],
        "seconds": [4, 5, 6, 7, 8],
        "wall_seconds": [20, 30, 40, 50, 60],
    }
    for cost, costs in expected.items():
        x, y = incumbent(run, cost)
        assert x.tolist() == costs
        assert y.tolist() == best


def test_the_anytime_curve_averages_seeds_at_equal_cost():
    a = run_of([(0, measured(1, 0.2)), (0, measured(2, 0.4)), (0, measured(3, 0.4)), (0, measured(4, 0.8))])
    b = run_of([(0, measured(2, 0.4))])
    nothing = run_of([(0, measured(1, math.nan))])
    curve = anytime([a, b, nothing], "epochs", points=3)
    assert curve is not None
    assert curve.n == 2
    assert curve.cost.tolist() == [2, 3, 4]  # from where both have something; b keeps what it ended with
    assert curve.mean == pytest.approx([0.4, 0.4, 0.6])
    assert curve.runs.tolist() == [[0.4, 0.4, 0.8], [0.4, 0.4, 0.4]]
    assert np.isnan(curve.low).all()  # two runs have no interval
    five = anytime([a, b, b, b, b], "epochs", points=3)
    assert five is not None
    assert five.low[:2] == pytest.approx([0.4, 0.4])
    expected = mean_interval([0.8, 0.4, 0.4, 0.4, 0.4])
    assert (five.low[2], five.high[2]) == pytest.approx((expected.low, expected.high))
    wide = [run_of([(0, measured(1, value))]) for value in (0.0, 1.0, 1.0, 1.0, 1.0)]
    cut = anytime(wide, "epochs", points=1)
    assert cut is not None
    assert cut.high.tolist() == [1.0]  # no accuracy is higher
    alone = anytime([a], "epochs")
    assert alone is not None
    assert np.isnan(alone.low).all()
    assert anytime([nothing], "epochs") is None
    assert anytime([], "epochs") is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_pareto_front_is_what_nothing_beats(points):
    front = pareto_front([cost for cost, _ in points], [value for _, value in points]).tolist()
    on_front = {points[index] for index in front}
    for cost, value in points:
        beaten = any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in points)
        assert ((cost, value) in on_front) != beaten
    assert len(on_front) == len(front)
    assert [points[index][0] for index in front] == sorted(cost for cost, _ in on_front)


def test_the_pareto_front_leaves_unknown_values_out():
    assert pareto_front([1, math.nan, 2, 3], [0.1, 0.9, math.nan, 0.2]).tolist() == [0, 3]


def trials_of(archs: Sequence[Architecture], accuracies: Sequence[float], budget: int = 1) -> list[Trial]:
    return [
        Trial(
            i, arch, budget, seed=0, measurements=tuple(measured(b, accuracy) for b in range(1, budget + 1))
        )
        for i, (arch, accuracy) in enumerate(zip(archs, accuracies, strict=True))
    ]


def test_choices_that_made_the_accuracy_are_found_with_their_shares():
    rng = np.random.default_rng(1)
    archs = [
        Architecture(norm=str(rng.choice(["a", "b"])), rate=float(rng.uniform()), other=int(rng.integers(5)))
        for _ in range(150)
    ]
    accuracies = [0.5 + 0.1 * (arch["norm"] == "b") + 0.1 * arch["rate"] for arch in archs]
    found = which_choices_mattered(trials_of(archs, accuracies))
    assert found is not None
    assert [choice.choice for choice in found.choices] == ["norm", "rate", "other"]
    norm, rate, other = found.choices
    # Variances: 0.1 ** 2 / 4 for the coin, 0.1 ** 2 / 12 for the rate.
    assert norm.share == pytest.approx(0.75, abs=0.05)
    assert rate.share == pytest.approx(0.25, abs=0.05)
    assert norm.low < norm.share < norm.high
    assert norm.chance_share < 0.05 < rate.low
    assert other.share <= other.chance_share < 0.02
    assert found.warning is None


def test_below_fifty_trials_it_warns():
    archs = [Architecture(kind=k % 3, other=k % 2) for k in range(49)]
    found = which_choices_mattered(trials_of(archs, [0.5 + 0.1 * arch["kind"] for arch in archs]))
    assert found is not None
    assert found.warning is not None
    assert found.warning.startswith("Only 49 trials: below 50")


def test_the_share_of_a_choice_is_its_marginals_variance_by_hand():
    """All 3 x 2 architectures equally often: the variance of the means of a choice's values over the whole one."""
    truth = {(k, n): 0.3 + 0.1 * k + 0.2 * n - 0.15 * k * n for k in range(3) for n in range(2)}
    archs = [Architecture(kind=f"kind {k}", norm=n) for k, n in truth] * 20
    found = which_choices_mattered(trials_of(archs, [truth[int(a["kind"][-1]), a["norm"]] for a in archs]))
    assert found is not None
    grid = np.asarray([[truth[k, n] for n in range(2)] for k in range(3)])
    shares = {choice.choice: choice.share for choice in found.choices}
    assert shares["kind"] == pytest.approx(grid.mean(axis=1).var() / grid.var(), abs=0.02)
    assert shares["norm"] == pytest.approx(grid.mean(axis=0).var() / grid.var(), abs=0.02)
    assert sum(shares.values()) < 0.99  # the rest is their interaction


def test_a_conditional_choice_gets_no_credit_for_being_active():
    rng = np.random.default_rng(3)
    archs = [
        Architecture(depth=2, width_2=int(rng.choice([8, 16]))) if deep else Architecture(depth=1)
        for deep in rng.integers(2, size=60)
    ]
    found = which_choices_mattered(trials_of(archs, [0.5 + 0.1 * arch["depth"] for arch in archs]))
    assert found is not None
    shares = {choice.choice: choice.share for choice in found.choices}
    assert shares["depth"] == pytest.approx(1.0)
    assert "width_2" not in shares  # where it is active nothing differs


def test_trials_are_compared_at_the_budget_that_half_of_them_reached():
    archs = [Architecture(kind=i % 2) for i in range(20)]
    short = trials_of(archs[:10], [0.1] * 10, budget=1)
    long = [trial.replace(id=10 + trial.id) for trial in trials_of(archs[10:], [0.8] * 10, budget=9)]
    long = [
        trial.replace(measurements=(*trial.measurements[:8], measured(9, 0.8 + 0.1 * trial.arch["kind"])))
        for trial in long
    ]
    found = which_choices_mattered([*short, *long])
    assert found is not None
    assert (found.budget, found.trials) == (9, 10)
    assert found.choices[0].share == pytest.approx(1.0)


def test_too_little_to_say_anything():
    archs = [Architecture(kind=i) for i in range(8)]
    accuracies = [0.1 * i for i in range(8)]
    assert which_choices_mattered([]) is None
    assert which_choices_mattered(trials_of(archs[:7], accuracies[:7])) is None
    assert which_choices_mattered(trials_of(archs, [0.5] * 8)) is None
    failed = [trial.replace(status="failed") for trial in trials_of(archs, accuracies)]
    assert which_choices_mattered(failed) is None
    fixed = which_choices_mattered(trials_of([Architecture(kind=1)] * 8, accuracies))
    assert fixed is not None
    assert fixed.choices == ()


def test_networks_that_were_not_trained_do_not_make_the_others_young():
    """Three quarters violate a constraint before their training: the others are compared at their last epoch."""
    archs = [Architecture(width=k % 4) for k in range(80)]
    trained = [trial_at(k, arch, [0.5, 0.5 + 0.1 * arch["width"]]) for k, arch in enumerate(archs[:20])]
    untrained = [
        Trial(k, arch, 2, seed=0).add(
            MeasurementWithValues(
                1, *[math.nan] * 4, values={"params": 9.0}, signed=(math.nan,), violated=1.0, untrained=True
            )
        )
        for k, arch in enumerate(archs[20:], 20)
    ]
    found = which_choices_mattered([*trained, *untrained], fewest=10)
    assert found is not None, "at the first epoch all have 0.5"


def trial_at(k, arch, accuracies):
    trial = Trial(k, arch, len(accuracies), seed=0)
    for epoch, accuracy in enumerate(accuracies, 1):
        trial = trial.add(Measurement(epoch, accuracy, 1.0, accuracy, 1.0))
    return trial
