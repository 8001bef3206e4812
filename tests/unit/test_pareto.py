"""Fronts and hypervolumes against counting by hand."""

import itertools

import numpy as np
import pytest

from nas import pareto
from nas.space import Architecture
from nas.trial import Measurement, MeasurementWithValues, Status, Trial


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_hypervolume_is_the_part_of_a_grid_that_is_dominated(objectives):
    """Whole numbers: each cell of the grid is dominated or not, and they are counted."""
    rng = np.random.default_rng(objectives)
    for n in (1, 2, 7):
        points = rng.integers(0, 6, (n, objectives))
        reference = np.array([1] * objectives)
        cells = itertools.product(range(1, 6), repeat=objectives)  # by their lower corners
        count = sum(
            any(all(p > c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells
        )
        assert pareto.hypervolume(points, reference) == pytest.approx(count)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_ranks_and_fronts_follow_their_definition(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 5, (30, objectives)).astype(float)
    left, expected, rank = set(range(30)), np.full(30, -1), 0
    while left:
        best = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        expected[list(best)] = rank
        left, rank = left - best, rank + 1
    assert pareto.ranks(points).tolist() == expected.tolist()
    kept = points[pareto.nondominated(points)]
    assert {tuple(p) for p in kept} == {tuple(p) for p in points[expected == 0]}
    assert len({tuple(p) for p in kept}) == len(kept)


def test_crowding_by_hand():
    """Deb et al. 2002: the sides of the box between the neighbours, as shares of the span."""
    found = pareto.crowding(np.array([[0.0, 4.0], [4.0, 0.0], [1.0, 2.0], [2.0, 1.0]]))
    assert found.tolist() == [np.inf, np.inf, 2 / 4 + 3 / 4, 3 / 4 + 2 / 4]


def test_an_epsilon_net_goes_to_the_farthest_each_time():
    gains = np.array([[0.0], [1.0], [10.0], [6.0], [4.5]])
    assert pareto.epsilon_net(gains).tolist() == [0, 2, 4, 3, 1]


def test_igd_plus_by_hand():
    true = np.array([[0.0, 10.0], [10.0, 0.0]])
    assert pareto.igd_plus([[0.0, 7.0]], true) == pytest.approx((3 + 10) / 2)
    assert pareto.igd_plus(true, true) == 0


def trial(i, gains, violated=0.0, arch=None, status: Status = "completed"):
    measured = MeasurementWithValues(1, 0.5, 0.0, 0.0, 0.0, signed=gains, violated=violated)
    return Trial(
        i, Architecture({"a": i if arch is None else arch}), 1, 0, status=status, measurements=(measured,)
    )


def test_a_front_is_of_trials_that_keep_the_constraints():
    trials = [
        trial(0, (1.0, 5.0)),
        trial(1, (9.0, 9.0), violated=0.1),
        trial(2, (5.0, 1.0)),
        trial(3, (1.0, 4.0)),
        trial(4, (7.0, 7.0), status="failed"),
        trial(5, (5.0, 1.0), arch=2),
    ]
    assert [t.id for t in pareto.front(trials)] == [2, 0]
    assert pareto.front(trials[1:2]) == ()
    assert pareto.front([Trial(0, Architecture({}), 1, 0)]) == ()


def test_few_points_that_stand_for_a_front_have_its_ends_and_the_most_volume():
    front = pareto.front([trial(k, (float(k), float(-(k**2)))) for k in range(11)])
    three = pareto.spread(front, 3)
    assert {t.id for t in (three[0], three[-1])} == {0, 10}
    gains = pareto.scaled(np.array([t.gains for t in front]))
    order = [t.id for t in front]
    volumes = {
        k: pareto.hypervolume(gains[[order.index(0), order.index(10), order.index(k)]], [-0.1, -0.1])
        for k in range(1, 10)
    }
    assert three[1].id == max(volumes, key=lambda k: volumes[k])
    assert pareto.spread(front, None) == front == pareto.spread(front, 11)
    assert len(pareto.spread(front, 1)) == 1


def test_what_violates_a_constraint_is_worth_less_than_all_that_do_not_and_the_less_the_more_it_does():
    good, bad, worse = trial(0, (-1e12,)), trial(1, (1e12,), 1e-9), trial(2, (1e12,), 3.0)
    assert good.score > bad.score > worse.score > -np.inf
    assert [t.feasible for t in (good, bad, worse)] == [True, False, False]
    plain = Trial(0, Architecture({}), 1, 0, measurements=(Measurement(1, 0.7, 0.0, 0.0, 0.0),))
    assert (plain.gains, plain.feasible, plain.score) == ((0.7,), True, 0.7)
