"""The live view of a search: a status line that is redrawn in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nas.run.driver import BudgetSpent, Ended, Event, Measured, Started
from nas.trial import ScoreMeasurement, Trial


class Progress:
    """A listener for the engines: ``with Progress("random", planned_epochs=90) as view: search(…, on_event=view)``.

    Shows trials done, failed and running, epochs spent of those planned, the best validation accuracy so
    far with its trial, and the time left, judged by the pace since the start or the resumption.
    """

    def __init__(
        self, title: str, *, planned_epochs: int | None = None, stream: TextIO | None = None
    ) -> None:
        self.title, self.planned = title, planned_epochs
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._spent: dict[int, int] = {}
        self._done: dict[str, int] = {}
        self._running: set[int] = set()
        self._best: Trial | None = None
        self._replayed = 0
        self._started = time.monotonic()

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
        if self._live is not None:
            self._live.stop()
        else:
            self._console.print(self.status(), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._running.add(event.trial.id)
        elif isinstance(event, Measured):
            trial = event.trial
            if event.replayed:
                self._replayed += trial.spent - self._spent.get(trial.id, 0)
            self._spent[trial.id] = trial.spent
            if not math.isnan(trial.score) and (self._best is None or trial.score > self._best.score):
                self._best = trial
        elif isinstance(event, Ended):
            self._running.discard(event.trial.id)
            self._done[event.trial.status] = self._done.get(event.trial.status, 0) + 1
            if not event.replayed:
                self._say(describe(event.trial))
        elif isinstance(event, BudgetSpent):
            self._say(f"the budget of {event.total_epochs} epochs is spent")

    def status(self) -> str:
        """One line that says how the search stands."""
        spent = sum(self._spent.values())
        done = sum(self._done.values())
        failed = self._done.get("failed", 0)
        parts = [
            f"{self.title}: {done} trials done" + (f" ({failed} failed)" if failed else ""),
            f"{len(self._running)} running" if self._running else "",
            f"{spent} of {self.planned} epochs" if self.planned else f"{spent} epochs",
            f"best {self._best.score:.4f} (trial {self._best.id})" if self._best else "",
            clock(time.monotonic() - self._started),
        ]
        new = spent - self._replayed
        if self.planned and new > 0 and spent < self.planned:
            pace = (time.monotonic() - self._started) / new
            parts.append(f"about {clock(pace * (self.planned - spent))} left")
        return ", ".join(part for part in parts if part)

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
    if isinstance(trial.measurements[-1], ScoreMeasurement):
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
