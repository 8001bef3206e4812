"""What a user names in a file of theirs: spaces, strategies, objectives, scores; what is wrong with it is one line."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.cloudpickle import cloudpickle

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives import own
from nas.objectives.base import TrialFailed
from nas.objectives.own import OBJECTIVES, OwnObjective, OwnSetup, check_function, own_named, yields
from nas.objectives.score import ScoreSetup
from nas.objectives.train import TrainSetup
from nas.own_file import defined_in, load_file, named_in_file, value_named
from nas.proxies import PROXIES, Proxy
from nas.run.driver import evaluate
from nas.run.methods import GIVEN, SEARCHES, search_named
from nas.run.options import SearchOptions
from nas.run.own_strategy import record_of
from nas.run.plan import plan
from nas.run.tune.worker import pickled
from nas.space import Categorical, Integer, SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig, StrategyRecord
from nas.strategies.base import FullBudget, drawn
from nas.training.config import TrainingConfig
from nas.trial import Measurement, ScoreMeasurement, Trial
from search_spaces import spaces_with
from tests.spaces import line_of

SPACE = SearchSpace("bare", {"depth": Integer(1, 4), "width": Categorical((8, 16))})
TRIAL = Trial(0, SPACE.sample(0), 3, seed=5)


def file_of(folder: Path, text: str, name: str = "my.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# ------------------------------------------------------------------------------------------------------ files


def test_a_name_in_a_file_is_told_from_other_names() -> None:
    assert named_in_file("my.py") == ("my.py", "")
    assert named_in_file("a/my.py:Name") == ("a/my.py", "Name")
    for other in ("chain", "cifar10:3.0.2", "my.npz", "x.pyc:y", "chain:depth=1"):
        assert named_in_file(other) is None


def test_a_file_runs_once_until_it_changes_and_two_of_one_name_are_two(tmp_path: Path) -> None:
    file = file_of(tmp_path, "VALUE = object()")
    first = value_named(f"{file}:VALUE", "place")
    assert value_named(f"{file}:VALUE", "place") is first
    (tmp_path / "other").mkdir()
    assert value_named(f"{file_of(tmp_path / 'other', 'VALUE = 2')}:VALUE", "place") == 2
    assert value_named(f"{file}:VALUE", "place") is first
    file_of(tmp_path, "VALUE = 'changed'")
    assert value_named(f"{file}:VALUE", "place") == "changed"


def test_what_is_wrong_with_a_file_is_one_line_with_its_place(tmp_path: Path) -> None:
    assert line_of(load_file, "no/such.py", "space") == "space: no file no/such.py"
    file = file_of(tmp_path, "import math\nx = 1\ny = x + undefined\n")
    assert line_of(load_file, file, "strategy") == (
        f"strategy: {file} does not run: NameError: name 'undefined' is not defined (line 3)"
    )
    file = file_of(tmp_path, "def f(:\n")
    assert line_of(load_file, file, "space").startswith(f"space: {file} does not run: SyntaxError: ")
    file = file_of(tmp_path, "import sys\nsys.exit(3)\n")
    assert line_of(load_file, file, "space") == f"space: {file} does not run: SystemExit: 3 (line 2)"
    file = file_of(tmp_path, "from math import sqrt\n_hidden = 1\ndef score(arch): return 1\nX = 3\n")
    assert line_of(value_named, f"{file}:scor", "objective") == (
        f"objective: {file}: 'scor' is not one of score, X (did you mean score?)"
    )
    assert list(defined_in(load_file(file, "space"))) == ["score", "X"]


def test_a_space_of_any_name_in_a_file(tmp_path: Path) -> None:
    text = (
        "from nas.space import Integer, SearchSpace\ntiny = SearchSpace('tiny', {'depth': Integer(1, 2)})\n"
    )
    file = file_of(tmp_path, text)
    assert spaces_with(f"{file}:tiny")[f"{file}:tiny"].name == "tiny"
    assert line_of(spaces_with, file) == (
        f"space: {file} has no SPACE that is a SearchSpace; say one of {file}:tiny"
    )


# ------------------------------------------------------------------------------------------------- strategies

STRATEGY = """
import dataclasses
from nas.strategies import StrategyConfig
from nas.strategies.base import FullBudget, drawn

