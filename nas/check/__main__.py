"""Check what a file of one's own defines: python -m nas.check my.py

Search spaces, strategies, objectives and data sets, each held to what all of the kind keep to here. One line a check;
exit code 1 where one fails.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import tyro

from nas.check.base import Check, CheckFailed
from nas.data.config import DataConfig
from nas.data.loading import LARGEST_SIDE
from nas.errors import InputError
from nas.own_file import defined_in, load_file, named_in_file, value_named, where
from nas.run.command_line import run
from nas.space import Categorical, Integer, SearchSpace
from nas.strategies import StrategyRecord

PLAIN = SearchSpace(
    "plain",
    {"depth": Integer(1, 4), "width": Categorical((8, 16, 32)), "skip": Categorical((True, False))},
)
"""What a strategy, or an objective without networks, is checked on where the file has no space."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Check search spaces, strategies, objectives and data sets of one's own; exit code 1 where a check fails."""

    what: tyro.conf.Positional[tuple[str, ...]]
    """FILE.py (all that it defines), FILE.py:NAME, a folder of class folders of images, or a file NAME.npz"""
    space: str | None = None
    """the space that strategies and objectives are checked on; default: the first of the files"""
    dataset: str = "digits"
    """the images that objectives are checked on"""
    image_size: int | None = None
    """resize images to this height and width"""

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_SIDE:
            raise InputError(f"image_size: {self.image_size} is not from 1 to {LARGEST_SIDE}")


class Found(NamedTuple):
    """Something to be checked: ``kind`` is space, strategy, objective or dataset."""

    kind: str
    name: str
    value: Any


def main(config: Config) -> int:
    from nas.api.inputs import spaces_of

    if not config.what:
        raise InputError("what: name a file of yours, such as my.py")
    found = [one for text in config.what for one in things(text)]
    if not found:
        raise InputError(
            f"{' '.join(config.what)}: defines no SearchSpace, no strategy (a StrategyRecord, or a function or class "
            "of space and config) and no objective; name one as FILE.py:NAME"
        )
    space = next((one.value for one in found if one.kind == "space"), None)
    if config.space is not None:
        name, spaces = spaces_of(config.space)
        space = spaces[name]
    data = DataConfig(config.dataset, image_size=config.image_size)
    if any(one.kind != "dataset" for one in found):
        data.load()  # what is wrong with these images is no fault of what is checked on them
    failed = 0
    for one in found:
        for sentence, said in results(one, space, data):
            print(f"{'ok  ' if said is None else 'FAIL'}  {one.kind} {one.name}: {sentence}", flush=True)
            if said is not None:
                print(f"      {said}", flush=True)
                failed += 1
    return 1 if failed else 0


def things(text: str) -> Iterator[Found]:
    """What ``text`` names to be checked. Raises InputError."""
    named = named_in_file(text)
    if named is None:
        from nas.check.datasets import find

        find(text)
        yield Found("dataset", text, text)
        return
    if named.name:
        value = value_named(text, "check")
        kind = kind_of(named.name, value)
        if kind is None:
            raise InputError(
                f"check: {text} is a {type(value).__name__}: neither space, strategy nor objective"
            )
        yield Found(kind, named.name, value)
        return
    module = load_file(named.file, "check")
    defined = defined_in(module)
    # What a space is made of, and what other functions name, is no objective, whatever its parameters are called.
    spaces = [value for value in defined.values() if isinstance(value, SearchSpace)]
    used = {
        id(part)
        for space in spaces
        for part in (space.build, space.format, space.parse, space.features, space.supernet, space.cells)
    }
    used |= {id(constraint.holds) for space in spaces for constraint in space.constraints}
    helpers = names_in_functions(Path(named.file).expanduser())
    for name, value in defined.items():
        kind = kind_of(name, value)
        helps = kind == "objective" and inspect.isfunction(value) and name in helpers
        if kind is not None and id(value) not in used and not helps:
            yield Found(kind, name, value)


def names_in_functions(file: Path) -> set[str]:
    """The names of a file's own level that its functions, methods and lambdas read; a function's own name does not
    count in itself."""
    names: set[str] = set()
    for code in functions_in(compile(file.read_bytes(), str(file), "exec", dont_inherit=True)):
        names |= names_read(code) - {code.co_name}
    return names


def functions_in(code: CodeType) -> Iterator[CodeType]:
    """The outermost functions and classes of a file's code; a comprehension is part of what it stands in."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            if part.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
                yield from functions_in(part)
            else:
                yield part


def names_read(code: CodeType) -> set[str]:
    """The global names that ``code`` and the functions within it read; co_names would have attributes' names too, and
    ``trial.score`` is not the function ``score``."""
    names = {
        step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return names.union(*(names_read(part) for part in code.co_consts if isinstance(part, CodeType)))


def kind_of(name: str, value: Any) -> str | None:
    """What a file's value is, told by its type or by its parameters; None where it is nothing that is checked."""
    from nas.objectives.own import PARAMETERS
    from nas.proxies import Proxy

    if isinstance(value, SearchSpace):
        return "space"
    if isinstance(value, StrategyRecord):
        return "strategy"
    if isinstance(value, Proxy):
        return "objective"
    if name == "DATASET":
        return "dataset"
    if not callable(value):
        return None
    try:
        parameters = list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return None
    if parameters[:2] == ["space", "config"]:
        return "strategy"
    known = parameters and set(parameters) <= set(PARAMETERS)
    return "objective" if known and inspect.isfunction(value) else None


def results(one: Found, space: SearchSpace | None, data: DataConfig) -> Iterator[tuple[str, str | None]]:
    """Each check's sentence, with what is wrong or None."""
    try:
        checks = list(checks_of(one, space, data))
    except InputError as error:
        yield "it can be used", str(error)
        return
    for sentence, holds in checks:
        try:
            holds()
        except (CheckFailed, InputError) as failure:
            yield sentence, str(failure)
        except Exception as error:
            yield sentence, f"{type(error).__name__}: {' '.join(str(error).split())}{where(error)}"
        else:
            yield sentence, None


def checks_of(one: Found, space: SearchSpace | None, data: DataConfig) -> Iterator[Check]:
    """Raises InputError where it cannot be used at all."""
    if one.kind == "space":
        from nas.check import spaces

        shape = data.load().image_shape
        yield from spaces.checks(one.value, shape, data.load().num_classes)
    elif one.kind == "strategy":
        from nas.check import strategies
        from nas.run.own_strategy import record_of

        yield from strategies.checks(record_of(one.value, one.name), space or PLAIN)
    elif one.kind == "objective":
        from nas.check import objectives
        from nas.objectives.own import check_function
        from nas.proxies import Proxy

        function = one.value
        if not isinstance(function, Proxy) and "probe" in check_function(function, one.name):
            function = Proxy(function, 1, 1)
        yield from objectives.checks(function, one.name, space or PLAIN, data)
    else:
        from nas.api.inputs import dataset_of
        from nas.check import datasets

        yield from datasets.checks(dataclasses.replace(data, dataset=dataset_of(one.value)))


if __name__ == "__main__":
    run(main)
