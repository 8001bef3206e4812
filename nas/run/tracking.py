"""A running search shown by the trackers that ``--log`` names."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.report.trackers import TRACKERS, Tracker
from nas.run.driver import Ended, Event, Measured, one_line
from nas.trial import Final


class Tracking:
    """A listener for the engines. A tracker that fails is given up with a note: no search ends by it.

    After a resumption what the record holds is told again, and replaces what was there.
    """

    def __init__(self, trackers: Mapping[str, Callable[[], Tracker]]) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name, make in trackers.items():
            with self._given_up(name):
                self._trackers[name] = make()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Measured):
            trial = event.trial
            self._tell(lambda tracker: tracker.measured(trial))
        elif isinstance(event, Ended):
            trial = event.trial
            self._tell(lambda tracker: tracker.ended(trial))

    def final(self, final: Final) -> None:
        self._tell(lambda tracker: tracker.final(final))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._given_up(name):
                tell(tracker)

    @contextlib.contextmanager
    def _given_up(self, name: str) -> Iterator[None]:
        """Within, what goes wrong is the end of that tracker alone."""
        try:
            yield
        except InputError:  # it is not installed, which is said at once
            raise
        except Exception as error:
            self._trackers.pop(name, None)
            told = f"{type(error).__name__}: {one_line(str(error))}"
            print(f"note: {name} is given up ({told}); the record has it all", file=sys.stderr, flush=True)


@contextlib.contextmanager
def tracking(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Iterator[Tracking]:
    """The trackers of these names for the run in ``folder``, each with a folder of its name there."""
    held = Tracking({name: functools.partial(TRACKERS[name], folder / name, config) for name in names})
    try:
        yield held
    finally:
        held.close()
