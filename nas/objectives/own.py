"""An objective of the user's own: a function of what it asks for by the names of its parameters.

    def score(arch):                              # any number; higher is better
        return -abs(arch["depth"] - 3)

    def score(network, data):                     # the Flax module, and the images
        variables = network.init(jax.random.key(0), data.train.images[:1] / 255.0)
        ...
        return accuracy

    def score(training, network):                 # this code's own training, epoch by epoch, seen otherwise
        for epoch in training:
            yield epoch.valid_accuracy - 1e-7 * size

    def score(arch, data, seed, epochs):          # a training of one's own: what it yields is an epoch's score
        for epoch in range(epochs):
            ...
            yield accuracy

    def score(probe):                             # a training-free score, as those of nas.proxies
        return float(...)

What returns a number has it after one unit of budget. What yields numbers (or `Measurement`s) has one a unit, so that
strategies can stop it early; one that is promoted is asked again from its first unit, unless it takes ``training``,
which goes on from its checkpoint, or ``start``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas.data import Dataset
from nas.errors import InputError, did_you_mean
from nas.nn.bridge import build
from nas.objectives.base import TrialFailed, trial_folder
from nas.objectives.train import Size, TrainObjective, TrainSetup, size_of
from nas.own_file import named_in_file, value_named
from nas.proxies import Proxy
from nas.space import Architecture
from nas.training import processes
from nas.trial import Measurement, ScoreMeasurement, Trial

Function = Callable[..., Any]

OBJECTIVES: dict[str, Function] = {}
"""Own objectives by name, of programs; on a command line ``FILE.py:NAME`` needs no entry."""

PARAMETERS: Mapping[str, str] = {
    "arch": "the architecture, a mapping from choices to values",
    "network": "its Flax module, untrained",
    "data": "the images, a nas.data.Dataset: train and valid with images uint8 [n, H, W, C] and labels [n]",
    "training": "this code's training of the network: yields a Measurement an epoch",
    "probe": "nas.proxies.Probe, for training-free scores; stands alone",
    "hyper": "how the network is to be trained, nas.training.hyper.Hyper",
    "seed": "the trial's seed",
    "epochs": "the most units that a trial gets",
    "start": "units that are measured already: the first to be yielded is the next one",
    "folder": "a folder of the trial's own, which stays until it is over: for checkpoints",
    "space": "the search space",
}
"""What a function may ask for."""


def check_function(function: object, name: str) -> tuple[str, ...]:
    """The names that ``function`` asks for. Raises InputError where it asks for something else."""
    if not callable(function):
        raise InputError(f"objective: {name} is a {type(function).__name__}, not a function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError(f"objective: {name} does not say what parameters it takes") from None
    asked = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in PARAMETERS and parameter.kind is not parameter.POSITIONAL_ONLY:
            asked.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise InputError(
                f"objective: {name} takes {parameter.name!r}, which is not one of "
                f"{', '.join(PARAMETERS)}{did_you_mean(parameter.name, PARAMETERS)}"
            )
    if "probe" in asked and len(asked) > 1:
        raise InputError(f"objective: {name} takes {', '.join(asked)}: probe stands alone")
    return tuple(asked)


def own_named(name: str, place: str = "objective") -> Function | Proxy | None:
    """The own objective ``name``: of `OBJECTIVES`, or ``FILE.py:NAME``; None where it is neither.

    A function of ``probe`` alone is a training-free score, a `Proxy`. Raises InputError.
    """
    found: Any = OBJECTIVES.get(name)
    if found is None and named_in_file(name) is not None:
        found = value_named(name, place)
    if found is None or isinstance(found, Proxy):
        return found
    return Proxy(found, 1, 1) if check_function(found, name) == ("probe",) else found


def yields(function: Function) -> bool:
    """Whether the objective has a measurement for each unit, rather than one number."""
    called: Any = function
    while isinstance(called, functools.partial):
        called = called.func
    if not inspect.isroutine(called) and not isinstance(called, type):
        called = type(called).__call__
    return inspect.isgeneratorfunction(inspect.unwrap(called))


@dataclasses.dataclass(frozen=True)
class OwnSetup:
    """What a worker needs to build an `OwnObjective`: the function goes with it, by value where it is in a file.

    ``train`` says which space, data and epochs.
    """

    name: str
    function: Function
    train: TrainSetup

    def __call__(self, checkpoints: Path | None) -> OwnObjective:
        return OwnObjective(self, checkpoints)


class OwnObjective:
    """Calls the user's function for a trial; what it says is the trial's score (`ScoreMeasurement`)."""

    def __init__(self, setup: OwnSetup, checkpoints: Path | None) -> None:
        self.setup, self.checkpoints = setup, checkpoints
        self.space, self.function = setup.train.space, setup.function
        self.asked = check_function(setup.function, setup.name)
        self.goes_on = not {"training", "start"}.isdisjoint(self.asked)
        if {"data", "network"} & set(self.asked):
            self.dataset  # noqa: B018 - what is wrong with it is said now

    @functools.cached_property
    def dataset(self) -> Dataset:
        return self.trainer.dataset if "training" in self.asked else self.setup.train.data.load()

    @functools.cached_property
    def trainer(self) -> TrainObjective:
        return self.setup.train(self.checkpoints)

    def describe(self, trial: Trial) -> Size | tuple[None, None]:
        if self.space.build is None:
            return None, None
        return size_of(build(self.space, trial.arch, self.dataset.num_classes), self.dataset.image_shape)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        """See `nas.objectives.base.Objective`."""
        training = _Watched(self.trainer(trial)) if "training" in self.asked else None
        unit = trial.spent if self.goes_on else 0
        began = time.perf_counter()
        said: Any = None
        try:
            said = self.function(**self._arguments(trial, training))
            if not isinstance(said, Iterator):
                said = iter([said] if trial.spent == 0 else [])
            for value in said:
                unit += 1
                if unit <= trial.spent:
                    continue
                last = None if training is None else training.last
                spent = time.perf_counter() - began - (0.0 if last is None else last.seconds)
                yield self._measurement(value, unit, last, max(spent, 0.0))
                began = time.perf_counter()
        finally:
            _close(said)
            _close(training)

    def _arguments(self, trial: Trial, training: object) -> dict[str, Any]:
        makers: dict[str, Callable[[], Any]] = {
            "arch": lambda: trial.arch,
            "network": lambda: build(self.space, trial.arch, self.dataset.num_classes),
            "data": lambda: self.dataset,
            "training": lambda: training,
            "hyper": lambda: self.trainer.hyper(trial.arch),
            "seed": lambda: trial.seed,
            "epochs": lambda: self.setup.train.epochs,
            "start": lambda: trial.spent,
            "folder": lambda: self._folder(trial),
            "space": lambda: self.space,
        }
        return {name: makers[name]() for name in self.asked}

    def _folder(self, trial: Trial) -> Path | None:
        if self.checkpoints is None:
            return None
        folder = trial_folder(self.checkpoints, trial.id) / "own"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _measurement(
        self, value: Any, unit: int, last: Measurement | None, evaluate_seconds: float
    ) -> Measurement:
        if isinstance(value, Measurement):
            return value
        try:
            score = float(np.asarray(value).item())
        except (TypeError, ValueError):
            raise TrialFailed(
                f"{self.setup.name} gave a {type(value).__name__}, neither a number nor a Measurement"
            ) from None
        if processes.joined():  # a function that measures must not tell each process something else
            score = processes.agreed(score)
        if not math.isfinite(score):
            raise TrialFailed(f"{self.setup.name}: {score} is no finite number")
        if last is None:
            return ScoreMeasurement.of(unit, score, evaluate_seconds=evaluate_seconds)
        fields = {f.name: getattr(last, f.name) for f in dataclasses.fields(Measurement)}
        fields |= {"budget": unit, "evaluate_seconds": last.evaluate_seconds + evaluate_seconds}
        return ScoreMeasurement(**fields, score=score)

    def signed(self, arch: Architecture, seed: int = 0) -> float:
        """The score of an architecture after its first unit."""
        trial = Trial(0, arch, 1, seed)
        return next(iter(self(trial))).value


def _close(opened: Any) -> None:
    if hasattr(opened, "close"):
        opened.close()


class _Watched:
    """The measurements of a training, the last of which is kept."""

    def __init__(self, measurements: Iterator[Measurement]) -> None:
        self._measurements = measurements
        self.last: Measurement | None = None

    def __iter__(self) -> Iterator[Measurement]:
        return self

    def __next__(self) -> Measurement:
        self.last = next(self._measurements)
        return self.last

    def close(self) -> None:
        _close(self._measurements)
