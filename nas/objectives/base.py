"""What an objective is: what one trial is worth, as a generator of measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from nas.space import Architecture
from nas.trial import Final, Measurement, Trial


class Objective(Protocol):
    """Full training, shared weights, a training-free score and a table are the same to a search."""

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        """Yield the measurements after ``trial.spent`` up to ``trial.budget``, one a budget unit.

        They depend on the architecture, the seed and the unit alone: not on how a budget is cut into
        calls, nor on what else was measured in the process. A trial that has measurements goes on from
        its checkpoint; where that is gone, damaged or older, the units between are done again and not
        yielded. The caller closes the generator at the budget or before it; once that returns, all that
        the trial needs to go on in another process is on disk and nothing is being written.

        Raises:
            TrialFailed: the trial cannot go on (a loss that is not a number, memory that does not suffice).
        """
        ...

    def describe(self, trial: Trial) -> tuple[int | None, int | None]:
        """Trainable parameters and multiply-adds an image, None where that has no meaning; cheap."""
        ...


@runtime_checkable
class Together(Protocol):
    """An objective that can measure several trials in one program."""

    def grouped(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """``trials`` in groups that it can."""
        ...

    def compile(self, trials: Sequence[Trial]) -> None:
        """Compile what a group takes, so that measuring it compiles nothing; called in another thread."""
        ...

    def together(self, trials: Sequence[Trial]) -> AbstractContextManager[Sequence[Objective]]:
        """An objective for each trial of a group: read in turns, they do the group's work once."""
        ...


class Finisher(Protocol):
    """An objective that can also train a chosen architecture to the end."""

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """Train ``arch`` from ``seed`` for ``epochs`` and test it, once; a failure is in ``Final.error``."""
        ...


class Trained(NamedTuple):
    """A whole training: every epoch's measurement, and its end."""

    measurements: tuple[Measurement, ...]
    final: Final


class Trainer(Protocol):
    """An objective that can also show a training from its first epoch to its test."""

    def trained(self, arch: Architecture, seed: int, epochs: int) -> Trained:
        """Train ``arch`` from ``seed`` for ``epochs``, measuring validation after each, and test it, once.

        A failure is in ``Trained.final.error``.
        """
        ...


class TrialFailed(Exception):
    """This trial is over; the search goes on. The message is the one line that the record keeps.

    ``*_seconds``: spent on the unit that gave no measurement, where the objective knows them apart.
    ``traceback``: the whole text of an exception that nobody expected.
    """

    def __init__(
        self,
        reason: str,
        *,
        compile_seconds: float = 0.0,
        train_seconds: float = 0.0,
        evaluate_seconds: float = 0.0,
        traceback: str = "",
    ) -> None:
        super().__init__(reason)
        self.traceback = traceback
        self.compile_seconds = compile_seconds
        self.train_seconds = train_seconds
        self.evaluate_seconds = evaluate_seconds


def trial_folder(checkpoints: Path, trial_id: int) -> Path:
    """Where an objective keeps all that belongs to one trial; the engine removes it when the trial is over."""
    return checkpoints / str(trial_id)
