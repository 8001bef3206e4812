"""What a caller may give for a space, a data set, a strategy, an objective and options, as the engine takes them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import InputError, one_of
from nas.run.options import SearchOptions
from nas.space import SearchSpace
from nas.strategies import StrategyRecord
from nas.strategies.base import converted

SPACES_BY_NAME = "search_spaces"
"""The package whose ``spaces_with`` knows spaces by name. It builds on nas, so it is imported when a name is asked for
and not before: a program with spaces of its own needs none of it."""

Space = str | os.PathLike[str] | SearchSpace
DataSet = str | os.PathLike[str] | tuple[Any, ...] | Mapping[str, Any]
Strategy = str | StrategyRecord | Callable[..., Any]
Objective = str | Callable[..., Any] | Iterable[str]

# The arrays that a tuple of so many means.
_TUPLES = {
    2: ("images", "labels"),
    4: ("images", "labels", "test_images", "test_labels"),
    6: ("images", "labels", "valid_images", "valid_labels", "test_images", "test_labels"),
}


def spaces_of(space: Space) -> tuple[str, Mapping[str, SearchSpace]]:
    """The name of a space, and the spaces there are by name. Raises InputError."""
    if isinstance(space, SearchSpace):
        return space.name, {space.name: space}
    name = os.fspath(space)
    try:
        home = importlib.import_module(SPACES_BY_NAME)
    except ModuleNotFoundError as error:
        if error.name != SPACES_BY_NAME:
            raise
        raise InputError(
            f"space: {name!r}: the package {SPACES_BY_NAME}, which has the spaces by name, is not installed; "
            "give a SearchSpace"
        ) from None
    spaces = home.spaces_with(name)
    if name not in spaces:
        raise one_of("space", name, spaces)
    return name, spaces


def dataset_of(dataset: DataSet) -> str:
    """The name or path of a data set; arrays are kept in the cache, where workers read them. Raises InputError."""
    from nas.data.own_sets import keep_arrays

    if isinstance(dataset, str | os.PathLike):
        text = os.fspath(dataset)
        # A path is one, also where the text alone might be a set's name.
        return f"{text}{os.sep}" if isinstance(dataset, os.PathLike) and Path(text).is_dir() else text
    if isinstance(dataset, Mapping):
        return keep_arrays(dataset)
    if not isinstance(dataset, tuple | list):
        raise InputError(f"dataset: a {type(dataset).__name__} is neither a name, a path nor arrays")
    arrays = list(dataset)
    if arrays and all(isinstance(part, tuple | list) and len(part) == 2 for part in arrays):
        arrays = [array for part in arrays for array in part]  # ((images, labels), (images, labels))
    if len(arrays) not in _TUPLES:
        raise InputError(
            f"dataset: {len(arrays)} arrays are neither (images, labels) nor "
            "((images, labels), (test_images, test_labels))"
        )
    return keep_arrays(dict(zip(_TUPLES[len(arrays)], arrays, strict=True)))


def strategy_of(strategy: Strategy) -> str:
    """The name of a strategy; a value gets that of its function or class. Raises InputError."""
    from nas.run.methods import GIVEN, SEARCHES, search_named
    from nas.run.own_strategy import record_of

    if isinstance(strategy, str):
        search_named(strategy)
        return strategy
    for known, record in SEARCHES.items():
        if record is strategy:
            return known
    made = strategy.make if isinstance(strategy, StrategyRecord) else strategy
    name = getattr(made, "__name__", type(made).__name__).strip("_")
    if name in SEARCHES:
        raise InputError(f"strategy: {name} is the name of another strategy; give yours another one")
    GIVEN[name] = record_of(strategy, name)
    return name


def objective_of(objective: Objective) -> tuple[str, ...]:
    """The names of what a search is after; a function gets its own name. Raises InputError."""
    from nas.objectives.own import OBJECTIVES, check_function
    from nas.objectives.quantities import KNOWN
    from nas.proxies import Proxy

    if isinstance(objective, str):
        return (objective,)
    if callable(objective) or isinstance(objective, Proxy):
        function = objective.score if isinstance(objective, Proxy) else objective
        name = getattr(function, "__name__", type(function).__name__)
        if name in KNOWN or name == "train":
            raise InputError(f"objective: {name} is the name of another objective; give yours another one")
        if not isinstance(objective, Proxy):
            check_function(objective, name)
        OBJECTIVES[name] = typing.cast(Any, objective)
        return (name,)
    names = tuple(objective)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("objective: give one name or function, or several names")
    return names


def options_with(base: SearchOptions, strategies: Iterable[str], given: Mapping[str, Any]) -> SearchOptions:
    """``base`` with ``given`` settings, each by its name: of the search, its data, its training, its strategies.

    Assignments may be mappings: ``fix={"depth": 3}, narrow={"width": (16, 32)}``. Raises InputError.
    """
    from nas.run.methods import search_named
    from nas.strategies import combined_config

    plan = converted(base.plan, combined_config(map(search_named, strategies)))
    return _with(dataclasses.replace(base, plan=plan), given)


def _with(options: Any, given: Mapping[str, Any]) -> Any:
    """``options`` with ``given`` settings, of its own or of the dataclasses that it has. Raises InputError."""
    parts: dict[str, Any] = {"": options} | {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if dataclasses.is_dataclass(getattr(options, field.name))
    }
    places = {
        field.name: part
        for part, value in reversed(parts.items())
        for field in dataclasses.fields(value)
        if field.name not in parts
    }
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in given.items():
        if name not in places:
            raise one_of("option", name, sorted(places))
        part = parts[places[name]]
        changes[places[name]][name] = _checked(type(part), name, _plain(getattr(part, name), value))
    own = changes.pop("")
    changed = {part: dataclasses.replace(parts[part], **values) for part, values in changes.items() if values}
    return dataclasses.replace(options, **own, **changed)


def _checked(of: type, name: str, value: Any) -> Any:
    """``value`` for the field ``name`` of the dataclass ``of``. Raises InputError where it is none."""
    try:
        hint = typing.get_type_hints(of)[name]
    except (NameError, KeyError):  # of a class made of several, elsewhere
        return value
    if not _fits(hint, value):
        choices = [choice for part in (hint, *typing.get_args(hint)) for choice in _literals(part)]
        if choices:
            raise one_of(name, value, choices)
        raise InputError(f"{name}: {value!r} is no {_called(hint)}")
    return Path(value) if Path in typing.get_args(hint) and isinstance(value, str) else value


def _fits(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(typing.get_args(hint)[0], part) for part in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str | os.PathLike)
    return not isinstance(hint, type) or isinstance(value, hint)


def _literals(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _called(hint: Any) -> str:
    """A type in words."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "bool",
        type(None): "None",
        Path: "path",
    }
    return " or ".join(names.get(part, "tuple of such") for part in parts)


