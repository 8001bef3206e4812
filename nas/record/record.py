"""The record of a run: a folder with ``config.json``, ``env.json`` and the append-only ``trials.jsonl``.

``trials.jsonl`` holds one JSON object a line:

- ``trial``: ``id, arch, seed, budget, bracket, rung, params, macs_per_image``; once an id.
- ``promotion``: ``id, budget, bracket, rung``; the trial goes on to a larger budget.
- ``measurement``: ``id`` and the fields of `Measurement` or of its kind (`MeasurementWithTest`, `ScoreMeasurement`,
  `SupernetMeasurement`); with ``params`` and ``macs_per_image`` where the trial's own line did not know them yet.
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
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from nas.errors import InputError
from nas.record.files import CONFIG, ENV, Lines, holds, parsed, plain, read, read_json
from nas.space import Architecture
from nas.trial import Final, Measurement, Status, SupernetMeasurement, Trial, measurement_kind

TRIALS = "trials.jsonl"


class Observation(NamedTuple):
    """A measurement in its place in time: ``elapsed_seconds`` is how long the run had been going by then."""

    trial_id: int
    measurement: Measurement
    elapsed_seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run folder says. ``history`` has the measurements of all trials in the order recorded.

    ``wall_seconds`` is how long the run was going (time between a crash and its resumption left out);
    the other ``*_seconds`` are sums over the search's trials, on whichever workers they ran.
    """

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    trials: Mapping[int, Trial]
    finals: tuple[Final, ...]
    history: tuple[Observation, ...]
    done: bool
    wall_seconds: float
    compile_seconds: float
    train_seconds: float
    evaluate_seconds: float

    @property
    def is_search(self) -> bool:
        """False for a run that trains one architecture: its trials are the final trainings on their way."""
        return self.config.get("strategy") is not None

    @property
    def strategy(self) -> str:
        return str(self.config["strategy"]) if self.is_search else "training"

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def best(self) -> Trial | None:
        """The trial with the highest `Trial.score` among those not failed, whatever its budget.

        The score is the validation accuracy at the trial's last measurement; of equals the lower id.
        None while nothing was measured.
        """
        scored = [trial for trial in self.trials.values() if math.isfinite(trial.score)]
        return max(scored, key=lambda trial: (trial.score, -trial.id), default=None)

    @property
    def failed(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials.values() if trial.status == "failed")

    @property
    def epochs_spent(self) -> int:
        """Budget units done by all trials, failed ones too."""
        return sum(trial.spent for trial in self.trials.values())

    @property
    def seconds(self) -> float:
        """Compute seconds of the search: compiling, training and evaluating, summed over workers."""
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds


