"""What both engines share: the state of a search, the way back into a recorded run, and the checks on an objective."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import sysconfig
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.errors import DISK_FULL, InputError, is_disk_full
from nas.objectives.base import Objective, TrialFailed, trial_folder
from nas.record import TRIALS, Observation, Record
from nas.strategies.base import Strategy, recorded
from nas.trial import ScoreMeasurement, Trial

FAILED_ALIKE = 3
"""So many trials, the first of a search, that end in the same unexpected exception end it: the code is to be mended."""
MAX_CONSECUTIVE_FAILURES = 100
"""So many failures, with no measurement between them, end a search: it may have no other end."""


@dataclasses.dataclass(frozen=True)
class Started:
    """A trial was proposed, or promoted to the larger ``trial.budget``."""

    trial: Trial
    replayed: bool = False
    """Whether this is told from the record of a resumed run rather than happening now."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """``trial.measurements[-1]`` is new."""

    trial: Trial
    replayed: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """A trial is over: ``trial.status`` is completed, stopped or failed."""

    trial: Trial
    replayed: bool = False


@dataclasses.dataclass(frozen=True)
class BudgetSpent:
    """The search ends here because ``total_epochs`` are spent."""

    total_epochs: int


Event = Started | Measured | Ended | BudgetSpent
Listener = Callable[[Event], None]


class SearchState:
    """A search as recorded so far, with all that must keep step with the record: budget, listeners, checkpoints.

    Args:
        record: made or resumed by the caller; the only writer of its folder.
        epochs: R, the units after which a trial is completed; one that ends with less was stopped.
        total_epochs: the units that all trials together may spend; None for no limit.
        on_event: hears of everything that happens, and of everything recorded before a resumption.
        choosing_seconds: what choosing trials took since this was last asked; it is among the
            ``evaluate_seconds`` of the next measurement, or of the next trial that ends.

    Every method that writes raises `InputError` where the record cannot be written.
    """

    def __init__(
        self,
        record: Record,
        *,
        epochs: int,
        total_epochs: int | None = None,
        on_event: Listener | None = None,
        choosing_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        if total_epochs is not None and total_epochs < 1:
            raise InputError(f"search: total_epochs={total_epochs} is less than 1")
        self._record = record
        self._epochs, self._total_epochs = epochs, total_epochs
        self._choosing_seconds = choosing_seconds
        self._tell = on_event or (lambda event: None)
        self._running = {trial.id for trial in record.trials.values() if trial.status == "running"}
        self._spent = sum(trial.spent for trial in record.trials.values())
        self._failures = 0
        self._alike: list[str] = []
        self.asking = False
        """Whether the record that was replayed ends where trials were asked for, of which more may follow."""

    @property
    def trials(self) -> Mapping[int, Trial]:
        """Every trial of the run as recorded."""
        return self._record.trials

    @property
    def history(self) -> tuple[Observation, ...]:
        """Every measurement of the run in the order recorded."""
        return self._record.run().history

    @property
    def running(self) -> frozenset[int]:
        """Ids of the trials that have not ended."""
        return frozenset(self._running)

    @property
    def full(self) -> bool:
        """Whether the search's whole budget is spent."""
        return self._total_epochs is not None and self._spent >= self._total_epochs

    @property
    def checkpoints(self) -> Path:
        """The folder that `trial_folder` divides among trials."""
        return self._record.folder / "checkpoints"

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on to the larger ``trial.budget``; nothing where that is recorded."""
        known = self.trials.get(trial.id)
        self._record.start(trial)
        if known is None or trial.budget > known.budget:
            self._running.add(trial.id)
            self._tell(Started(self.trials[trial.id]))

    def measure(self, trial: Trial) -> None:
        """``trial`` has a new measurement, its last."""
        before = self.trials[trial.id].spent
        measurement = trial.measurements[-1]
        if seconds := self._choosing_seconds():
            measurement = dataclasses.replace(
                measurement, evaluate_seconds=measurement.evaluate_seconds + seconds
            )
        self._record.measure(trial.id, measurement, params=trial.params, macs_per_image=trial.macs_per_image)
        self._spent += measurement.budget - before
        self._failures = 0
        self._tell(Measured(self.trials[trial.id]))

    def fail(self, trial_id: int, failure: TrialFailed) -> None:
        """The trial is over, with a reason; the search is, too, where nothing but failures came lately.

        Raises:
            InputError: this was the last of ``MAX_CONSECUTIVE_FAILURES`` failures in a row, or of the first
                ``FAILED_ALIKE`` trials, which all failed in the same unexpected way.
        """
        line = one_line(str(failure))
        kept = self._record.keep_traceback(trial_id, failure.traceback) if failure.traceback else None
        seconds = {
            name: getattr(failure, name) for name in ("compile_seconds", "train_seconds", "evaluate_seconds")
        }
        self._end(trial_id, "failed", line, **seconds)
        self._failures += 1
        # The message may name shapes, which differ with the architecture.
        self._alike.append(f"{line.partition(':')[0]} {line.rpartition(' (')[2]}" if kept else "")
        if self._spent == 0 and kept and self._alike == FAILED_ALIKE * self._alike[:1]:
            raise InputError(
                f"search: the first {FAILED_ALIKE} trials failed alike: {line}; whole traceback: {kept}; "
                "once that is mended, --resume goes on"
            )
        if self._failures == MAX_CONSECUTIVE_FAILURES:
            raise InputError(
                f"search: {MAX_CONSECUTIVE_FAILURES} trials failed in a row, the last with: {line}"
            )

    def end(self, ids: Iterable[int]) -> None:
        """These trials are over, if they have not ended already: completed or, with less than R, stopped."""
        for trial_id in sorted(self._running.intersection(ids)):
            spent = self.trials[trial_id].spent
            self._end(trial_id, "completed" if spent >= self._epochs else "stopped")

    def close(self) -> None:
        """The search is over: so is every trial; checkpoints are of no more use."""
        if self.full and self._total_epochs is not None:
            self._tell(BudgetSpent(self._total_epochs))
        self.end(self.running)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def replay(self, strategy: Strategy) -> deque[Trial]:
        """Put the fresh ``strategy`` where the record leaves off; nothing is computed.

        The strategy is asked and told in the recorded order and given the recorded architectures, so
        that it knows what it knew, also where parallel workers made the order. Trials that the strategy
        had dropped, but whose end was not written any more, are ended.

        Returns:
            The trials asked but not told, with their measurements, in the order asked: what was under way.

        Raises:
            InputError: the strategy does not propose the trials that are in the record.
        """
        strategy = recorded(strategy, {trial.id: trial.arch for trial in self.trials.values()})
        asked: dict[int, Trial] = {}
        for event in _recorded_events(self._record):
            trial_id = event["id"]
            final = self.trials[trial_id]
            self.asking = event["event"] in ("trial", "promotion")
            if self.asking:
                while trial_id not in asked or asked[trial_id].budget < event["budget"]:
                    trial = strategy.ask()
                    if trial is None:
                        raise InputError(
                            f"{self._record.folder}: the strategy no longer proposes trial {trial_id} with budget "
                            f"{event['budget']}, so the search has changed since; choose another --out"
                        )
                    asked[trial.id] = trial
                self._tell(Started(asked[trial_id], replayed=True))
            elif event["event"] == "measurement":
                trial = asked[trial_id]
                trial = trial.add(final.measurements[len(trial.measurements)])
                asked[trial_id] = trial.replace(params=final.params, macs_per_image=final.macs_per_image)
                if trial.spent >= trial.budget or trial.ended:
                    strategy.tell(asked.pop(trial_id))
                self._tell(Measured(trial, replayed=True))
            else:
                if trial_id in asked:
                    strategy.tell(asked.pop(trial_id).replace(status=final.status, error=final.error))
                self._tell(Ended(final, replayed=True))
        if not self.full:  # else `close` ends them, as it would have done without the interruption
            self.end(self.running - strategy.paused - asked.keys())
        return deque(asked.values())

    def _end(self, trial_id: int, status: Any, error: str | None = None, **seconds: float) -> None:
        if choosing := self._choosing_seconds():
            seconds["evaluate_seconds"] = seconds.get("evaluate_seconds", 0.0) + choosing
        self._record.end(trial_id, status, error, **seconds)
        self._running.discard(trial_id)
        shutil.rmtree(trial_folder(self.checkpoints, trial_id), ignore_errors=True)
        self._tell(Ended(self.trials[trial_id]))


def evaluate(objective: Objective, trial: Trial) -> Generator[Trial, None, None]:
    """``trial`` after each of its units from ``trial.spent`` to ``trial.budget``, each with one measurement more.

    ``params`` and ``macs_per_image`` are filled in.

    Raises:
        TrialFailed: whatever went wrong in the objective, in one line; also a measurement that is none
            (a validation accuracy that is not a number, a unit left out).
        OSError: the disk is full (see `raise_if_disk_full`), which is no trial's fault.
    """
    began = time.perf_counter()
    measurements: Iterator[Any] = iter(())
    try:
        if trial.params is None and trial.macs_per_image is None:
            params, macs_per_image = objective.describe(trial)
            trial = trial.replace(params=params, macs_per_image=macs_per_image)
        measurements = objective(trial)
        while trial.spent < trial.budget:
            measurement = next(measurements, None)
            if measurement is None:
                raise TrialFailed(f"the objective ended after {trial.spent} of {trial.budget} units")
            if measurement.budget != trial.spent + 1:
                raise TrialFailed(f"the objective measured unit {measurement.budget} after {trial.spent}")
            if math.isnan(measurement.value):
                name = "score" if isinstance(measurement, ScoreMeasurement) else "valid_accuracy"
                raise TrialFailed(f"{name} is not a number after {measurement.budget} units")
            for name in ("valid_accuracy", "train_accuracy"):
                accuracy = getattr(measurement, name)
                if accuracy < 0 or accuracy > 1:  # either may be NaN, as those of a score are
                    raise TrialFailed(f"{name} {accuracy} is not between 0 and 1")
            if measurement.budget == trial.budget or measurement.last:
                # First: who hears of the last unit may give the trial to another worker, or end it.
                _close(measurements)
            trial = trial.add(measurement)
            yield trial
            if measurement.last:
                return
            began = time.perf_counter()
    except TrialFailed as failure:
        raise_if_disk_full(failure)
        if not (failure.compile_seconds or failure.train_seconds or failure.evaluate_seconds):
            failure.train_seconds = time.perf_counter() - began
        raise
    except SystemExit as stop:
        seconds = time.perf_counter() - began
        raise TrialFailed(f"it called sys.exit({stop.code!r})", train_seconds=seconds) from stop
    except Exception as error:
        raise_if_disk_full(error)
        seconds = time.perf_counter() - began
        expected = isinstance(error, InputError | MemoryError)  # of one architecture, not of the code
        told = "" if expected else "".join(traceback.format_exception(error))
        raise TrialFailed(describe_error(error), train_seconds=seconds, traceback=told) from error
    finally:
        with contextlib.suppress(Exception):  # left early or failed: what closing says changes nothing
            _close(measurements)


def _close(measurements: Iterator[Any]) -> None:
    if isinstance(measurements, Generator):
        measurements.close()


def raise_if_disk_full(error: Exception) -> None:
    """Raises OSError (ENOSPC) where ``error`` is a full disk: the search ends, and the trials under way stay open."""
    if is_disk_full(error):
        where = error.filename if isinstance(error, OSError) else None
        raise OSError(errno.ENOSPC, DISK_FULL[0], where or "a checkpoint") from error


def describe_error(error: BaseException) -> str:
    """An unexpected exception in one line: its kind, what it says, and file and line of the code to look at."""
    if isinstance(error, MemoryError):
        return f"MemoryError: {one_line(str(error)) or 'out of memory'}"
    place = None if isinstance(error, InputError) else place_of(error)
    where = f" ({place})" if place else ""
    says = one_line(str(error), 300 - len(type(error).__name__) - len(where) - 2)
    return (f"{type(error).__name__}: {says}" if says else type(error).__name__) + where


def place_of(error: BaseException) -> str | None:
    """``file.py:12`` of the innermost frame that is neither a library's nor this package's; else of this package's.

    The name of the file alone: the same on every machine, and whole in the traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))]
    theirs = [frame for frame in own if not frame.filename.startswith(_NAS)]
    found = next(reversed(theirs or own), None)
    return None if found is None else f"{Path(found.filename).name}:{found.lineno}"


_NAS = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def one_line(text: str, longest: int = 300) -> str:
    """``text`` with all white space made single blanks, cut to ``longest`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _recorded_events(record: Record) -> Iterator[dict[str, Any]]:
    """What happened to trials, in the recorded order; `Record` has checked and mended the file."""
    with (record.folder / TRIALS).open(encoding="utf-8") as lines:
        events = (json.loads(line) for line in lines)
        yield from (
            event for event in events if event["event"] in ("trial", "promotion", "measurement", "end")
        )