def _plain(default: Any, value: Any) -> Any:
    """A value for a field that has ``default``: tuples of assignments are what command lines have."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(default, tuple):
        return value
    if isinstance(value, Mapping):
        return tuple(f"{name}={_text(to)}" for name, to in value.items())
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset | range):
        return ",".join(map(str, value))
    return str(value)


def named_spaces(name: str) -> Mapping[str, SearchSpace]:
    """The spaces there are by name, with that of a file; a function of a module, for other processes."""
    return spaces_of(name)[1]


def strategies_of(strategies: Strategy | Iterable[Strategy] | None) -> list[str]:
    """The names of one strategy or of several, on a table also STRATEGY+SCORE. Raises InputError."""
    if strategies is None:
        return []
    one = isinstance(strategies, str | StrategyRecord) or not isinstance(strategies, Iterable)
    names = []
    for each in [typing.cast(Any, strategies)] if one else typing.cast(Any, strategies):
        if isinstance(each, str) and "+" in each:
            name, _, score = each.partition("+")
            names.append(f"{strategy_of(name)}+{score}")
        else:
            names.append(strategy_of(each))
    return names


def table_options(strategies: Iterable[str], given: Mapping[str, Any]) -> Any:
    """`nas.run.simulated.TableOptions` with ``given`` settings. Raises InputError."""
    from nas.run.methods import search_named
    from nas.run.simulated import TableOptions
    from nas.strategies import STRATEGIES, combined_config

    names = tuple(strategies)
    plan: Any = combined_config(search_named(name.partition("+")[0]) for name in names or STRATEGIES)
    place = {name: given[name] for name in ("space", "table") if name in given}
    return _with(TableOptions(**place, strategies=names, plan=plan()), given)
