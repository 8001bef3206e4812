"""What every script shares: the import path, the process's memory settings, options, one-line errors."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from nas.errors import InputError, one_of  # noqa: E402  (the path has to be set first)

if TYPE_CHECKING:
    from nas.record import Run
    from nas.space import Architecture, Cell, SearchSpace
    from search_spaces.named import Named

# glibc hands large buffers back to the system at once, so that every training step pays page faults;
# this makes memory-bound steps 1.2 to 3 times faster, and is read only when a process starts.
MALLOC = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
)


def keep_buffers() -> None:
    """Restart this process once with glibc told to keep large buffers (Linux; a no-op elsewhere)."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def import_torch() -> Any:
    """PyTorch, set to all cores. Raises InputError where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("torch: not installed; pip install -r requirements-bench.txt") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def run(main: Callable[[Any], None], *, compute: bool = False) -> None:
    """Call ``main(config)`` with the options of its frozen dataclass; errors are one line and an exit code.

    A union of dataclasses, each with another Literal for one option: that option chooses (see `config_meant`).
    ``compute=True`` for scripts that train: the process restarts once with better memory settings.
    Exit codes: 2 bad input (one ``error:`` line), 74 the disk is full, 130 Ctrl-C.
    """
    if compute:
        keep_buffers()
    try:
        config_type = config_meant(typing.get_type_hints(main)["config"], sys.argv[1:])
        config = parse(config_type, sys.argv[1:])
        main(config)
        sys.stdout.flush()
    except InputError as error:
        fail(str(error), 2)
    except BrokenPipeError:  # the reader (head, less) went away: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        fail("interrupted; what was measured is kept, --resume goes on where the script has it", 130)
    except MemoryError:
        fail("out of memory", 71)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"disk full: {problem.filename or 'while writing'}; what was measured is kept", 74)
        if problem.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and problem.filename:
            fail(f"{problem.filename}: {problem.strerror}", 2)
        raise


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
    from search_spaces.zoo import find_architecture

    if not os.path.isdir(text) or not is_run(text):  # an architecture's text may be no possible file name
        return Chosen(*find_architecture(text), None)
    found = read_run(text)
    space, name = recorded_space(found.config, space_file), str(found.config.get("space"))
    if space is None and name.endswith(".py"):
        raise InputError(f"{text}: its space is the file {name}; name it with --space for it to be run")
    if space is None:
        from search_spaces import SPACES

        raise one_of(f"{text}: its space", name, SPACES)
    if found.best is None:
        raise InputError(f"{text}: no trial was measured there")
    return Chosen(space, found.best.chosen, None, found)


def recorded_space(config: Mapping[str, Any], space_file: str | None = None) -> SearchSpace | None:
    """The space of a run's config: one of ours by its name, or where the config names a file that of ``space_file``.

    None where there is none; a file that only the config names is never run. Raises InputError.
    """
    from search_spaces import SPACES, spaces_with

    name = str(config.get("space"))
    if not name.endswith(".py"):
        return SPACES.get(name)
    if space_file is None:
        return None
    if not space_file.endswith(".py"):
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


def fail(line: str, code: int) -> typing.NoReturn:
    print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def config_meant(config_type: Any, argv: list[str]) -> type:
    """Of a union of dataclasses, the one that the command line means; any other type as it is.

    They are told apart by the option that is a Literal of one value in each; its default is the first one's.
    Raises InputError where the value given is none of them.
    """
    members: tuple[type, ...] = typing.get_args(config_type)
    if not members:
        return config_type
    hints = [typing.get_type_hints(member) for member in members]
    literals = [
        {name for name, hint in of.items() if typing.get_origin(hint) is typing.Literal} for of in hints
    ]
    (name,) = (
        name
        for name in set.intersection(*literals)
        if len({typing.get_args(of[name]) for of in hints}) == len(members)
    )
    by_value = {typing.get_args(of[name])[0]: member for of, member in zip(hints, members, strict=True)}
    option = "--" + name.replace("_", "-")
    value = next(iter(by_value))
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        given, equals, written = word.partition("=")
        if given.replace("_", "-") == option:
            value = written if equals else following
    if value not in by_value:
        raise one_of(name, value, by_value)
    return by_value[value]


def parse(config_type: type, argv: list[str]) -> Any:
    """The dataclass from the command line; tyro's boxed messages become one line."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                config_type,
                args=gather(config_type, argv),
                description=config_type.__doc__,
                config=(tyro.conf.OmitArgPrefixes,),  # --dataset, not --data.dataset
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # The message stands between the first two rules of a box, drawn as the terminal allows.
        rows = [re.sub(r"\x1b\[[0-9;]*m|[│|╭╮╰╯]", "", row).strip() for row in errors.getvalue().splitlines()]
        rules = [i for i, row in enumerate(rows) if row[:2] in ("─ ", "──", "--", "- ")]
        message = " ".join(rows[rules[0] + 1 : rules[1]] if len(rules) > 1 else rows).strip()
        message = re.sub(r" [.]$", "", message)
        # What a dataclass says of its own values is a whole line already.
        said = re.sub(r"^Error parsing [A-Za-z]\w*: ", "", message)
        raise InputError(said if said != message else f"{message} (see --help)") from None


def gather(config_type: type, argv: list[str]) -> list[str]:
    """``--fix a=1 --fix b=2`` means ``--fix a=1 b=2``: repeated options of tuple type are joined."""
    joined: dict[str, list[str]] = {}
    rest: list[str] = []
    into = rest
    tuples = {
        "--" + name.replace("_", "-")
        for name, hint in typing.get_type_hints(config_type).items()
        if typing.get_origin(hint) is tuple
    }
    for word in argv:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if word.startswith("--") and option in tuples:
            into = joined.setdefault(option, [])
            if equals:
                into.append(value)
            continue
        if word.startswith("--"):
            into = rest
        into.append(word)
    return rest + [word for option, values in joined.items() for word in (option, *values)]
