"""What several scripts share: architectures by name or run, tables, PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nas.errors import InputError, one_of

if TYPE_CHECKING:
    from nas.record import Run
    from nas.space import Architecture, Cell, SearchSpace
    from search_spaces.named import Named


def import_torch() -> Any:
    """PyTorch, set to all cores. Raises InputError where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("torch: not installed; pip install -r requirements-bench.txt") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


class Chosen(NamedTuple):
    """What ``--arch`` and its like mean; ``named`` where it is a named network, ``run`` where it is a run's."""

    space: SearchSpace
    arch: Architecture
    named: Named | None
    run: Run | None


def chosen(text: str) -> Chosen:
    """The best architecture of a run's folder, a named network, or ``space:architecture``. Raises InputError."""
    from nas.record import is_run, read_run
    from search_spaces import spaces_with
    from search_spaces.zoo import find_architecture

    if not os.path.isdir(text) or not is_run(text):  # an architecture's text may be no possible file name
        return Chosen(*find_architecture(text), None)
    found = read_run(text)
    name = str(found.config.get("space"))
    spaces = spaces_with(name)
    if name not in spaces:
        raise one_of(f"{text}: its space", name, spaces)
    if found.best is None:
        raise InputError(f"{text}: no trial was measured there")
    return Chosen(spaces[name], found.best.chosen, None, found)


def operations(config: Mapping[str, Any], arch: Architecture) -> dict[str, Any] | None:
    """An architecture by the names of the open choices of its run's supernet; None where there is no such space."""
    from search_spaces import spaces_with

    name = str(config.get("space"))
    try:
        space = spaces_with(name).get(name)
        if space is None or space.supernet is None:
            return None
        searched = space.searched(fix=config.get("fix", ()), narrow=config.get("narrow", ()))
        return space.supernet(searched).operations(arch)
    except InputError:  # the space has changed since, or its file is gone: figures say less then
        return None


def cells(config: Mapping[str, Any], arch: Architecture) -> Mapping[str, Cell] | None:
    """The cells of an architecture of a run by name; None where there is no such space or it is not made of cells."""
    from search_spaces import spaces_with

    name = str(config.get("space"))
    try:
        space = spaces_with(name).get(name)
    except InputError:  # its file is gone
        return None
    return None if space is None or space.cells is None else space.cells(arch)


def print_table(runs: Iterable[Any]) -> None:
    """The comparison table of these runs and the notes that belong below it."""
    from nas.report import result_table

    runs = tuple(runs)
    print(result_table.to_markdown(result_table.comparison(runs)))
    for note in result_table.notes(runs):
        print(f"- {note}")