class Record:
    """The writer of one run folder; made by `create` or `resume`, closed by ``with`` or `close`.

    What was written is at hand in ``trials`` and ``finals``, exactly as a reader would see it. Every
    method that writes either has its line on the disk when it returns, or raises `InputError` (disk full,
    folder removed) and leaves both the file and the state as they were. Use from one thread.
    """

    def __init__(self, lines: Lines, state: _State) -> None:
        self.folder = lines.folder
        self.config: Mapping[str, Any] = lines.config
        self._lines = lines
        self._state = state
        self._opened = time.monotonic()
        self._elapsed_before = state.wall_seconds

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, Any] | None = None,
        fsync: bool = True,
    ) -> Record:
        """Start a run in ``folder``, which may exist as long as it holds no run.

        Args:
            config: plain JSON values; what a resumption must repeat.
            env: goes to ``env.json``; `environment()` unless given.
            fsync: False survives a kill but not a power cut; for searches on tables, which write fast.

        Raises:
            InputError: the folder holds a run already, is in use, or cannot be written.
        """
        return cls(Lines.create(folder, TRIALS, config, env=env, fsync=fsync), _State())

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        may_differ: Collection[str] = (),
        env: Mapping[str, Any] | None = None,
        fsync: bool = True,
    ) -> Record:
        """Open the run in ``folder`` to go on with it; a torn last line is cut off.

        Args:
            config: must equal the recorded one, but for the keys in ``may_differ``.
            env: as for `create`; where it differs from the recorded one, the differences are added to
                the list ``resumed`` in ``env.json``.

        Raises:
            InputError: no run there, another config, damaged, in use, or not writable.
        """
        states: list[_State] = []

        def accept(lines: Sequence[Any]) -> None:
            states.append(_replay(Path(folder) / TRIALS, lines))

        lines = Lines.resume(folder, TRIALS, config, accept, may_differ=may_differ, env=env, fsync=fsync)
        return cls(lines, states[0])

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock; a second call does nothing."""
        self._lines.close()

    @property
    def trials(self) -> Mapping[int, Trial]:
        """The trials recorded so far by id, in the order started; a live read-only view."""
        return MappingProxyType(self._state.trials)

    @property
    def finals(self) -> tuple[Final, ...]:
        return tuple(self._state.finals)

    @property
    def history(self) -> tuple[Observation, ...]:
        """The measurements of all trials in the order recorded."""
        return tuple(self._state.history)

    @property
    def elapsed_seconds(self) -> float:
        """How long the run has been going, time between a crash and its resumption left out."""
        return self._elapsed_before + time.monotonic() - self._opened

    def run(self) -> Run:
        """What `read_run` would give now."""
        return self._state.run(self.folder, dict(self.config), read_json(self.folder / ENV))

    def start(self, trial: Trial) -> None:
        """Record a proposed trial; when its id is known, its promotion to a larger budget.

        A trial known with this budget or a larger one is not written again, so that a resumed run may
        repeat the whole search from its beginning.

        Raises:
            InputError: the id was recorded with another architecture or seed.
            ValueError: a promotion of a trial that has ended.
        """
        known = self._state.trials.get(trial.id)
        if known is None:
            event: dict[str, Any] = {"event": "trial", "id": trial.id, "arch": dict(trial.arch)}
            event |= {"seed": trial.seed, "budget": trial.budget, "bracket": trial.bracket}
            event |= {"rung": trial.rung, "params": trial.params, "macs_per_image": trial.macs_per_image}
            self._append(event)
            return
        if known.arch != trial.arch or known.seed != trial.seed:
            raise InputError(
                f"{self.folder}: trial {trial.id} was recorded with another architecture or seed, so the "
                "search has changed since; choose another --out"
            )
        if trial.budget > known.budget:
            event = {"event": "promotion", "id": trial.id, "budget": trial.budget}
            self._append(event | {"bracket": trial.bracket, "rung": trial.rung})

    def measure(
        self,
        trial_id: int,
        measurement: Measurement,
        *,
        params: int | None = None,
        macs_per_image: int | None = None,
    ) -> None:
        """Record a measurement; ``params`` and ``macs_per_image`` where `start` did not know them.

        Raises:
            ValueError: the trial is unknown, has ended, or was measured at this budget or a later one.
        """
        event: dict[str, Any] = {"event": "measurement", "id": trial_id, **measurement.fields()}
        known = self._state.trials.get(trial_id)
        if known is not None and known.params is None and params is not None:
            event["params"] = params
        if known is not None and known.macs_per_image is None and macs_per_image is not None:
            event["macs_per_image"] = macs_per_image
        self._append(event | {"elapsed_seconds": self.elapsed_seconds})

    def end(
        self,
        trial_id: int,
        status: Status,
        error: str | None = None,
        *,
        compile_seconds: float = 0.0,
        train_seconds: float = 0.0,
        evaluate_seconds: float = 0.0,
    ) -> None:
        """Record that a trial is over; ending it once more in the same way does nothing.

        Args:
            status: ``completed``, ``stopped`` or ``failed``.
            error: the reason of a failure.
            compile_seconds, train_seconds, evaluate_seconds: spent on a unit that gave no measurement.

        Raises:
            ValueError: unknown trial, or it has ended in another way, or a failure without a reason.
        """
        known = self._state.trials.get(trial_id)
        if known is not None and known.status != "running" and (known.status, known.error) == (status, error):
            return
        event: dict[str, Any] = {"event": "end", "id": trial_id, "status": status, "error": error}
        event |= {"compile_seconds": compile_seconds, "train_seconds": train_seconds}
        self._append(event | {"evaluate_seconds": evaluate_seconds})

    def final(self, final: Final) -> None:
        """Record a training to the end.

        Raises:
            ValueError: this architecture was trained with this seed for these epochs already.
        """
        event = {"event": "final"} | {
            field.name: getattr(final, field.name) for field in dataclasses.fields(final)
        }
        self._append(event | {"arch": dict(final.arch), "elapsed_seconds": self.elapsed_seconds})

    def done(self) -> None:
        """Record that the run came to its end; a second call does nothing."""
        if not self._state.done:
            self._append({"event": "done", "elapsed_seconds": self.elapsed_seconds})

    def _append(self, event: Mapping[str, Any]) -> None:
        if self._lines.closed:
            raise ValueError(f"{self.folder}: the record is closed")
        line = json.dumps(plain(event), allow_nan=False)
        # Read back before it is written: state is what a reader will see, and nonsense never gets out.
        commit = self._state.accept(json.loads(line))
        self._lines.append(line, lambda: f"{len(self._state.history):,} measurements")
        commit()


def is_run(folder: str | Path) -> bool:
    """Whether ``folder`` holds a run, finished or not."""
    return holds(folder, TRIALS)


def read_run(folder: str | Path) -> Run:
    """Read a run folder; a run still being written is read up to its last whole line.

    Raises:
        InputError: not a run folder, or damaged (names file and line).
    """
    folder = Path(folder)
    config, env, lines = read(folder, TRIALS)
    return _replay(folder / TRIALS, lines).run(folder, config, env)


def find_runs(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The run folders among ``paths``: each is one, or is searched for some at any depth; sorted, no doubles.

    A folder whose run was killed before its first line is left out.

    Raises:
        InputError: a path does not exist or has no run in it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder")
        runs = list(_runs_below(path))
        if not runs:
            raise InputError(f"{path}: no run folder in it (one holds {CONFIG} and {TRIALS})")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return tuple(found.values())


def _runs_below(path: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(path):
        # One with trials but no config is damaged: it counts, so that `read_run` names it.
        if TRIALS in files and (CONFIG in files or (Path(folder) / TRIALS).stat().st_size):
            subfolders.clear()  # checkpoints may lie below, many files of them
            yield Path(folder)
        subfolders.sort()


def without_times(value: Any) -> Any:
    """``value`` (JSON) without the keys that end in ``_seconds``, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_times(inner) for key, inner in value.items() if not key.endswith("_seconds")}
    if isinstance(value, list | tuple):
        return [without_times(inner) for inner in value]
    return value


