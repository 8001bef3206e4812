"""The live view: what it says from the first second to the last, by a clock that the test holds."""

from __future__ import annotations

import contextlib
import io
import re
import time

from nas.run.driver import Ended, Measured, Started
from nas.run.progress import FinalTrainings, Progress
from nas.space import Architecture
from nas.trial import Final, Measurement, Trial

START, EPOCH, FINAL = 18.0, 2.0, 10.0  # seconds: of the workers' start, an epoch and a final training


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def trial(i: int, budget: int = 4) -> Trial:
    return Trial(i, Architecture(depth=1), budget, seed=0)


def measurement(budget: int) -> Measurement:
    return Measurement(budget, 0.5 + 0.01 * budget, 0.1, 0.5, 0.1, 0.0, EPOCH, 0.0)


def seconds_said(status: str) -> float | None:
    found = re.search(r"about (?:(\d+):)?(\d+):(\d+) left", status)
    return None if found is None else 60 * int(found[2]) + int(found[3])


def play(view: Progress, now: Clock, spends: list[int], finals: int = 2) -> list[tuple[float, str]]:
    """A search of 4-epoch trials that end after ``spends`` epochs (-1: failed), then final trainings: what was
    said, and when."""
    said = [(now.seconds, view.status())]
    view.stage("starting 2 workers")
    now.seconds = 10.0
    said.append((now.seconds, view.status()))
    now.seconds = START
    for i, epochs in enumerate(spends):
        one = trial(i)
        view(Started(one))
        for epoch in range(1, epochs + 1):
            now.seconds += EPOCH
            one = one.add(measurement(epoch))
            view(Measured(one))
            said.append((now.seconds, view.status()))
        status = "failed" if epochs < 0 else "completed" if epochs == 4 else "stopped"
        view(Ended(one.replace(status=status, error="oh" if epochs < 0 else None)))
    view.begin_finals(finals)
    for seed in range(finals):
        said.append((now.seconds, view.status()))
        now.seconds += FINAL
        view.final(Final(Architecture(depth=1), seed, 5, test_accuracy=0.9, train_seconds=FINAL))
    return said


def check(spends: list[int], planned_trials: int | None) -> None:
    now = Clock()
    finals = FinalTrainings(2, 5)
    view = Progress(
        "x",
        planned_epochs=4 * len(spends),
        planned_trials=planned_trials,
        finals=finals,
        stream=io.StringIO(),
        now=now,
    )
    with view:
        said = play(view, now, spends)
    ended = now.seconds
    told = [(ended - when, left) for when, status in said if (left := seconds_said(status)) is not None]
    assert len(told) > len(said) / 2
    for really, left in told[len(told) // 2 :]:
        assert abs(left - really) <= 0.15 * really + 2, (left, really)
    assert "left" not in view.status()
    assert view.status().startswith("x: done, ")
    assert "2 of 2 final trainings" in view.status()


def test_the_time_left_is_that_of_the_whole_run_with_its_final_trainings() -> None:
    check([4] * 8, 8)


def test_trials_that_fail_or_are_stopped_are_not_waited_for() -> None:
    check([4, -1, 4, -1] * 4, 16)
    check([4, 1, 1, 1] * 6, 24)  # as ASHA stops them


def test_it_says_what_is_under_way_before_the_first_trial() -> None:
    stream = io.StringIO()
    now = Clock()
    with Progress("x", planned_epochs=8, stream=stream, now=now, patience_seconds=0.02) as view:
        view.stage("loading digits")
        assert view.status() == "x: loading digits, 0:00"
        time.sleep(0.2)
        view.stage("starting Ray")
        time.sleep(0.2)
        view(Started(trial(0)))
        now.seconds = 5
        assert view.status() == "x: starting Ray, 0 trials done, 1 running, 0 of 8 epochs, 0:05"
        view(Measured(trial(0).add(measurement(1))))
        assert "starting" not in view.status()
    assert stream.getvalue().startswith("x: loading digits\nx: starting Ray\n")


def test_bad_input_before_the_first_trial_leaves_no_line_of_it() -> None:
    stream = io.StringIO()
    with contextlib.suppress(ValueError), Progress("x", stream=stream, now=Clock()) as view:
        view.stage("loading digits")
        raise ValueError
    assert stream.getvalue() == ""


def test_what_a_resumed_run_had_is_no_part_of_its_pace() -> None:
    now = Clock()
    with Progress("x", planned_epochs=40, stream=io.StringIO(), now=now) as view:
        for i in range(5):
            old = trial(i)
            view(Started(old, replayed=True))
            for epoch in range(1, 5):
                old = old.add(measurement(epoch))
            view(Measured(old, replayed=True))
            view(Ended(old.replace(status="completed"), replayed=True))
        assert seconds_said(view.status()) is None
        new = trial(5)
        view(Started(new))
        for epoch in (1, 2):
            now.seconds += EPOCH
            new = new.add(measurement(epoch))
            view(Measured(new))
        assert seconds_said(view.status()) == 18 * EPOCH


def test_a_final_training_that_takes_longer_than_thought_has_no_time_left_below_nothing() -> None:
    now = Clock()
    with Progress("x", finals=FinalTrainings(2, 5), stream=io.StringIO(), now=now) as view:
        play(view, now, [4], finals=0)
        view.begin_finals(1)
        now.seconds += 1000
        assert "left" not in view.status()
        view.final(Final(Architecture(depth=1), 0, 5, error="oh"))
    assert "1 of 1 final trainings" in view.status()


def test_an_early_end_is_called_so() -> None:
    stream = io.StringIO()
    try:
        with Progress("x", planned_epochs=8, stream=stream, now=Clock()) as view:
            view(Started(trial(0)))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert stream.getvalue().endswith("x: ended early, 0 trials, 1 running, 0 epochs, 0:00\n")


def test_what_an_error_says_is_no_markup() -> None:
    said = io.StringIO()
    with Progress("random", planned_epochs=4, stream=said) as view:
        view(Started(trial(0)))
        view(
            Ended(trial(0).replace(status="failed", error="ValueError: nothing in [/data/x], [batch] :boom:"))
        )
    assert "nothing in [/data/x], [batch] :boom:" in said.getvalue()
