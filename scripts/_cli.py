"""What several scripts share: architectures by name or run, tables, PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nas.cores import local_cores
from nas.errors import InputError, one_of
from nas.own_file import named_in_file

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
    torch.set_num_threads(len(local_cores()))
    return torch


class Chosen(NamedTuple):
    """What ``--arch`` and its like mean; ``named`` where it is a named network, ``run`` where it is a run's."""

    space: SearchSpace
    arch: Architecture
    named: Named | None
    run: Run | None


def chosen(text: str, space_file: str | None = None) -> Chosen:
    """The best architecture of a run's folder, a named network, or ``space:architecture``.

    A run whose space is a file needs it named again as ``space_file``: reading a run runs nothing. Raises InputError.
    """
    from nas.record import is_run, read_run
    from nas.storage import copied
    from search_spaces.zoo import find_architecture

    text = str(copied(text))
    if not os.path.isdir(text) or not is_run(text):  # an architecture's text may be no possible file name
        return Chosen(*find_architecture(text), None)
    found = read_run(text)
    space, name = recorded_space(found.config, space_file), str(found.config.get("space"))
    if space is None and named_in_file(name) is not None:
        raise InputError(f"{text}: its space is the file {name}; name it with --space for it to be run")
    if space is None:
        from search_spaces import SPACES

        raise one_of(f"{text}: its space", name, SPACES)
    if found.best is None and not found.is_search and found.finals:  # a training without validation
        return Chosen(space, found.finals[0].arch, None, found)
    if found.best is None:
        raise InputError(f"{text}: no trial was measured there")
    return Chosen(space, found.best.chosen, None, found)


def recorded_space(config: Mapping[str, Any], space_file: str | None = None) -> SearchSpace | None:
    """The space of a run's config: one of ours by its name, or where the config names a file that of ``space_file``.

    None where there is none; a file that only the config names is never run. Raises InputError.
    """
    from search_spaces import SPACES, spaces_with

    name = str(config.get("space"))
    if named_in_file(name) is None:
        return SPACES.get(name)
    if space_file is None:
        return None
    if named_in_file(space_file) is None:
        raise InputError(f"space: {space_file!r} is not the name of a Python file")
    return spaces_with(space_file)[space_file]


def operations(
    config: Mapping[str, Any], arch: Architecture, space_file: str | None = None
) -> dict[str, Any] | None:
    """An architecture by the names of the open choices of its run's supernet; None without `recorded_space`."""
    space = recorded_space(config, space_file)
    if space is None or space.supernet is None:
        return None
    try:
        searched = space.searched(fix=config.get("fix", ()), narrow=config.get("narrow", ()))
        return space.supernet(searched).operations(arch)
    except InputError:  # the space has changed since: figures say less then
        return None


def cells(
    config: Mapping[str, Any], arch: Architecture, space_file: str | None = None
) -> Mapping[str, Cell] | None:
    """The cells of an architecture of a run by name; None without `recorded_space`, or where it has no cells."""
    space = recorded_space(config, space_file)
    return None if space is None or space.cells is None else space.cells(arch)


def print_table(runs: Iterable[Any]) -> None:
    """The comparison table of these runs and the notes that belong below it."""
    from nas.report import result_table

    runs = tuple(runs)
    print(result_table.to_markdown(result_table.comparison(runs)))
    for note in result_table.notes(runs):
        print(f"- {note}")
