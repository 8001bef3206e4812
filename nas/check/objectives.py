"""What an own objective has to keep to."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.check.base import Check, require
from nas.data.config import DataConfig
from nas.objectives.base import Objective, TrialFailed
from nas.objectives.own import Function, OwnSetup, yields
from nas.objectives.score import ScoreSetup
from nas.objectives.train import TrainSetup
from nas.proxies import Proxy
from nas.run.driver import evaluate
from nas.space import SearchSpace
from nas.training.config import TrainingConfig
from nas.trial import Trial

UNITS = 2  # of budget, where it has several


class Setting:
    """An objective as a search has it, on two architectures of a space."""

    def __init__(self, function: Function | Proxy, name: str, space: SearchSpace, data: DataConfig) -> None:
        self.space, self.scored = space.searched(), isinstance(function, Proxy)
        train = TrainSetup(self.space, data, TrainingConfig(), epochs=UNITS)
        self.setup: Any
        if isinstance(function, Proxy):
            self.setup, self.units = ScoreSetup(self.space, data, name, proxy=function), 1
        else:
            self.setup = OwnSetup(name, function, train)
            self.units = UNITS if yields(function) else 1

    def objective(self, folder: str) -> Objective:
        return self.setup(Path(folder))

    def trial(self, k: int, budget: int) -> Trial:
        return Trial(k, self.space.sample((3, k)), budget, seed=7 + k)

    def values(self, objective: Objective, trial: Trial) -> list[float]:
        """What it measures of a trial up to its budget; raises CheckFailed."""
        try:
            *_, trial = evaluate(objective, trial)
        except TrialFailed as failure:
            require(False, f"{self.space.to_string(trial.arch)}: {failure}")
        return [measurement.value for measurement in trial.measurements]


def it_gives_numbers(setting: Setting) -> None:
    with tempfile.TemporaryDirectory() as folder:
        objective = setting.objective(folder)
        for k in range(2):
            values = setting.values(objective, setting.trial(k, setting.units))
            require(len(values) == setting.units, f"{len(values)} measurements for {setting.units} units")
            require(all(map(math.isfinite, values)), f"it gives {values}")


def the_same_trial_has_the_same_value(setting: Setting) -> None:
    """In another process, and whatever was measured before."""
    found = []
    for before in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            objective = setting.objective(folder)
            if before:
                setting.values(objective, setting.trial(1, setting.units))
            found.append(setting.values(objective, setting.trial(0, setting.units)))
    require(found[0] == found[1], f"one architecture and seed have {found[0]} and {found[1]}")


def a_promoted_trial_goes_on(setting: Setting) -> None:
    """Measured in two pieces, by two processes, as in one."""
    with tempfile.TemporaryDirectory() as folder:
        whole = setting.values(setting.objective(folder), setting.trial(0, setting.units))
    with tempfile.TemporaryDirectory() as folder:
        (first,) = evaluate(setting.objective(folder), setting.trial(0, 1))
        pieces = setting.values(setting.objective(folder), first.replace(budget=setting.units))
    require(pieces == whole, f"in two pieces it measures {pieces}, in one {whole}")


def it_reaches_workers(setting: Setting) -> None:
    from nas.run.tune.worker import pickled

    pickled(setting.setup)


def checks(function: Function | Proxy, name: str, space: SearchSpace, data: DataConfig) -> Iterator[Check]:
    """All checks of an own objective, on ``space`` and ``data``."""
    setting = Setting(function, name, space, data)
    yield Check("it gives finite numbers", functools.partial(it_gives_numbers, setting))
    again = functools.partial(the_same_trial_has_the_same_value, setting)
    yield Check("one architecture and seed have one value", again)
    if setting.units > 1:
        yield Check(
            "a promoted trial goes on as if never left", functools.partial(a_promoted_trial_goes_on, setting)
        )
    yield Check(
        "it goes to workers that do not have the file", functools.partial(it_reaches_workers, setting)
    )
