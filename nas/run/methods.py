"""Every way to search by name: the strategies of `nas.strategies`, and the searches with shared weights."""

from __future__ import annotations

import dataclasses
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path

from nas.errors import one_of
from nas.oneshot.settings import METHODS
from nas.own_file import named_in_file, value_named
from nas.run.own_strategy import record_of
from nas.space import SearchSpace
from nas.strategies import STRATEGIES, PlannedBudget, Strategy, StrategyConfig, StrategyRecord
from nas.strategies.grid import GridConfig, grid


@dataclasses.dataclass(frozen=True)
class SupernetConfig(StrategyConfig):
    """Of a search with shared weights: each setting and each of ``trials`` repetitions is one search."""

    supernet: tuple[str, ...] = ()
    """settings of the search with shared weights: channels=8 order=first,exact (several values are several searches)"""


def shared_weights(method: str) -> StrategyRecord:
    """The record of one of `nas.oneshot.settings.METHODS`: a grid over the settings of its searches."""

    def settings(config: SupernetConfig, space: SearchSpace) -> SearchSpace:
        from nas.objectives.oneshot import (  # here: a command line does not wait for jax
            settings_space,
            supernet_of,
        )

        return settings_space(method, supernet_of(space), config.supernet, config.trials or 1)

    def make(space: SearchSpace, config: SupernetConfig) -> Strategy:
        order = GridConfig(seed=config.seed, epochs=config.epochs, grid_shuffle=False)
        return grid(settings(config, space), order)

    def planned_budget(config: SupernetConfig, space: SearchSpace) -> PlannedBudget:
        searches = settings(config, space).size().value
        return PlannedBudget(searches, searches * config.epochs)

    return StrategyRecord(make, SupernetConfig, planned_budget, shares_weights=True)


ONESHOT: dict[str, StrategyRecord] = {name: shared_weights(name) for name in METHODS}
SEARCHES: Mapping[str, StrategyRecord] = ChainMap(ONESHOT, STRATEGIES)
"""Both, as they are when asked: what is added to `STRATEGIES` later is there too."""


GIVEN: dict[str, StrategyRecord] = {}
"""Strategies that a program has given `nas.search` as values, by the names that their records have."""


def search_named(name: str, place: str = "strategy") -> StrategyRecord:
    """The strategy ``name``, or what a file defines, ``my.py:MyStrategy``. Raises InputError where there is none."""
    if name in SEARCHES:
        return SEARCHES[name]
    if name in GIVEN:
        return GIVEN[name]
    if named_in_file(name) is None:
        raise one_of(place, name, SEARCHES)
    return record_of(value_named(name, place), name)


def options_of(record: StrategyRecord) -> tuple[str, ...]:
    """The names of a strategy's options, common ones included."""
    return tuple(field.name for field in dataclasses.fields(record.config))


def with_option(option: str) -> tuple[str, ...]:
    """The strategies that have an option of this name."""
    return tuple(name for name, record in SEARCHES.items() if option in options_of(record))


def foreign_options(names: Iterable[str]) -> frozenset[str]:
    """The options that some strategy has, but none of ``names``."""
    every = {option for record in SEARCHES.values() for option in options_of(record)}
    return frozenset(every.difference(*(options_of(search_named(name)) for name in names)))


def label_of(name: str) -> str:
    """A strategy's name as part of a folder's name: ``my.py:Mine`` is ``my-Mine``."""
    named = named_in_file(name)
    return f"{Path(named.file).stem}-{named.name}" if named else re.sub(r"[^\w.+-]+", "_", name)
