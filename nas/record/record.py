"""The writer of a run folder. Its lines are described in `nas.record.events`, how they get to disk in `files`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from nas.errors import InputError
from nas.record.events import TRIALS, RunState, replay
from nas.record.files import ENV, RecordFile, load, plain, read_json
from nas.record.run import Observation, Run
from nas.trial import Final, Measurement, Status, Trial

ERRORS = "errors"  # the folder of failed trials' tracebacks, in a run's


class Record:
    """The writer of one run folder; made by `create` or `resume`, closed by ``with`` or `close`.

    What was written is at hand in ``trials`` and ``finals``, exactly as a reader would see it. Every
    method that writes either has its line on the disk when it returns, or raises `InputError` (disk full,
    folder removed) and leaves both the file and the state as they were. Use from one thread.
    """

    def __init__(self, lines: RecordFile, state: RunState) -> None:
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
        return cls(RecordFile.create(folder, TRIALS, config, env=env, fsync=fsync), RunState())

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
        states: list[RunState] = []

        def accept(lines: Sequence[Any]) -> None:
            states.append(replay(Path(folder) / TRIALS, lines))

        lines = RecordFile.resume(folder, TRIALS, config, accept, may_differ=may_differ, env=env, fsync=fsync)
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

    def keep_traceback(self, trial_id: int, text: str) -> Path:
        """Write why a trial failed, whole, beside the record, which holds one line of it; returns the file."""
        path = self.folder / ERRORS / f"trial_{trial_id}.txt"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"{path}: cannot write ({error.strerror or error})") from error
        return path

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
        commit = self._state.accept(load(line.encode()))
        self._lines.append(line, lambda: f"{len(self._state.history):,} measurements")
        commit()
