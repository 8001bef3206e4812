"""The live view of a run: a status line that is redrawn in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nas.run.driver import BudgetSpent, Ended, Event, Measured, Started
from nas.trial import Final, MeasurementWithValues, ScoreMeasurement, Trial, values_text


class FinalTrainings(NamedTuple):
    """The trainings that follow a search: how many, how long, and how many of them side by side."""

    count: int
    epochs: int
    workers: int = 1


class Follower(Protocol):
    """Another listener, which hears of final trainings too."""

    def __call__(self, event: Event) -> None: ...

    def final(self, final: Final) -> None: ...


class Progress:
    """A listener for the engines: ``with Progress("random", planned_epochs=90) as view: search(…, on_event=view)``.

    Shows what is under way, trials done, failed and running, epochs spent of those planned, the best validation
    accuracy so far with its trial, and the time left to the end of all, final trainings included.

    Args:
        planned_epochs: of the search at most.
        planned_trials: where the search ends after so many trials, each with any number of epochs; those to come
            are then expected to take as many as those that have ended.
        finals: the trainings after the search.
        patience_seconds: outside a terminal a stage is told when it has lasted so long: bad input stays one line.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        title: str,
        *,
        planned_epochs: int | None = None,
        planned_trials: int | None = None,
        finals: FinalTrainings | None = None,
        stream: TextIO | None = None,
        patience_seconds: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._planned, self._planned_trials = planned_epochs, planned_trials
        self._trials: dict[int, Trial] = {}
        self._done: dict[str, int] = {}
        self._running: set[int] = set()
        self._best: Trial | None = None
        self._lost = 0  # epochs given to trials that failed before them
        self._finals = finals or FinalTrainings(0, 0)
        self._finals_begun: float | None = None
        self._tested: list[Final] = []
        self._stage = ""
        self._now, self._started = now, now()
        self._work: list[tuple[float, int]] = []  # when so many epochs were spent, of this process's own
        self._patience_seconds = patience_seconds
        self._timer: threading.Timer | None = None
        self._over = ""
        self.followers: list[Follower] = []
        """These hear, after this, of all that this hears of."""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            # Redrawn by its own clock; asking for the text only then keeps the search free of it.
            self._live = Live(
                console=self._console, get_renderable=lambda: Text(self.status()), refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enter_stage("")
        self._over = "done" if kind is None else "ended early"
        if self._live is not None:
            self._live.stop()
        elif self._trials or kind is None:
            self._console.print(self.status(), soft_wrap=True)

    def stage(self, doing: str) -> None:
        """What is under way until the first trial is measured, such as ``loading digits``."""
        if doing != self._stage:
            self._enter_stage(doing)

    def _enter_stage(self, doing: str) -> None:
        self._stage = doing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if doing and self._live is None:
            self._timer = threading.Timer(self._patience_seconds, self._say, [doing])
            self._timer.daemon = True
            self._timer.start()

    def __call__(self, event: Event) -> None:
        self._hear(event)
        for follower in self.followers:
            follower(event)

    def _hear(self, event: Event) -> None:
        if isinstance(event, BudgetSpent):
            self._say(f"the budget of {event.total_epochs} epochs is spent")
            return
        trial = event.trial
        before = self._trials.get(trial.id)
        self._trials[trial.id] = trial
        if not event.replayed and not self._work:
            self._work.append((self._now(), 0))
        if isinstance(event, Started):
            self._running.add(trial.id)
        elif isinstance(event, Measured):
            if not event.replayed:
                self._enter_stage("")
                spent = self._work[-1][1] + trial.spent - (before.spent if before is not None else 0)
                self._work.append((self._now(), spent))
            if trial.feasible and (self._best is None or trial.score > self._best.score):
                self._best = trial
        elif isinstance(event, Ended):
            self._running.discard(trial.id)
            self._done[trial.status] = self._done.get(trial.status, 0) + 1
            if trial.status == "failed":
                self._lost += max(0, trial.budget - trial.spent)
            if not event.replayed:
                self._enter_stage("")
                self._say(describe(trial))

    def begin_finals(self, count: int) -> None:
        """The search is over; ``count`` trainings of its best network begin."""
        self._finals, self._finals_begun = self._finals._replace(count=count), self._now()

    def final(self, final: Final) -> None:
        """One more of them is done."""
        self._tested.append(final)
        name = f"final training {len(self._tested)} of {self._finals.count}"
        told = f"failed: {final.error}" if final.error else f"test {final.test_accuracy:.4f}"
        self._say(f"{name}: {told}, {final.epochs} epochs, {final.seconds:.1f} s")
        for follower in self.followers:
            follower.final(final)

    def status(self) -> str:
        """One line that says how the run stands; nothing where it ended before its first trial."""
        if self._over == "ended early" and not self._trials:
            return ""
        spent = sum(trial.spent for trial in self._trials.values())
        done, failed = sum(self._done.values()), self._done.get("failed", 0)
        begun, testing = bool(self._trials), self._finals_begun is not None
        elapsed = clock(self._now() - self._started)
        epochs = f"{spent} of {self._planned} epochs" if self._planned else f"{spent} epochs"
        finals = f"{len(self._tested)} of {self._finals.count} final trainings" if self._finals.count else ""
        trials = (
            f"{done} trials" + ("" if self._over else " done") + (f" ({failed} failed)" if failed else "")
        )
        parts = [
            self._over,
            self._stage if not self._over else "",
            trials if begun else "",
            f"{len(self._running)} running" if self._running else "",
            (f"{spent} epochs" if testing or self._over else epochs) if begun else "",
            f"best {self._best.score:.4f} (trial {self._best.id})" if self._best else "",
            finals if testing else "",
            elapsed,
        ]
        left = None if self._over else self.seconds_left()
        if left is not None:
            parts.append(f"about {clock(left)} left")
        return f"{self.title}: {', '.join(part for part in parts if part)}"

    def seconds_left(self) -> float | None:
        """To the end of the run, by the pace of the later half of what was done; None where nothing tells."""
        if self._finals_begun is not None:
            return self._finals_left()
        epochs, pace = self._epochs_left(), self._pace()
        if epochs is None or pace is None:
            return None
        return epochs * pace + (self._finals_left() or 0)

    def _epochs_left(self) -> float | None:
        if self._planned is None:
            return None
        spent = sum(trial.spent for trial in self._trials.values())
        if self._planned_trials is None:
            return max(0, self._planned - spent - self._lost)
        ended = [t.spent for t in self._trials.values() if t.status != "running"]
        each = sum(ended) / len(ended) if any(ended) else self._planned / self._planned_trials
        under_way = sum(max(0.0, each - self._trials[i].spent) for i in self._running)
        return under_way + each * max(0, self._planned_trials - len(ended) - len(self._running))

    def _pace(self) -> float | None:
        """Seconds of the clock an epoch; the start of the workers is no part of it once there are two."""
        work = self._work
        if len(work) < 2:
            return None
        # Later ones tell more: programs are compiled by then, and bandits give fewer trials more epochs.
        time, spent = work[0] if len(work) == 2 else work[max(1, len(work) // 2)]
        if work[-1][1] == spent:
            return None
        return (self._now() - time) / (work[-1][1] - spent)

    def _finals_left(self) -> float | None:
        """Of the final trainings: their epochs at the pace of the best trial, or of those that are done."""
        count, epochs, workers = self._finals
        done = [final.seconds for final in self._tested if not final.error]
        if done:
            each = sum(done) / len(done)
        elif self._best is not None and not isinstance(self._best.measurements[-1], ScoreMeasurement):
            parts = [m.train_seconds + m.evaluate_seconds for m in self._best.measurements]
            compiled = sum(m.compile_seconds for m in self._best.measurements)
            each = compiled + epochs * sum(parts) / len(parts)
        else:
            return None
        rounds = -(-(count - len(self._tested)) // max(1, workers))
        if self._finals_begun is None:
            return rounds * each
        under_way = self._now() - self._finals_begun - (len(self._tested) // max(1, workers)) * each
        left = rounds * each - max(0.0, under_way)
        return left if left > 0 else None

    def _say(self, line: str) -> None:
        if self._live is None:
            self._console.print(f"{self.title}: {line}", soft_wrap=True)
        else:
            self._live.console.print(line, soft_wrap=True)


def describe(trial: Trial) -> str:
    """One line on a trial that is over."""
    head = f"trial {trial.id} {trial.status}"
    if trial.error:
        return f"{head}: {trial.error}"
    if not trial.measurements:
        return f"{head}: not measured"
    seconds = sum(m.seconds for m in trial.measurements)
    last = trial.measurements[-1]
    if isinstance(last, MeasurementWithValues):
        kept = "" if last.violation == 0 else ", violates a constraint" + ", not trained" * last.untrained
        return f"{head}: {values_text(last.values)}{kept}, {seconds:.1f} s"
    if isinstance(last, ScoreMeasurement):
        return f"{head}: score {trial.score:.6g}, {seconds:.1f} s"
    accuracy = f"valid {trial.score:.4f}"
    if math.isnan(trial.score):  # trained on the validation images too
        accuracy = f"train {trial.measurements[-1].train_accuracy:.4f}"
    return f"{head}: {accuracy} after {trial.spent} epochs, {seconds:.1f} s"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