@dataclasses.dataclass(frozen=True)
class Config(StrategyConfig):
    jumps: float = 0.2

def sampling(space, config: Config):
    return FullBudget(space, config, lambda i: drawn(space, config.seed, i))

class Sampling(FullBudget):
    def __init__(self, space, config):
        super().__init__(space, config, lambda i: drawn(space, config.seed, i))

def raising(space, config):
    def propose(i):
        raise KeyError("no")
    return FullBudget(space, config, propose)

def nothing(space, config):
    return 3

def three(space, config, more):
    return None
"""


def test_a_strategy_is_a_function_a_class_or_a_record(tmp_path: Path) -> None:
    file = file_of(tmp_path, STRATEGY)
    record = search_named(f"{file}:sampling")
    assert [field.name for field in dataclasses.fields(record.config)][-1] == "jumps"
    expected = STRATEGIES["random"](SPACE, StrategyConfig(trials=5, seed=3))
    for name in ("sampling", "Sampling"):
        strategy = search_named(f"{file}:{name}")(SPACE, StrategyConfig(trials=5, seed=3))
        trials = list(iter(strategy.ask, None))
        assert len(trials) == 5
        if name == "sampling":
            assert trials == list(iter(expected.ask, None))
    assert record_of(STRATEGIES["grid"], "grid") is STRATEGIES["grid"]


def test_what_is_wrong_with_a_strategy_is_one_line(tmp_path: Path) -> None:
    file = file_of(tmp_path, STRATEGY)
    config = StrategyConfig(trials=2)
    assert line_of(search_named, "hyperbnd").endswith("(did you mean hyperband?)")
    assert line_of(search_named(f"{file}:nothing"), SPACE, config) == (
        f"strategy: {file}:nothing gave a int without ask, tell, candidates, paused"
    )
    assert line_of(search_named, f"{file}:three") == (
        f"strategy: {file}:three is not to be called with two arguments, a space and a config"
    )
    raising = search_named(f"{file}:raising")(SPACE, config)
    assert line_of(raising.ask) == f"strategy: {file}:raising: KeyError: 'no' (my.py, line 19)"


def test_a_strategy_added_to_the_registry_is_there_whoever_was_imported_first() -> None:
    record = StrategyRecord(lambda space, config: FullBudget(space, config, lambda i: drawn(space, 0, i)))
    try:
        STRATEGIES["mine"] = record
        assert SEARCHES["mine"] is record
        assert search_named("mine") is record
    finally:
        del STRATEGIES["mine"]
    GIVEN["given"] = record
    try:
        assert search_named("given") is record
        assert "given" not in SEARCHES
    finally:
        del GIVEN["given"]


# ------------------------------------------------------------------------------------------------- objectives


def objective(function: Any, tmp_path: Path | None = None, space: SearchSpace = SPACE) -> OwnObjective:
    setup = TrainSetup(space, DataConfig("digits", subset=300), TrainingConfig(), epochs=3)
    return OwnSetup("score", function, setup)(tmp_path)


def test_a_function_gets_what_it_asks_for_by_name(tmp_path: Path) -> None:
    seen = {}

    def score(
        arch: Any, seed: int, epochs: int, start: int, folder: Path, space: Any, other: int = 3
    ) -> float:
        seen.update(locals())
        return arch["depth"]

    (measured,) = objective(score, tmp_path)(TRIAL.replace(budget=1))
    assert measured == ScoreMeasurement.of(1, TRIAL.arch["depth"], evaluate_seconds=measured.evaluate_seconds)
    assert (seen["arch"], seen["seed"], seen["epochs"], seen["start"]) == (TRIAL.arch, 5, 3, 0)
    assert seen["folder"] == tmp_path / "0" / "own"
    assert seen["folder"].is_dir()
    assert (seen["space"], seen["other"]) == (SPACE, 3)
    assert objective(score).describe(TRIAL) == (None, None)


def test_what_it_asks_for_that_there_is_not_is_said_before_anything_runs() -> None:
    assert line_of(check_function, lambda network, dta: 0, "f").startswith(
        "objective: f takes 'dta', which is not one of arch, network, data, "
    )
    assert line_of(check_function, lambda network, dta: 0, "f").endswith("(did you mean data?)")
    assert line_of(check_function, lambda probe, arch: 0, "f") == (
        "objective: f takes probe, arch: probe stands alone"
    )
    assert line_of(check_function, 3, "f") == "objective: f is a int, not a function"


@pytest.mark.parametrize("asks", ["arch", "start"])
def test_a_promoted_trial_has_only_new_units(asks: str) -> None:
    calls = []

    def again(arch: Any) -> Any:
        for unit in itertools.count(1):
            calls.append(unit)
            yield unit / 10

    def further(start: int) -> Any:
        for unit in itertools.count(start + 1):
            calls.append(unit)
            yield unit / 10

    function = again if asks == "arch" else further
    assert yields(function)
    first = list(evaluate(objective(function), TRIAL.replace(budget=1)))[-1]
    second = list(evaluate(objective(function), first.replace(budget=3)))[-1]
    assert [m.value for m in second.measurements] == [0.1, 0.2, 0.3]
    assert calls == ([1, 1, 2, 3] if asks == "arch" else [1, 2, 3])


def test_its_own_measurements_are_kept_as_they_are() -> None:
    mine = Measurement(1, 0.5, 1.0, 0.6, 1.0, train_seconds=2.0)
    assert list(objective(lambda arch: iter([mine]))(TRIAL.replace(budget=1))) == [mine]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("good", "score gave a str, neither a number nor a Measurement"),
        (None, "score gave a NoneType, neither a number nor a Measurement"),
        (float("nan"), "score: nan is no finite number"),
        ([1.0, 2.0], "score gave a list, neither a number nor a Measurement"),
    ],
)
def test_what_is_no_number_fails_the_trial(value: object, line: str) -> None:
    with pytest.raises(TrialFailed, match=line):
        list(objective(lambda arch: value)(TRIAL.replace(budget=1)))


def test_a_function_goes_to_workers_by_value_and_a_score_with_its_setup(tmp_path: Path) -> None:
    """A worker has neither the file nor what a program has added to a registry."""
    file = file_of(tmp_path, "OFFSET = 2\ndef score(arch): return arch['depth'] + OFFSET\n")
    setup = TrainSetup(SPACE, DataConfig("digits"), TrainingConfig(), epochs=1)
    found: Any = own_named(f"{file}:score")
    sent = pickled(OwnSetup("score", found, setup))
    os.remove(file)
    (measured,) = cloudpickle.loads(sent)(None)(TRIAL.replace(budget=1))
    assert measured.value == TRIAL.arch["depth"] + 2
    PROXIES["mine"] = Proxy(lambda probe: 1.0, -1, 0)
    try:
        sent = cloudpickle.dumps(ScoreSetup(SPACE, DataConfig("digits"), "mine"))
    finally:
        del PROXIES["mine"]
    assert pickle.loads(sent).proxy.score(None) == 1.0
    assert pickle.loads(sent).proxy.sign == -1


def test_the_plan_gives_an_own_objective_its_budget(tmp_path: Path) -> None:
    text = "def once(arch): return 1.0\ndef each(arch):\n    yield 1.0\ndef free(probe): return 1.0\n"
    file = file_of(tmp_path, text)
    options = SearchOptions(space="s", plan=StrategyConfig(trials=4, epochs=6))

    def planned(**changes: Any) -> Any:
        return plan(dataclasses.replace(options, **changes), "random", {"s": SPACE})

    assert planned(objective=f"{file}:once").planned_epochs == 4
    assert planned(objective=f"{file}:each").planned_epochs == 24
    assert isinstance(planned(objective=f"{file}:each").setup, OwnSetup)
    assert isinstance(planned(objective=f"{file}:free").setup, ScoreSetup)
    assert planned(filter=f"{file}:free").training_free is not None
    with pytest.raises(InputError, match=r"filter: .*once is no training-free score"):
        planned(filter=f"{file}:once")
    OBJECTIVES["registered"] = load_file(file, "objective").each
    try:
        assert planned(objective="registered").planned_epochs == 24
    finally:
        del OBJECTIVES["registered"]
    assert own.own_named("train") is None
