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

Safety. The writer holds an exclusive lock on ``trials.jsonl``. A line is one write to a descriptor opened
for appending, then an fsync; what a killed process or a full disk leaves of a line is cut off before
anything is written behind it. ``config.json`` is written last when a folder is made: a folder without it
is no run yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from nas.errors import InputError
from nas.space import Architecture
from nas.trial import Measurement, Status, SupernetMeasurement, Trial, measurement_kind

TRIALS = "trials.jsonl"
CONFIG = "config.json"
ENV = "env.json"


@dataclasses.dataclass(frozen=True)
class Final:
    """One training of a chosen architecture to the end; beside a `MeasurementWithTest`, which it must be
    told to make on its way, the only place where test results appear.

    Accuracies are fractions in [0, 1]. A training that failed has its reason in ``error`` and NaN results.
    """

    arch: Architecture
    seed: int
    epochs: int
    test_accuracy: float = math.nan
    test_loss: float = math.nan
    valid_accuracy: float = math.nan
    valid_loss: float = math.nan
    params: int | None = None
    macs_per_image: int | None = None
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    error: str | None = None
    evaluation: str = "centre"  # how test images were seen: nas.training.loop.EVALUATIONS

    @property
    def seconds(self) -> float:
        return self.compile_seconds + self.train_seconds + self.evaluate_seconds


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

    def __init__(self, folder: Path, config: dict[str, Any], descriptor: int, fsync: bool) -> None:
        self.folder = folder
        self.config: Mapping[str, Any] = MappingProxyType(config)
        self._descriptor: int | None = descriptor
        self._fsync = fsync
        self._state = _State()
        self._size = 0  # bytes of whole lines; anything behind them is a torn line of ours
        self._torn = False
        self._opened = time.monotonic()
        self._elapsed_before = 0.0

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
        folder = Path(folder)
        taken = f"{folder}: holds a run already; go on with --resume or choose another --out"
        if (folder / CONFIG).exists():
            raise InputError(taken)
        with _one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / TRIALS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
            # Looked at again under the lock: another process may have made this run meanwhile.
            if (folder / CONFIG).exists():
                raise InputError(taken)
            if os.fstat(descriptor).st_size:
                raise InputError(f"{folder}: has {TRIALS} but no {CONFIG}; choose another --out")
            with _one_line(folder):
                _write_json(folder / ENV, _plain(dict(environment() if env is None else env)))
                _write_json(folder / CONFIG, _plain(dict(config)))
            return cls(folder, _read_json(folder / CONFIG), descriptor, fsync)
        except BaseException:
            os.close(descriptor)
            raise

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
        folder = Path(folder)
        if not is_run(folder):
            raise InputError(f"{folder}: no run to resume there; start it without --resume")
        recorded = _read_json(folder / CONFIG)
        _check_config(folder, recorded, _plain(dict(config)), may_differ)
        with _one_line(folder):
            descriptor = os.open(folder / TRIALS, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, folder)
            record = cls(folder, recorded, descriptor, fsync)
            record._load()
            with _one_line(folder):
                _add_environment(folder / ENV, _plain(dict(environment() if env is None else env)))
            return record
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

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
        return self._state.run(self.folder, dict(self.config), _read_json(self.folder / ENV))

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
        if self._descriptor is None:
            raise ValueError(f"{self.folder}: the record is closed")
        line = json.dumps(_plain(event), allow_nan=False)
        # Read back before it is written: state is what a reader will see, and nonsense never gets out.
        commit = self._state.accept(json.loads(line))
        self._write(self._descriptor, line.encode() + b"\n")
        commit()

    def _write(self, descriptor: int, data: bytes) -> None:
        try:
            if self._torn:
                os.ftruncate(descriptor, self._size)
                self._torn = False
            found = os.fstat(descriptor)
            if not found.st_nlink:
                raise InputError(f"{self.folder}: {TRIALS} was removed while the run was going")
            if found.st_size != self._size:
                raise InputError(
                    f"{self.folder}: {TRIALS} was changed by another program; it is left as it is"
                )
            self._torn = True
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if self._fsync:
                os.fsync(descriptor)
        except OSError as error:
            # If this fails too (a disk that went away), the next write tries again before it appends.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
                self._torn = False
            kept = f"{len(self._state.history):,} measurements kept"
            raise InputError(f"{self.folder}: {_reason(error)}; {kept}") from error
        self._torn = False
        self._size += len(data)

    def _load(self) -> None:
        assert self._descriptor is not None
        path = self.folder / TRIALS
        with _one_line(self.folder):
            data = path.read_bytes()
        lines, tail = _lines(data)
        self._state = _replay(path, lines)
        self._size = len(data) - len(tail)
        with _one_line(self.folder):
            if _whole(tail):  # killed between the last byte of a line and its newline
                os.write(self._descriptor, b"\n")
                self._size = len(data) + 1
            elif tail:
                os.ftruncate(self._descriptor, self._size)
            if tail:
                os.fsync(self._descriptor)
        self._elapsed_before = self._state.wall_seconds


