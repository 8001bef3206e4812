"""The record of a run: a folder with ``config.json``, ``env.json`` and the append-only ``trials.jsonl``.

``trials.jsonl`` holds one JSON object a line:

- ``trial``: ``id, arch, seed, budget, bracket, rung, params, macs_per_image``; once an id.
- ``promotion``: ``id, budget, bracket, rung``; the trial goes on to a larger budget.
- ``measurement``: ``id`` and the fields of `Measurement` or of its kind (`MeasurementWithTest`, `ScoreMeasurement`,
  `MeasurementWithValues`, `SupernetMeasurement`); with ``params`` and ``macs_per_image`` where the trial's own line did
  not know them yet.
- ``end``: ``id, status, error`` (``completed``, ``stopped`` or ``failed``), and the seconds of a unit that
  was under way and gave no measurement.
- ``final``: the fields of `Final`; one training of a chosen architecture to the end, tested.
- ``done``: the run came to its end.

Times live in keys that end in ``_seconds`` and nowhere else, so two runs are compared "times aside" by
dropping those (`same_record`). JSON has no NaN and no infinity: both are written as null, and read as NaN.

How the file is written, and what a kill leaves of it: `nas.record.files`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.record.fields import integer, integer_or_none, number, numbers, seconds_of
from nas.record.run import Observation, Run
from nas.space import Architecture
from nas.trial import (
    Final,
    Measurement,
    MeasurementWithValues,
    SupernetMeasurement,
    Trial,
    measurement_kind,
)

TRIALS = "trials.jsonl"


class RunState:
    """A run as far as its lines have been read.

    `accept` checks one more line and returns a function that applies it, so that a line is checked before it is
    written and applied after.
    """

    def __init__(self) -> None:
        self.trials: dict[int, Trial] = {}
        self.finals: list[Final] = []
        self.history: list[Observation] = []
        self.done = False
        self.wall_seconds = 0.0
        self.lost = {"compile_seconds": 0.0, "train_seconds": 0.0, "evaluate_seconds": 0.0}

    def accept(self, event: Any) -> Callable[[], None]:
        """Raises ValueError, in a few words, for a line that does not fit behind those before it."""
        if not isinstance(event, dict):
            raise ValueError("not a JSON object")
        accept = {
            "trial": self._trial,
            "promotion": self._promotion,
            "measurement": self._measurement,
            "end": self._end,
            "final": self._final,
            "done": self._done,
        }
        kind = event.get("event")
        if not isinstance(kind, str) or kind not in accept:
            raise ValueError(f"event={kind!r} is not one of {', '.join(accept)}")
        return accept[kind](event)

    def run(self, folder: Path, config: dict[str, Any], env: dict[str, Any]) -> Run:
        seconds = {
            name: lost + math.fsum(getattr(seen.measurement, name) for seen in self.history)
            for name, lost in self.lost.items()
        }
        return Run(
            folder=folder,
            config=config,
            env=env,
            trials=dict(self.trials),
            finals=tuple(self.finals),
            history=tuple(self.history),
            done=self.done,
            wall_seconds=self.wall_seconds,
            **seconds,
        )

    def _trial(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = Trial(
            id=integer(event, "id", 0),
            arch=_arch(event),
            budget=integer(event, "budget", 1),
            seed=integer(event, "seed"),
            bracket=integer_or_none(event, "bracket"),
            rung=integer_or_none(event, "rung"),
            params=integer_or_none(event, "params"),
            macs_per_image=integer_or_none(event, "macs_per_image"),
        )
        if trial.id in self.trials:
            raise ValueError(f"trial {trial.id} a second time")
        return lambda: self.trials.update({trial.id: trial})

    def _promotion(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = self._running(event)
        budget = integer(event, "budget")
        if budget <= trial.budget:
            raise ValueError(f"trial {trial.id} promoted from budget {trial.budget} to {budget}")
        trial = trial.replace(
            budget=budget,
            bracket=integer_or_none(event, "bracket"),
            rung=integer_or_none(event, "rung"),
        )
        return lambda: self.trials.update({trial.id: trial})

    def _measurement(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = self._running(event)
        measurement = _measured(event)
        if measurement.budget <= trial.spent:
            raise ValueError(f"trial {trial.id} measured at budget {measurement.budget} after {trial.spent}")
        seen = Observation(trial.id, measurement, seconds_of(event, "elapsed_seconds"))
        trial = trial.add(measurement)
        for name in ("params", "macs_per_image"):
            if event.get(name) is not None:
                trial = trial.replace(**{name: integer(event, name, 0)})

        def commit() -> None:
            self.trials[trial.id] = trial
            self.history.append(seen)
            self._tick(seen.elapsed_seconds)

        return commit

    def _end(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = self._running(event)
        status, error = event.get("status"), event.get("error")
        if status not in ("completed", "stopped", "failed"):
            raise ValueError(f"status={status!r} is not one of completed, stopped, failed")
        if status == "failed" and not error:
            raise ValueError(f"trial {trial.id} failed without a reason")
        lost = {name: seconds_of(event, name) for name in self.lost}
        trial = trial.replace(status=status, error=None if error is None else str(error))

        def commit() -> None:
            self.trials[trial.id] = trial
            for name, seconds in lost.items():
                self.lost[name] += seconds

        return commit

    def _final(self, event: dict[str, Any]) -> Callable[[], None]:
        error = event.get("error")
        final = Final(
            arch=_arch(event),
            seed=integer(event, "seed"),
            epochs=integer(event, "epochs", 0),
            params=integer_or_none(event, "params"),
            macs_per_image=integer_or_none(event, "macs_per_image"),
            error=None if error is None else str(error),
            evaluation=str(event.get("evaluation", "centre")),
            **numbers({"test_top5_accuracy": None, **event}, _TESTED),
        )
        if any(
            (old.arch, old.seed, old.epochs) == (final.arch, final.seed, final.epochs) for old in self.finals
        ):
            raise ValueError(f"a second final training of one architecture with seed {final.seed}")
        elapsed = seconds_of(event, "elapsed_seconds")

        def commit() -> None:
            self.finals.append(final)
            self._tick(elapsed)

        return commit

    def _done(self, event: dict[str, Any]) -> Callable[[], None]:
        elapsed = seconds_of(event, "elapsed_seconds")

        def commit() -> None:
            self.done = True
            self._tick(elapsed)

        return commit

    def _running(self, event: dict[str, Any]) -> Trial:
        trial = self.trials.get(integer(event, "id"))
        if trial is None:
            raise ValueError(f"{event['event']} of trial {event['id']}, which was not started")
        if trial.status != "running":
            raise ValueError(f"{event['event']} of trial {trial.id}, which has ended ({trial.status})")
        return trial

    def _tick(self, elapsed_seconds: float) -> None:
        self.wall_seconds = max(self.wall_seconds, elapsed_seconds)


def _measured(event: Mapping[str, Any]) -> Measurement:
    kind = measurement_kind(event)
    further: dict[str, Any] = {}
    if kind is SupernetMeasurement:
        further = {"derived": _arch(event, "derived"), "skips": integer(event, "skips", 0)}
        further |= {"weights": _weights(event), "stopped": event.get("stopped") is True}
    if kind is MeasurementWithValues:
        further = {"values": _values(event), "signed": _signed(event)}
        further |= {"untrained": event.get("untrained") is True}
    budget = integer(event, "budget", 1)
    return kind(budget=budget, **numbers(event, _float_fields(kind)), **further)


def _weights(event: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    weights = event.get("weights")
    if not isinstance(weights, dict) or not all(isinstance(of, dict) for of in weights.values()):
        raise ValueError(f"weights={weights!r} are not JSON objects by choice")
    return {name: {value: number(of, value) for value in of} for name, of in weights.items()}


def _values(event: Mapping[str, Any]) -> dict[str, float]:
    values = event.get("values")
    if not isinstance(values, dict):
        raise ValueError(f"values={values!r} is not a JSON object")
    # What a function of the user's is called says nothing of its range.
    return {name: number({"values": value}, "values") for name, value in values.items()}


def _signed(event: Mapping[str, Any]) -> tuple[float, ...]:
    signed = event.get("signed")
    if not isinstance(signed, list) or not signed:
        raise ValueError(f"signed={signed!r} is not a list of numbers")
    return tuple(number({"signed": value}, "signed") for value in signed)


@functools.cache
def _float_fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.type == "float")


_TESTED = _float_fields(Final)


def _arch(event: Mapping[str, Any], name: str = "arch") -> Architecture:
    if not isinstance(event.get(name), dict):
        raise ValueError(f"{name}={event.get(name)!r} is not a JSON object")
    return Architecture.from_json(event[name])


def replay(path: Path, lines: Iterable[Any]) -> RunState:
    """The run that the lines of the file at ``path`` describe. Raises InputError, which names file and line."""
    state = RunState()
    for place, line in enumerate(lines, 1):
        try:
            if isinstance(line, ValueError):
                raise line
            state.accept(line)()
        except ValueError as error:
            raise InputError(f"{path}:{place}: {error}") from error
    return state
