"""A command line made of a dataclass: options, one-line errors with exit codes, the process's memory settings."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from nas.ending import ProcessLost, Terminated, terminate
from nas.errors import InputError, did_you_mean, is_disk_full, one_of
from nas.run.help import Topics, by_topic

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


# What the system says of a path that may not, or cannot, be what it is given as.
REFUSED = (errno.EACCES, errno.EROFS, errno.EPERM)
NO_SUCH_PATH = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def run(
    main: Callable[[Any], int | None],
    config_type: Callable[[list[str]], type] | None = None,
    *,
    compute: bool = False,
    topics: Topics | None = None,
) -> None:
    """Call ``main(config)`` with the options of its frozen dataclass; errors are one line and an exit code.

    ``config_type``: the dataclass that the words of the command line mean, where it depends on them.
    ``compute=True`` for scripts that train: the process restarts once with better memory settings.
    ``topics``: under which titles ``--help`` has the options.
    Exit codes: what ``main`` returns, else 0; 2 bad input (one ``error:`` line), 74 the disk is full, 130 Ctrl-C,
    143 SIGTERM.
    """
    if compute and not wants_help(sys.argv[1:]):
        keep_buffers()
    try:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, terminate)
        argv = sys.argv[1:]
        meant = typing.get_type_hints(main)["config"] if config_type is None else config_type(argv)
        config = parse(meant, argv, topics)
        if os.environ.get("JAX_COORDINATOR_ADDRESS"):
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the service's own notes
            from nas.training import processes

            processes.join()
        try:
            code = main(config)
        except SystemExit as stop:  # none of our own
            fail(f"a file that was loaded called sys.exit({stop.code!r})", 2)
        sys.stdout.flush()
        if os.environ.get("JAX_COORDINATOR_ADDRESS"):
            from nas.training import processes

            processes.leave(code or 0)
        if code:
            raise SystemExit(code)
    except InputError as error:
        fail(str(error), 74 if is_disk_full(error) else 2)
    except BrokenPipeError:  # the reader (head, less) went away: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except ProcessLost as lost:
        print(f"error: {lost}; what was measured is kept, --resume goes on", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(75)  # ending as usual would wait for the process that is gone
    except KeyboardInterrupt as signalled:
        # A checkpoint that was being written in the background fails now; it would be passed over, too.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        how, code = ("terminated", 143) if isinstance(signalled, Terminated) else ("interrupted", 130)
        fail(f"{how}; what was measured is kept, --resume goes on where the script has it", code)
    except MemoryError:
        fail("out of memory", 71)
    except OSError as problem:
        if is_disk_full(problem):
            fail(f"disk full: {problem.filename or 'while writing'}; what was measured is kept", 74)
        if problem.errno in REFUSED + NO_SUCH_PATH and problem.filename:
            fail(f"{problem.filename}: {problem.strerror}", 2)
        raise


def fail(line: str, code: int) -> typing.NoReturn:
    print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        os._exit(code)  # the usual way out would wait for the other processes
    raise SystemExit(code)


def config_meant(by_value: Mapping[str, type], name: str, argv: list[str]) -> type:
    """Of several dataclasses, the one that the option ``name`` means; without it the first.

    Raises InputError where its value is none of them.
    """
    option = "--" + name.replace("_", "-")
    value = next(iter(by_value))
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        given, equals, written = word.partition("=")
        if given.replace("_", "-") == option:
            value = written if equals else following
    if value not in by_value:
        raise one_of(name, value, by_value)
    return by_value[value]


def wants_help(argv: list[str]) -> bool:
    return bool({"-h", "--help"} & set(argv))


def parse(config_type: type, argv: list[str], topics: Topics | None = None) -> Any:
    """The dataclass from the command line; tyro's boxed messages become one line."""
    import tyro

    if topics is not None and wants_help(argv):
        config_type = by_topic(config_type, topics)

    for before, word in itertools.pairwise(["", *argv]):
        if not word or (word.startswith("--") and word.endswith("=")):
            option = word.removesuffix("=") or (before if before.startswith("--") else "an argument")
            raise InputError(f"{option}: is empty")
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
        if said == message:
            said = f"{message}{_meant(message, config_type)} (see --help)"
        raise InputError(said) from None


def _meant(message: str, config_type: type) -> str:
    """What a misspelt option, or a value that is none of its choices, is most like, if anything."""
    if found := re.match(r"Unrecognized options: (--[\w-]+)", message):
        options = ["--" + name.replace("_", "-") for name in flat_hints(config_type)]
        return did_you_mean(found[1].replace("_", "-"), options)
    if found := re.match(r"invalid choice '(.*)' for argument .* Expected one of \((.*)\)", message):
        return did_you_mean(found[1], re.findall(r"'(.*?)'", found[2]))
    return ""


def gather(config_type: type, argv: list[str]) -> list[str]:
    """``--fix a=1 --fix b=2`` means ``--fix a=1 b=2``: repeated options of tuple type are joined."""
    joined: dict[str, list[str]] = {}
    rest: list[str] = []
    into = rest
    tuples = {
        "--" + name.replace("_", "-")
        for name, hint in flat_hints(config_type).items()
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


def flat_hints(config_type: type) -> dict[str, Any]:
    """The types of all options by field name, those of dataclasses within it included."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config_type).items():
        found |= (
            flat_hints(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {name: hint}
        )
    return found