def is_run(folder: str | Path) -> bool:
    """Whether ``folder`` holds a run, finished or not."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / TRIALS).is_file()


def read_run(folder: str | Path) -> Run:
    """Read a run folder; a run still being written is read up to its last whole line.

    Raises:
        InputError: not a run folder, or damaged (names file and line).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for name in (CONFIG, TRIALS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a run folder, {name} is missing")
    path = folder / TRIALS
    with _one_line(folder, "cannot read"):
        lines, _ = _lines(path.read_bytes())
    env = _read_json(folder / ENV) if (folder / ENV).is_file() else {}
    return _replay(path, lines).run(folder, _read_json(folder / CONFIG), env)


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
        [json.dumps(without_times(event)) for event in _lines((Path(folder) / TRIALS).read_bytes())[0]]
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


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "ray", "optuna")


def environment(devices: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader must know to run this again: versions, machine and commit; no host name, no path.

    ``devices`` comes from the caller (``[device.device_kind for device in jax.devices()]``): importing jax
    takes seconds and may claim an accelerator.
    """
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "devices": list(devices),
        "packages": versions,
        **_commit(),
    }


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


def _lines(data: bytes) -> tuple[list[Any], bytes]:
    """The parsed whole lines of a record (a ValueError for one that is damaged, in its place) and what
    follows the last newline; where that is a whole line but for its newline, it is among the lines too."""
    *whole, tail = data.split(b"\n")
    if _whole(tail):
        whole.append(tail)
    lines: list[Any] = []
    for line in whole:
        try:
            lines.append(json.loads(line))
        except ValueError:  # UnicodeDecodeError is one too
            lines.append(ValueError("damaged line, not JSON"))
    return lines, tail


def _whole(tail: bytes) -> bool:
    """No proper prefix of a JSON object is JSON, so what parses was written to its last brace."""
    try:
        return isinstance(json.loads(tail), dict)
    except ValueError:
        return False


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


def _plain(value: Any) -> Any:
    """``value`` as JSON knows it: numpy scalars as Python's, tuples as lists, NaN and infinities as None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's and jax's scalars, without importing either
        return _plain(value.item())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be recorded: not a JSON value")


def _check_config(
    folder: Path, recorded: Mapping[str, Any], given: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    def shown(config: Mapping[str, Any], name: str) -> str:
        return json.dumps(config[name]) if name in config else "nothing"

    different = [
        f"{name}={shown(given, name)} (recorded: {shown(recorded, name)})"
        for name in sorted(recorded.keys() | given.keys())
        if name not in may_differ and shown(recorded, name) != shown(given, name)
    ]
    if different:
        raise InputError(
            f"{folder}: cannot resume with another config: {', '.join(different)}; choose another --out"
        )


def _add_environment(path: Path, now: dict[str, Any]) -> None:
    recorded = _read_json(path) if path.is_file() else {}
    resumed = recorded.pop("resumed", [])
    latest = functools.reduce(lambda seen, change: seen | change, resumed, recorded)
    change = {key: value for key, value in now.items() if latest.get(key, ...) != value}
    if change:
        _write_json(path, {**recorded, "resumed": [*resumed, change]})


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process is writing this run") from error
    except OSError as error:
        raise InputError(f"{folder}: files cannot be locked there ({error.strerror})") from error


@contextlib.contextmanager
def _one_line(folder: Path, verb: str = "cannot write"):
    """Turn an OSError into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: {_reason(error, verb)}") from error


def _reason(error: OSError, verb: str = "cannot write") -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk full"
    return f"{verb} ({error.strerror or error})"


def _read_json(path: Path) -> dict[str, Any]:
    with _one_line(path, "cannot read"):
        data = path.read_bytes()
    try:
        value = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path}: damaged, not JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged, not a JSON object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must survive a power cut as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """The commit this code stands at and whether files were changed since; nothing outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "uncommitted_changes": bool(status)}