def record_difference(a: str | Path, b: str | Path) -> str | None:
    """Where the ``trials.jsonl`` of two run folders first differ, times aside; None if nowhere."""
    texts = [
        [json.dumps(without_times(event)) for event in parsed((Path(folder) / TRIALS).read_bytes())[0]]
        for folder in (a, b)
    ]
    for number, (left, right) in enumerate(zip(*texts, strict=False), 1):
        if left != right:
            return f"line {number}: {left} != {right}"
    if len(texts[0]) != len(texts[1]):
        return f"{len(texts[0])} lines != {len(texts[1])} lines"
    return None


def same_record(a: str | Path, b: str | Path) -> bool:
    """Whether two run folders have the same ``trials.jsonl``, times aside."""
    return record_difference(a, b) is None


class _State:
    """What the lines so far amount to. `accept` checks one more line and returns what takes it in."""

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
        if kind not in accept:
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
            id=_integer(event, "id"),
            arch=_arch(event),
            budget=_integer(event, "budget"),
            seed=_integer(event, "seed"),
            bracket=_integer_or_none(event, "bracket"),
            rung=_integer_or_none(event, "rung"),
            params=_integer_or_none(event, "params"),
            macs_per_image=_integer_or_none(event, "macs_per_image"),
        )
        if trial.id in self.trials:
            raise ValueError(f"trial {trial.id} a second time")
        return lambda: self.trials.update({trial.id: trial})

    def _promotion(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = self._running(event)
        budget = _integer(event, "budget")
        if budget <= trial.budget:
            raise ValueError(f"trial {trial.id} promoted from budget {trial.budget} to {budget}")
        trial = trial.replace(
            budget=budget,
            bracket=_integer_or_none(event, "bracket"),
            rung=_integer_or_none(event, "rung"),
        )
        return lambda: self.trials.update({trial.id: trial})

    def _measurement(self, event: dict[str, Any]) -> Callable[[], None]:
        trial = self._running(event)
        measurement = _measured(event)
        if measurement.budget <= trial.spent:
            raise ValueError(f"trial {trial.id} measured at budget {measurement.budget} after {trial.spent}")
        seen = Observation(trial.id, measurement, _seconds(event, "elapsed_seconds"))
        trial = trial.add(measurement)
        for name in ("params", "macs_per_image"):
            if event.get(name) is not None:
                trial = trial.replace(**{name: _integer(event, name)})

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
        lost = {name: _seconds(event, name) for name in self.lost}
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
            seed=_integer(event, "seed"),
            epochs=_integer(event, "epochs"),
            params=_integer_or_none(event, "params"),
            macs_per_image=_integer_or_none(event, "macs_per_image"),
            error=None if error is None else str(error),
            evaluation=str(event.get("evaluation", "centre")),
            **_numbers(event, _TESTED),
        )
        if any(
            (old.arch, old.seed, old.epochs) == (final.arch, final.seed, final.epochs) for old in self.finals
        ):
            raise ValueError(f"a second final training of one architecture with seed {final.seed}")
        elapsed = _seconds(event, "elapsed_seconds")

        def commit() -> None:
            self.finals.append(final)
            self._tick(elapsed)

        return commit

    def _done(self, event: dict[str, Any]) -> Callable[[], None]:
        elapsed = _seconds(event, "elapsed_seconds")

        def commit() -> None:
            self.done = True
            self._tick(elapsed)

        return commit

    def _running(self, event: dict[str, Any]) -> Trial:
        trial = self.trials.get(_integer(event, "id"))
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
        further = {"derived": _arch(event, "derived"), "skips": _integer(event, "skips")}
        further |= {"weights": _weights(event), "stopped": event.get("stopped") is True}
    return kind(budget=_integer(event, "budget"), **_numbers(event, _float_fields(kind)), **further)


