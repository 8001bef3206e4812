"""Latency: the interval of a median, warm calls, noise that is measured again, devices that are not there."""

import numpy as np
import pytest

from nas.errors import InputError
from nas.goals import LatencyConfig
from nas.objectives import latency
from nas.objectives.base import TrialFailed
from nas.space import Categorical, SearchSpace
from search_spaces import SPACES


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n in (10, 30):
        draws = np.sort(rng.exponential(size=(4000, n)), axis=1)
        bounds = np.array([latency.median_interval(row) for row in draws])
        held = ((bounds[:, 0] <= np.log(2)) & (np.log(2) <= bounds[:, 1])).mean()
        assert 0.945 <= held <= 0.99
    assert latency.median_interval(np.array([3.0, 1.0, 2.0])) == (1.0, 3.0)


class Clock:
    """A call takes what ``durations`` say, one after the other; the last without end."""

    def __init__(self, *durations: float) -> None:
        self.now, self.calls, self.durations = 0.0, 0, durations

    def __call__(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_the_first_calls_do_not_count():
    clock = Clock(5.0, 5.0, 5.0, 0.002)
    found = latency.steady(clock.call, 20, clock)
    assert (found.ms, found.low, found.high, found.noise) == pytest.approx((2.0, 2.0, 2.0, 0.0))


def test_the_fastest_rounds_count_and_the_interval_holds_all():
    rounds = [np.full(30, ms) for ms in (2.0, 2.6, 2.04, 3.0, 2.08)]
    assert latency.combined(rounds) == pytest.approx((2.04, 2.0, 3.0, 0.5 / 1.02))


@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_rounds_go_on_until_some_agree_with_the_fastest(monkeypatch, slow):
    """Of a machine that is twice as slow three quarters of the time."""
    times = [1.0, *[slow] * 3]
    made = []

    def one_round(call, repetitions, clock):
        made.append(times[len(made) % 4])
        return np.full(repetitions, made[-1])

    monkeypatch.setattr(latency, "one_round", one_round)
    found = latency.steady(lambda: None, 9, lambda: 0.2 * len(made))
    assert found == pytest.approx((1.0, 1.0, slow, slow - 1.0))
    assert len(made) == (10 if slow == 1.0 else 17)  # two seconds, or the fifth of the fast ones


def test_rounds_that_never_agree_end(monkeypatch):
    made = []
    monkeypatch.setattr(latency, "one_round", lambda *_: made.append(0) or np.full(9, 0.9 ** len(made)))
    assert latency.steady(lambda: None, 9, lambda: float(len(made))).noise > 1
    assert len(made) == latency.MOST_SECONDS


@pytest.mark.parametrize(("name", "value"), [("latency_batch", 0), ("latency_repetitions", 4)])
def test_settings_that_cannot_be_meant(name, value):
    with pytest.raises(InputError, match=f"^{name}: {value} is below"):
        LatencyConfig(**{name: value})


def meter(space=SPACES["mlp"], **config):
    return latency.MeterSetup(space, (8, 8, 1), 10, LatencyConfig(latency_repetitions=5, **config))


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"^latency_device: 'abacus' is not one of cpu$"):
        meter(latency_device="abacus")()


def test_a_network_is_measured_and_one_that_cannot_be_built_is_a_failed_trial(monkeypatch):
    monkeypatch.setattr(latency, "MOST_SECONDS", 0.5)
    arch = SPACES["mlp"].sample(0)
    measured = meter(latency_device="cpu")()
    found = measured(arch)
    assert 0 < found.low <= found.ms <= found.high < 1000
    assert set(found.values()) == {"latency_ms", "latency_ms_low", "latency_ms_high", "latency_noise"}
    with pytest.raises(TrialFailed, match=r"^latency_ms: cannot be measured: "):
        meter(space=SearchSpace("paper", {"a": Categorical((1, 2))}))()(arch)
