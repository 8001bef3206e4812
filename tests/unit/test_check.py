"""``python -m nas.check``: what is right passes, and each promise that is broken is found and said in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.check import CheckFailed, datasets, objectives, spaces, strategies
from nas.check.__main__ import PLAIN, Config, main, things
from nas.data.config import DataConfig
from nas.data.own_sets import keep_arrays
from nas.errors import InputError
from nas.run.command_line import run
from nas.space import Categorical, Integer, SearchSpace, Uniform, When
from nas.strategies import STRATEGIES, StrategyConfig
from nas.strategies.base import FullBudget, drawn, trial_seed
from nas.trial import Trial

MINE = """
from nas.space import Integer, SearchSpace
from nas.strategies.base import FullBudget, drawn

SPACE = SearchSpace("mine", {"x": Integer(0, 9)})

def sampling(space, config):
    return FullBudget(space, config, lambda i: drawn(space, config.seed, i))

def score(arch):
    return -abs(arch["x"] - 7)

def helper(number):
    return number

def build(arch, num_classes):
    raise AssertionError("it is no objective")
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["check", *arguments])
        code = 0
        try:
            run(main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


def test_a_file_that_is_right_passes_a_line_a_check(check: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(MINE)
    code, lines, err = check(f"{tmp_path}/my.py")
    assert (code, err) == (0, "")
    assert all(line.startswith("ok    ") for line in lines)
    kinds = [line.split()[1:3] for line in lines]
    assert {tuple(kind) for kind in kinds} == {
        ("space", "SPACE:"),
        ("strategy", "sampling:"),
        ("objective", "score:"),
    }


def test_what_fails_is_said_and_the_exit_code_is_1(check: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(MINE + "\ndef nan(arch):\n    return float('nan')\n")
    code, lines, err = check(f"{tmp_path}/my.py:nan")
    assert (code, err) == (1, "")
    assert lines[0] == "FAIL  objective nan: it gives finite numbers"
    assert lines[1].endswith("nan: nan is no finite number")


def test_what_cannot_be_checked_is_one_error_line(check: Callable[..., Any], tmp_path: Path) -> None:
    assert check("no.py") == (2, [], "error: check: no file no.py\n")
    (tmp_path / "my.py").write_text("x = 1\n")
    code, lines, err = check(f"{tmp_path}/my.py")
    assert (code, lines) == (2, [])
    assert err.startswith(f"error: {tmp_path}/my.py: defines no SearchSpace, no strategy ")
    assert check(f"{tmp_path}/my.py:x")[2].endswith(
        "my.py:x is a int: neither space, strategy nor objective\n"
    )
    with pytest.raises(ValueError, match="name a file of yours"):
        main(Config(what=()))


HELPED = """
from nas.space import Constraint, Integer, SearchSpace
from nas.strategies.base import FullBudget, drawn

def fits(arch):
    return arch["depth"] <= 2

def widths(arch):
    return (8,) * arch["depth"]

def name(arch):
    return str(arch["depth"])

def seeds(seed):
    return [seed]

class Net:
    def all(self, arch):
        return [part for part in map(name, [arch])]

def build(arch, num_classes):
    def inner():
        return widths(arch)
    return inner()

tiny = SearchSpace("tiny", {"depth": Integer(1, 3)}, constraints=[Constraint("shallow", fits, "depth")], build=build)
other = SearchSpace("other", {"depth": Integer(1, 3)}, build=lambda arch, num_classes: seeds(0))

def score(arch):
    return 0 if arch["depth"] == 1 else score({"depth": arch["depth"] - 1})

def climb(space, config):
    return FullBudget(space, config, lambda i: drawn(space, 0, i), observe=lambda trial: print(trial.score))

SCORES = [score({"depth": depth}) for depth in (1, 2)]
"""


def test_what_a_space_or_another_function_uses_is_no_objective(tmp_path: Path) -> None:
    (tmp_path / "helped.py").write_text(HELPED)
    found = [(one.kind, one.name) for one in things(f"{tmp_path}/helped.py")]
    # Its own name, an attribute of this name, and use at the file's own level make no helper of score.
    assert found == [("space", "tiny"), ("space", "other"), ("objective", "score"), ("strategy", "climb")]
    for name in ("fits", "widths", "name", "seeds"):
        (one,) = things(f"{tmp_path}/helped.py:{name}")
        assert (one.kind, one.name) == ("objective", name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "nosuch"), "error: dataset: 'nosuch' is not one of mnist5k, digits, "),
        (("--dataset", "./nosuch.npz"), "error: dataset: no file "),
        (("--image-size", "-3"), "error: image_size: -3 is not from 1 to 10000\n"),
        (("nosuchset",), "error: dataset: 'nosuchset' is not one of mnist5k, digits, "),
        (("digits", "--image-size", "0"), "error: image_size: 0 is not from 1 to 10000\n"),
    ],
)
def test_a_slip_on_the_command_line_is_no_fault_of_the_file(
    arguments: tuple[str, ...], said: str, check: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my.py").write_text(MINE)
    code, lines, err = check(f"{tmp_path}/my.py", *arguments)
    assert (code, lines, err.count("\n")) == (2, [], 1)
    assert err.startswith(said)


def test_what_is_in_a_data_set_is_checked(
    check: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    (tmp_path / "broken.npz").write_bytes(b"no arrays")
    code, lines, err = check(f"{tmp_path}/broken.npz")
    assert (code, err) == (1, "")
    assert lines[0].endswith("broken.npz: it loads: images, labels and classes fit together")


# ---------------------------------------------------------------------------------------------- broken promises


def failing(checks: Any) -> dict[str, str]:
    """The checks that do not hold, with what is said."""
    found = {}
    for sentence, holds in checks:
        try:
            holds()
        except (CheckFailed, InputError) as failure:
            found[sentence] = str(failure)
    return found


class Broken(FullBudget):
    """Random search but for one thing."""

    def __init__(self, space: SearchSpace, config: StrategyConfig, what: str) -> None:
        super().__init__(space, config, lambda i: drawn(space, config.seed, i))
        self.what, self.random = what, np.random.default_rng()

    def ask(self, arch: Any = None) -> Trial | None:
        if self.what == "no end" and self._asked == self._config.trials:
            self._asked = 0
        if self.what == "does not take arch":
            arch = None
        trial = super().ask(arch)
        if trial is None:
            return None
        if self.what == "invalid":
            return trial.replace(arch=trial.arch.set(depth=99))
        if self.what == "its own randomness":
            return trial.replace(arch=self._space.sample(self.random))
        if self.what == "its own seeds":
            return trial.replace(seed=trial_seed(99, trial.id))
        return trial.replace(budget=10**6) if self.what == "too much" else trial


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("invalid", "trials are valid and well formed"),
        ("too much", "trials are valid and well formed"),
        ("its own seeds", "trials are valid and well formed"),
        ("its own randomness", "the seed decides everything"),
        ("no end", "it ends, and stays so"),
    ],
)
@pytest.mark.some(1)
def test_a_broken_strategy_is_found(what: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.run.own_strategy import record_of

    if what == "too much":  # whose accuracies are nobody's concern
        monkeypatch.setattr(strategies, "outcome", lambda *_: lambda trial: trial.replace(status="failed"))
    record = record_of(lambda space, config: Broken(space, config, what), "broken")
    assert sentence in failing(strategies.checks(record, PLAIN))


@pytest.mark.parametrize("name", ["random", "hyperband", "evolution"])
def test_our_own_strategies_pass(name: str) -> None:
    assert failing(strategies.checks(STRATEGIES[name], PLAIN)) == {}


def test_a_space_whose_text_does_not_come_back_is_found() -> None:
    space = SearchSpace(
        "s",
        {"x": Integer(0, 3)},
        format=lambda arch: f"<{arch['x'] // 2}>",
        parse=lambda text: {"x": 2 * int(text[1])},
    )
    assert list(failing(spaces.checks(space))) == ["text and JSON of an architecture come back"]


def test_a_continuous_choice_that_no_architecture_has_does_not_count() -> None:
    space = SearchSpace(
        "s",
        {"opt": Categorical(("sgd", "adam")), "beta": Uniform(0.0, 1.0)},
        conditions={"beta": When("opt", ("adam",))},
    )
    for part in (space, space.fix("opt", "sgd"), space.fix("opt", "adam")):
        assert failing(spaces.checks(part)) == {}


def test_networks_that_give_no_logits_are_found() -> None:
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(3)(x.mean((1, 2)))

    space = SearchSpace("s", {"x": Categorical((1,))}, build=lambda arch, classes: Net())
    assert failing(spaces.checks(space, (8, 8, 1), 3)) == {}
    found = failing(spaces.checks(space, (8, 8, 1), 10))
    assert list(found) == ["networks take images of 8x8x1 and give [batch, 10]"]
    assert "3 images evaluated give (3, 3), not (3, 10)" in next(iter(found.values()))


def test_an_objective_that_remembers_is_found() -> None:
    calls = []

    def remembering(arch: Any) -> float:
        calls.append(arch)
        return len(calls)

    def restarting(start: int) -> Any:
        yield from (0.1, 0.2, 0.3)

    data = DataConfig("digits")
    assert "one architecture and seed have one value" in failing(
        objectives.checks(remembering, "f", PLAIN, data)
    )
    assert list(failing(objectives.checks(restarting, "f", PLAIN, data))) == [
        "a promoted trial goes on as if never left"
    ]


def test_a_data_set_with_copies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    labels = np.arange(60) % 3
    assert failing(datasets.checks(DataConfig(keep_arrays({"images": images, "labels": labels})))) == {}
    copies = {"images": np.concatenate([images, images]), "labels": np.tile(labels, 2)}
    found = failing(datasets.checks(DataConfig(keep_arrays(copies))))
    assert list(found) == ["images of validation and test are not in train (up to 1 %)"]
