"""``--help`` has every option once, under a topic, and does not wait for jax; a misspelt option is recognised."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.errors import InputError, one_of
from nas.run.command_line import parse
from nas.run.help import by_topic, docstring_of, options_in
from nas.run.options import TOPICS, SearchOptions

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    """how fast"""
    rounds: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "x"
    """what it is
    called"""
    inner: Inner = dataclasses.field(default_factory=Inner)
    other: int = 1


def test_options_stand_under_their_topics_and_the_rest_above() -> None:
    made = by_topic(Outer, {"names": ("name",), "pace": ("rounds", "inner"), "nothing": ("absent",)})
    assert [field.name for field in dataclasses.fields(made)] == ["other", "names", "pace"]
    assert [[o.name for _, o in options_in(type(getattr(made(), name)))] for name in ("names", "pace")] == [
        ["name"],
        ["rounds", "rate"],
    ]
    assert made().pace.rate == 0.1


def test_the_text_below_a_field_is_its_help() -> None:
    assert docstring_of(Outer, "name") == "what it is called"
    assert docstring_of(Outer, "other") == ""


def test_every_option_of_a_search_has_a_topic() -> None:
    made = by_topic(SearchOptions, TOPICS)
    assert [name for path, (name, *_) in options_in(made) if not path] == []
    assert sorted(o.name for _, o in options_in(made)) == sorted(o.name for _, o in options_in(SearchOptions))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--nam", "y"], "Unrecognized options: --nam, y (did you mean --name?) (see --help)"),
        (["--zzz"], "Unrecognized options: --zzz (see --help)"),
    ],
)
def test_a_misspelt_option_names_the_one_meant(argv: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Outer, argv)
    assert str(caught.value) == line


def test_a_value_is_looked_at_once() -> None:
    class Value:
        looked = 0

        def __repr__(self) -> str:
            self.looked += 1
            return "abcdef"

    value = Value()
    assert str(one_of("place", value, ["abcdefg"])) == (
        "place: abcdef is not one of abcdefg (did you mean abcdefg?)"
    )
    assert value.looked == 2  # once shown, once compared


@pytest.mark.parametrize("script", ["search", "make_table"])
def test_help_does_not_wait_for_jax(script: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / f'{script}.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, sorted({'jax', 'ray', 'flax', 'optuna', 'scipy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"},
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "options ─" in done.stdout
