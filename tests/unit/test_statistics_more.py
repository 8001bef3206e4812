"""Statistics over many repetitions, against hand-worked, published and independently computed numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nas.report.statistics import (
    Statistic,
    Trace,
    at_costs,
    bootstrap,
    correlation,
    cost_grid,
    cost_to_reach,
    critical_difference,
    estimate,
    holm,
    interquartile_mean,
    kendall,
    paired_tests,
    performance_profile,
    probability_of_improvement,
    ranks,
    regret,
    spearman,
    speed_up,
    trace,
)

# ---------------------------------------------------------------- runs at equal cost

RUN = trace(
    [1, 2, 4, 7, 7, 9],
    [math.nan, 0.5, 0.4, 0.8, 0.8, 0.9],
    [0.99, 0.6, 0.95, 0.7, 0.1, 0.65],
)


def test_the_incumbent_is_chosen_by_validation_and_reported_by_test():
    assert RUN.cost.tolist() == [2, 7, 9]
    assert RUN.valid.tolist() == [0.5, 0.8, 0.9]
    assert RUN.test.tolist() == [0.6, 0.7, 0.65]  # the best test accuracies, 0.99 and 0.95, are never seen
    assert trace([], []).cost.tolist() == []
    assert trace([1, 2], [math.nan, -math.inf]).cost.tolist() == []
    assert np.isnan(trace([1], [0.5]).test).all()
    with pytest.raises(ValueError, match="costs are not what was spent in all"):
        trace([1, 0.5], [0.1, 0.2])


def test_incumbents_at_common_costs():
    late = trace([3], [0.2], [0.3])
    assert cost_grid([RUN, late], 9, points=4).tolist() == [3, 5, 7, 9]
    np.testing.assert_allclose(cost_grid([RUN, late], 12, points=3, log=True), [3, 6, 12])
    with pytest.raises(ValueError, match=r"first incumbent at 3\.0, after 2"):
        cost_grid([RUN, late], 2)
    costs = np.array([1.9, 2, 6.9, 7, 100])
    valid, test = (at_costs([RUN, late], costs, of) for of in ("valid", "test"))
    np.testing.assert_array_equal(
        valid, [[math.nan, 0.5, 0.5, 0.8, 0.9], [math.nan, math.nan, 0.2, 0.2, 0.2]]
    )
    np.testing.assert_array_equal(test[0], [math.nan, 0.6, 0.6, 0.7, 0.65])
    np.testing.assert_allclose(regret(test[0, 1:], 0.75), [0.15, 0.15, 0.05, 0.1])


def test_the_cost_to_reach_a_target():
    runs = [RUN, trace([3], [0.2], [0.3]), Trace(*np.empty((3, 0)))]
    assert cost_to_reach(runs, 0.65).tolist() == [7, math.inf, math.inf]
    assert cost_to_reach(runs, 0.2, "valid").tolist() == [2, 3, math.inf]


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from([0.1, 0.2, 0.3, math.nan]), st.floats(0, 1)), min_size=1
    )
)
def test_a_trace_is_the_running_best_of_all_measurements(measurements):
    steps, valid, test = zip(*measurements, strict=True)
    costs = np.cumsum(steps)
    found = trace(list(costs), valid, test)
    for cost in costs:
        seen = [(v, -k) for k, v in enumerate(valid) if costs[k] <= cost and not math.isnan(v)]
        shown = at_costs([found], np.array([cost]))[0, 0]
        if seen:
            assert shown == test[-max(seen)[1]]
        else:
            assert math.isnan(shown)


# ---------------------------------------------------------------- robust means


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_interquartile_mean_is_scipys_trimmed_mean(values):
    expected = scipy.stats.trim_mean(values, 0.25)
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, abs=1e-12)
    assert estimate(np.array(values), "median").value == pytest.approx(np.median(values), abs=1e-12)


def test_the_examples_of_rliables_own_tests():
    """metrics_test.py of google-research/rliable: two tasks, four runs and three."""
    x, y = np.array([[1, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1, 1], [2, 2], [3, 3]])
    names: tuple[Statistic, ...] = ("median", "mean", "iqm")
    for name in names:
        assert estimate(list(x.T), name).value == 1.5
        assert estimate(list(y.T), name).value == 2
    assert probability_of_improvement(list(x.T), list(y.T)).value == pytest.approx(1 / 3)


def test_intervals_are_those_of_an_explicit_stratified_bootstrap():
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=12), 3 + 2 * rng.normal(size=7)]
    found = estimate(tasks, "iqm", resamples=500)
    draws, means = np.random.default_rng(0), []
    chosen = [draws.integers(len(scores), size=(500, len(scores))) for scores in tasks]
    for r in range(500):
        pooled = np.concatenate([scores[k[r]] for scores, k in zip(tasks, chosen, strict=True)])
        means.append(scipy.stats.trim_mean(pooled, 0.25))
    assert found.value == pytest.approx(scipy.stats.trim_mean(np.concatenate(tasks), 0.25))
    assert found.low == pytest.approx(np.sort(means)[12])
    assert found.high == pytest.approx(np.sort(means)[-13])


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median"])
def test_the_intervals_of_one_task_are_scipys(statistic):
    """Where ranks are drawn for all points at once: as wide as when each point has its own draws."""
    scores = np.random.default_rng(1).gamma(2.0, size=(40, 3))
    found = estimate(scores, statistic, resamples=20_000)
    function = {
        "iqm": lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        "mean": np.mean,
        "median": np.median,
    }[statistic]
    reference = scipy.stats.bootstrap(
        (scores,), function, axis=0, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = reference.high - reference.low
    np.testing.assert_allclose(found.value, function(scores, axis=0))
    assert (np.abs(found.low - reference.low) < 0.05 * width).all()
    assert (np.abs(found.high - reference.high) < 0.05 * width).all()
    again = estimate(scores, statistic, resamples=20_000)
    np.testing.assert_array_equal(found.low, again.low)


def test_the_interval_of_the_interquartile_mean_covers_the_truth():
    samples = np.random.default_rng(3).normal(size=(50, 1000))  # fifty runs, a thousand times
    found = estimate(samples)
    covered = ((found.low <= 0) & (found.high >= 0)).mean()
    assert covered == pytest.approx(0.94, abs=0.02)  # percentile intervals are a little narrow


def test_points_keep_their_places_and_one_run_has_no_interval():
    scores = np.arange(36.0).reshape(6, 3, 2)
    found = estimate(scores, "mean")
    np.testing.assert_allclose(found.value, scores.mean(axis=0))
    assert found.low.shape == found.high.shape == (3, 2)
    several = estimate([scores, scores + 1], "mean")
    np.testing.assert_allclose(several.value, scores.mean(axis=0) + 0.5)
    assert (several.low < several.value).all()
    assert (several.value < several.high).all()
    one = estimate(np.array([0.5]))
    assert one.value == 0.5
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(estimate(scores[:4], "mean").low).all()  # four say little of their spread


def test_the_probability_of_improvement_counts_pairs_and_half_the_ties():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 5, 20).astype(float), rng.integers(1, 6, 30).astype(float)
    found = probability_of_improvement(a, b)
    count = sum((x > y) + 0.5 * (x == y) for x, y in itertools.product(a, b))
    assert found.value == pytest.approx(count / 600)
    u = scipy.stats.mannwhitneyu(a, b).statistic
    assert found.value == pytest.approx(u / 600)
    assert found.low < found.value < found.high
    opposite = probability_of_improvement(b, a)
    assert opposite.value == pytest.approx(1 - found.value)
    assert probability_of_improvement(a + 10, b).low == 1


def test_the_probability_of_improvement_of_shifted_normals_is_in_its_interval():
    """P(X > Y) = Phi(d / sqrt 2) for unit normals d apart."""
    rng = np.random.default_rng(5)
    truth = scipy.stats.norm.cdf(0.5 / math.sqrt(2))
    inside = 0
    for _ in range(100):
        found = probability_of_improvement(rng.normal(0.5, size=40), rng.normal(size=40), resamples=300)
        inside += found.low <= truth <= found.high
    assert inside >= 88


def test_the_performance_profile_is_the_part_of_the_runs_above():
    tasks = [np.array([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]), np.array([0.3, 0.5] * 3)]
    found = performance_profile(tasks, np.array([0.0, 0.2, 0.35, 0.5]))
    np.testing.assert_allclose(found.value, [1, (0.5 + 1) / 2, (0.25 + 0.5) / 2, 0])
    assert found.low[0] == found.high[0] == 1
    assert found.low[1] < found.value[1] < found.high[1]
    assert (np.diff(found.low) <= 0).all()


def test_the_speed_up_is_of_medians_also_where_runs_never_arrive():
    slow, fast = np.array([8.0, 10, 12, 11, 9]), np.array([2.0, 2, 1, 3, math.inf])
    found = speed_up(slow, fast)
    assert found.value == 5
    assert found.low <= 5 <= found.high
    assert found.high <= 12
    never = np.full(5, math.inf)
    assert speed_up(never, fast).value == math.inf
    assert speed_up(slow, never).value == 0
    assert np.isnan(speed_up(never, never).value)


# ---------------------------------------------------------------- ranks and tests

# Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006), table 6: the ranks of
# four variants of C4.5 on fourteen data sets, and accuracies (AUC) of the first two from table 2.
RANKS = {
    "C4.5": [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3],
    "C4.5+m": [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
    "C4.5+cf": [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4],
    "C4.5+m+cf": [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2],
}
PLAIN = [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1, 0.940, 0.619, 0.972, 0.957]
WITH_M = [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1, 0.962, 0.666, 0.981, 0.978]


def test_demsars_example_of_friedman_and_nemenyi():
    scores = {name: [-rank for rank in ranks] for name, ranks in RANKS.items()}
    found = critical_difference(scores)
    assert found.names == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    np.testing.assert_allclose(found.mean_ranks, [1.964, 2.000, 2.893, 3.143], atol=5e-4)
    assert found.blocks == 14
    assert found.difference == pytest.approx(1.25, abs=5e-3)
    # The paper's 9.28 is without correction for ties, of which there are three pairs and one of four.
    assert found.statistic * (1 - (3 * 6 + 60) / (14 * 4 * 15)) == pytest.approx(9.28, abs=5e-3)
    assert found.groups == (found.names,)  # "not powerful enough" at 5 %
    at_ten = critical_difference(scores, alpha=0.1)
    assert at_ten.difference == pytest.approx(1.12, abs=5e-3)
    assert at_ten.groups == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5"))


@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 12), st.booleans())
def test_friedmans_statistic_is_scipys(seed, methods, blocks, coarse):
    table = np.random.default_rng(seed).random((methods, blocks))
    table = np.round(table, 1) if coarse else table
    found = critical_difference({str(k): row for k, row in enumerate(table)})
    if all(len(set(column)) == 1 for column in table.T):
        assert found.statistic == 0
        return
    expected = scipy.stats.friedmanchisquare(*table)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)


def test_nemenyis_critical_values_are_demsars_table_5():
    """q for 2, 4 and 10 methods at 5 %: 1.960, 2.569 and 3.164."""
    for methods, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        scores = {str(k): [k + i for i in range(6)] for k in range(methods)}
        expected = q * math.sqrt(methods * (methods + 1) / 36)
        assert critical_difference(scores).difference == pytest.approx(expected, rel=3e-4)


def test_bars_join_what_is_not_told_apart_and_no_bar_lies_within_another():
    def bars(*apart, n=5):
        matrix = np.zeros((n, n), dtype=bool)
        for i, j in apart:
            matrix[i, j] = matrix[j, i] = True
        return ranks._bars(matrix)

    assert bars() == [(0, 5)]
    assert bars((0, 4)) == [(0, 4), (1, 5)]
    assert bars((0, 3), (0, 4), (1, 4)) == [(0, 3), (1, 4), (2, 5)]
    assert bars(*itertools.combinations(range(5), 2)) == []
    assert bars((1, 2), (0, 2), (0, 3), (0, 4), (1, 3), (1, 4)) == [(0, 2), (2, 5)]
    assert bars((1, 3)) == [(0, 3), (2, 5)]


def test_groups_by_paired_tests():
    rng = np.random.default_rng(6)
    base = rng.normal(size=30)
    scores = {"a": base + 1, "b": base + 1 + rng.normal(size=30) * 1e-3, "c": base}
    found = critical_difference(scores, test="wilcoxon")
    assert set(found.names[:2]) == {"a", "b"}
    assert [set(group) for group in found.groups] == [{"a", "b"}]
    with pytest.raises(ValueError, match="two methods and two blocks"):
        critical_difference({"a": [1.0, 2.0]})


def test_demsars_example_of_the_signed_rank_test():
    """R- = 12 of 105, z = -2.54: p = 0.011."""
    (found,) = paired_tests({"C4.5+m": WITH_M, "C4.5": PLAIN})
    assert (found.wins, found.losses, found.ties) == (10, 2, 2)
    assert found.p == pytest.approx(2 * scipy.stats.norm.cdf(-2.54), abs=3e-4)
    assert found.p_holm == found.p
    assert found.difference == pytest.approx(np.median(np.subtract(WITH_M, PLAIN)))
    (sign,) = paired_tests({"C4.5+m": WITH_M, "C4.5": PLAIN}, test="sign")
    assert sign.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # two or fewer heads of twelve, either way


def test_demsars_example_of_holms_procedure():
    """Three comparisons with C4.5: 0.016 and 0.019 are significant at 5 %, 0.607 is not."""
    np.testing.assert_allclose(holm([0.607, 0.016, 0.019]), [0.607, 0.048, 0.048])
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([]).tolist() == []


def test_tests_against_one_method_and_of_all_pairs():
    rng = np.random.default_rng(7)
    scores = {name: rng.normal(mean, size=25) for name, mean in (("a", 0.0), ("b", 0.2), ("c", 2.0))}
    control = paired_tests(scores, against="a")
    assert [(test.first, test.second) for test in control] == [("b", "a"), ("c", "a")]
    assert [(t.first, t.second) for t in paired_tests(scores)] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert control[1].p_holm == pytest.approx(2 * control[1].p)
    assert control[1].p_holm < 0.01 < control[0].p_holm
    (same,) = paired_tests({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    assert (same.p, same.ties, same.difference) == (1.0, 2, 0.0)


# ---------------------------------------------------------------- correlations


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("function", "reference"), [(kendall, scipy.stats.kendalltau), (spearman, scipy.stats.spearmanr)]
)
def test_correlations_are_scipys_and_so_are_those_of_the_resamples(function, reference, ties):
    rng = np.random.default_rng(8)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    if ties:
        x, y = np.round(x), np.round(y)
    found = function(x, y, resamples=200)
    assert found.value == pytest.approx(reference(x, y).statistic)
    counts = bootstrap.resample_counts(np.random.default_rng(0), 40, 200)
    drawn = [reference(np.repeat(x, c), np.repeat(y, c)).statistic for c in counts]
    assert found.low == pytest.approx(np.sort(drawn)[5], abs=1e-6)
    assert found.high == pytest.approx(np.sort(drawn)[-6], abs=1e-6)


def test_many_items_are_resampled_one_resample_at_a_time(monkeypatch):
    rng = np.random.default_rng(9)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    small = kendall(x, y)
    monkeypatch.setattr(correlation, "_BY_PAIRS", 10)
    large = kendall(x, y)
    assert large.value == small.value
    assert large.low == pytest.approx(small.low, abs=0.02)
    assert large.high == pytest.approx(small.high, abs=0.02)


def test_the_correlations_of_normal_pairs_are_in_their_intervals():
    """tau = 2 / pi asin r; rho = 6 / pi asin(r / 2)."""
    rng = np.random.default_rng(10)
    r, inside = 0.6, np.zeros(2)
    for _ in range(100):
        x, y = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=80).T
        truths = 2 / math.pi * math.asin(r), 6 / math.pi * math.asin(r / 2)
        for k, (function, truth) in enumerate(zip((kendall, spearman), truths, strict=True)):
            found = function(x, y, resamples=300)
            inside[k] += found.low <= truth <= found.high
    assert (inside >= 88).all()


@pytest.mark.parametrize("function", [kendall, spearman])
def test_what_has_no_correlation(function):
    unknown = function([1, 2, math.nan, 4, 5], [1, 2, 3, math.nan, 6], resamples=50)
    assert unknown.value == 1
    assert np.isnan(function([1, 1, 1], [1, 2, 3]).value)
    assert np.isnan(function([1], [2]).value)
    assert function([1, 2, 3], [3, 2, 1]).value == -1