def _weights(event: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    weights = event.get("weights")
    if not isinstance(weights, dict) or not all(isinstance(of, dict) for of in weights.values()):
        raise ValueError(f"weights={weights!r} are not JSON objects by choice")
    return {name: {value: _number(of, value) for value in of} for name, of in weights.items()}


@functools.cache
def _float_fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.type == "float")


_TESTED = _float_fields(Final)


def _integer(event: Mapping[str, Any], name: str) -> int:
    value = event.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not an integer")
    return value


def _integer_or_none(event: Mapping[str, Any], name: str) -> int | None:
    return None if event.get(name) is None else _integer(event, name)


def _numbers(event: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    return {
        name: _seconds(event, name) if name.endswith("_seconds") else _number(event, name) for name in names
    }


def _number(event: Mapping[str, Any], name: str) -> float:
    value = event.get(name, "missing")
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a number")
    return float(value)


def _seconds(event: Mapping[str, Any], name: str) -> float:
    """Times may be absent (`without_times`); an unknown one counts as none, so that sums stay numbers."""
    return 0.0 if event.get(name) is None else _number(event, name)


def _arch(event: Mapping[str, Any], name: str = "arch") -> Architecture:
    if not isinstance(event.get(name), dict):
        raise ValueError(f"{name}={event.get(name)!r} is not a JSON object")
    return Architecture.from_json(event[name])


def _replay(path: Path, lines: Iterable[Any]) -> _State:
    state = _State()
    for number, line in enumerate(lines, 1):
        try:
            if isinstance(line, ValueError):
                raise line
            state.accept(line)()
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    return state
