"""What a user calls a strategy, as a `StrategyRecord`."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from nas.errors import InputError
from nas.own_file import where
from nas.space import Architecture, SearchSpace
from nas.strategies import Strategy, StrategyConfig, StrategyRecord
from nas.trial import Trial

METHODS = ("ask", "tell", "candidates", "paused")


def record_of(value: object, name: str) -> StrategyRecord:
    """``value``, a `StrategyRecord`, or a function or class that is called with a space and a config.

    Where the second parameter is annotated with a class of `StrategyConfig`, that is its config, and its fields are
    options. What goes wrong in the user's code while it searches is an InputError too. Raises InputError.
    """
    if isinstance(value, StrategyRecord):
        return value
    if not callable(value):
        raise InputError(
            f"strategy: {name} is a {type(value).__name__}, not a StrategyRecord, a function or a class"
        )
    config = _config(value, name)

    def make(space: SearchSpace, config: Any) -> Strategy:
        with _in_one_line(name):
            made: Any = value(space, config)
        missing = [method for method in METHODS if not hasattr(made, method)]
        if missing:
            raise InputError(f"strategy: {name} gave a {type(made).__name__} without {', '.join(missing)}")
        return OwnStrategy(made, name)

    return StrategyRecord(make, config)


def _config(value: Any, name: str) -> type[StrategyConfig]:
    try:
        parameters = list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(named) < 2 or len(needed) > 2:
        raise InputError(f"strategy: {name} is not to be called with two arguments, a space and a config")
    try:
        hints = typing.get_type_hints(value.__init__ if isinstance(value, type) else value)
    except Exception:  # an annotation that cannot be read says nothing
        hints = {}
    config = hints.get(named[1].name)
    return config if isinstance(config, type) and issubclass(config, StrategyConfig) else StrategyConfig


class OwnStrategy:
    """A strategy of a user's, whose exceptions end the search with one line."""

    def __init__(self, strategy: Strategy, name: str) -> None:
        self._strategy, self._name = strategy, name

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        with _in_one_line(self._name):
            return self._strategy.ask(arch)

    def candidates(self) -> Iterator[Architecture]:
        with _in_one_line(self._name):
            return self._strategy.candidates()

    def tell(self, trial: Trial) -> None:
        with _in_one_line(self._name):
            self._strategy.tell(trial)

    @property
    def paused(self) -> frozenset[int]:
        with _in_one_line(self._name):
            return self._strategy.paused


@contextlib.contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"strategy: {name}: {type(error).__name__}: {error}{where(error)}") from error
