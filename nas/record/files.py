"""The folder of a record: ``config.json``, ``env.json`` and one append-only file of JSON lines.

Safety. The writer holds an exclusive lock on the file. A line is one write to a descriptor opened for
appending, then an fsync; what a killed process or a full disk leaves of a line is cut off before anything is
written behind it. ``config.json`` is written last when a folder is made: a folder without it is no record yet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas.errors import InputError

CONFIG = "config.json"
ENV = "env.json"


class RecordFile:
    """The writer of one such folder; made by `create` or `resume`, ended by `close`. Use from one thread."""

    def __init__(
        self, folder: Path, file: str, config: dict[str, Any], descriptor: int, size: int, fsync: bool
    ) -> None:
        self.folder, self.file = folder, file
        self.config: Mapping[str, Any] = MappingProxyType(config)
        self._descriptor: int | None = descriptor
        self._fsync = fsync
        self._size = size  # bytes of whole lines; anything behind them is a torn line of ours
        self._torn = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        file: str,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, Any] | None = None,
        fsync: bool = True,
    ) -> RecordFile:
        """Start an empty ``file`` in ``folder``, which may exist as long as it holds no record.

        Args:
            config: plain JSON values; what a resumption must repeat.
            env: goes to ``env.json``; `environment()` unless given.
            fsync: False survives a kill but not a power cut.

        Raises:
            InputError: the folder holds a record already, is in use, or cannot be written.
        """
        folder = Path(folder)
        try:
            load(json.dumps(plain(dict(config)), allow_nan=False).encode())
        except ValueError as error:
            raise InputError(f"{folder}: its config cannot be recorded: {error}") from error
        taken = f"{folder}: holds a run already; go on with --resume or choose another --out"
        if (folder / CONFIG).exists():
            raise InputError(taken)
        with one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
            # Looked at again under the lock: another process may have made this record meanwhile.
            if (folder / CONFIG).exists():
                raise InputError(taken)
            if os.fstat(descriptor).st_size:
                raise InputError(f"{folder}: has {file} but no {CONFIG}; choose another --out")
            with one_line(folder):
                write_json(folder / ENV, plain(dict(environment() if env is None else env)))
                write_json(folder / CONFIG, plain(dict(config)))
            return cls(folder, file, read_json(folder / CONFIG), descriptor, 0, fsync)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        file: str,
        config: Mapping[str, Any],
        accept: Callable[[Sequence[Any]], None],
        *,
        may_differ: Collection[str] = (),
        env: Mapping[str, Any] | None = None,
        fsync: bool = True,
    ) -> RecordFile:
        """Open the ``file`` in ``folder`` to go on with it; a torn last line is cut off.

        Args:
            config: must equal the recorded one, but for the keys in ``may_differ``.
            accept: is given the lines as `parse_lines` returns them, before the file is touched, and may raise.
            env: as for `create`; where it differs from the recorded one, the differences are added to
                the list ``resumed`` in ``env.json``.

        Raises:
            InputError: no record there, another config, damaged, in use, or not writable.
        """
        folder = Path(folder)
        if not holds(folder, file):
            raise InputError(f"{folder}: no run to resume there; start it without --resume")
        recorded = read_json(folder / CONFIG)
        _check_config(folder, recorded, plain(dict(config)), may_differ)
        with one_line(folder):
            descriptor = os.open(folder / file, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, folder)
            with one_line(folder):
                data = (folder / file).read_bytes()
            lines, tail = parse_lines(data)
            accept(lines)
            size = len(data) - len(tail)
            with one_line(folder):
                if _is_complete(tail):  # killed between the last byte of a line and its newline
                    os.write(descriptor, b"\n")
                    size = len(data) + 1
                elif tail:
                    os.ftruncate(descriptor, size)
                if tail:
                    os.fsync(descriptor)
                _add_environment(folder / ENV, plain(dict(environment() if env is None else env)))
            return cls(folder, file, recorded, descriptor, size, fsync)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def closed(self) -> bool:
        """Whether the lock has been given up."""
        return self._descriptor is None

    def close(self) -> None:
        """Give up the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def append(self, line: str, kept: Callable[[], str]) -> None:
        """Write ``line`` (JSON, without its newline).

        Raises `InputError`, which says what is ``kept``, where it cannot be written, and leaves the file as it was.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.folder}: the record is closed")
        descriptor, data = self._descriptor, line.encode() + b"\n"
        try:
            if self._torn:
                os.ftruncate(descriptor, self._size)
                self._torn = False
            found = os.fstat(descriptor)
            if not found.st_nlink:
                raise InputError(f"{self.folder}: {self.file} was removed while the run was going")
            if found.st_size != self._size:
                raise InputError(
                    f"{self.folder}: {self.file} was changed by another program; it is left as it is"
                )
            self._torn = True
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if self._fsync:
                os.fsync(descriptor)
        except OSError as error:
            # If this fails too (a disk that went away), the next write tries again before it appends.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
                self._torn = False
            raise InputError(f"{self.folder}: {_reason(error)}; {kept()} kept") from error
        self._torn = False
        self._size += len(data)


def holds(folder: str | Path, file: str) -> bool:
    """Whether ``folder`` holds such a record, finished or not."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / file).is_file()


def read(folder: Path, file: str) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The config, the environment and the whole lines (see `parse_lines`) of a folder, also while it is written.

    Raises InputError: it is no such folder, or cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for name in (CONFIG, file):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a run folder, {name} is missing")
    with one_line(folder, "cannot read"):
        lines, _ = parse_lines((folder / file).read_bytes())
    env = read_json(folder / ENV) if (folder / ENV).is_file() else {}
    return read_json(folder / CONFIG), env, lines


def parse_lines(data: bytes) -> tuple[list[Any], bytes]:
    """The whole lines of a record as `load` reads them (a ValueError for one that it refuses, in its place) and what
    follows the last newline; where that is a whole line but for its newline, it is among the lines too."""
    *whole, tail = data.split(b"\n")
    if _is_complete(tail):
        whole.append(tail)
    lines: list[Any] = []
    for line in whole:
        try:
            lines.append(load(line))
        except ValueError as error:
            lines.append(ValueError(f"damaged line, {error}"))
    return lines, tail


def _is_complete(tail: bytes) -> bool:
    """No proper prefix of a JSON object is JSON, so what parses was written to its last brace."""
    try:
        return isinstance(load(tail), dict)
    except ValueError:
        return False


MOST_NESTED = 64  # containers within each other: a config and an event have a handful


def load(data: bytes) -> Any:
    """The JSON in ``data``.

    Raises ValueError, in a few words: not JSON, a number that does not fit into 64 bits, or nested too deeply.
    """
    try:
        value = _DECODER.decode(data.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if data.count(b"{") + data.count(b"[") > MOST_NESTED and _depth(value) > MOST_NESTED:
        raise ValueError("nested too deeply")
    return value


def _depth(value: Any) -> int:
    """The depth of nesting, found without recursion."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [x for inner in level for x in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"{text[:20]}{'…' if len(text) > 20 else ''} does not fit into 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]}{'…' if len(text) > 20 else ''} does not fit into 64 bits")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"not JSON ({name})")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: numpy scalars as Python's, tuples as lists, NaN and infinities as None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's and jax's scalars, without importing either
        return plain(value.item())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be recorded: not a JSON value")


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "ray", "optuna")


def environment(devices: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader must know to run this again: versions, machine and commit; no host name, no path.

    ``devices`` comes from the caller (``[device.device_kind for device in jax.devices()]``): importing jax
    takes seconds and may claim an accelerator.
    """
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "devices": list(devices),
        "packages": versions,
        **_commit(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """The commit this code stands at and whether files were changed since; nothing outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "uncommitted_changes": bool(status)}


def _check_config(
    folder: Path, recorded: Mapping[str, Any], given: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    def shown(config: Mapping[str, Any], name: str) -> str:
        return json.dumps(config[name]) if name in config else "nothing"

    different = [
        f"{name}={shown(given, name)} (recorded: {shown(recorded, name)})"
        for name in sorted(recorded.keys() | given.keys())
        if name not in may_differ and shown(recorded, name) != shown(given, name)
    ]
    if different:
        raise InputError(
            f"{folder}: cannot resume with another config: {', '.join(different)}; choose another --out"
        )


def _add_environment(path: Path, now: dict[str, Any]) -> None:
    recorded = read_json(path) if path.is_file() else {}
    resumed = recorded.pop("resumed", [])
    latest = functools.reduce(lambda seen, change: seen | change, resumed, recorded)
    change = {key: value for key, value in now.items() if latest.get(key, ...) != value}
    if change:
        write_json(path, {**recorded, "resumed": [*resumed, change]})


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{folder}: another process is writing this run") from error
    except OSError as error:
        raise InputError(f"{folder}: files cannot be locked there ({error.strerror})") from error


@contextlib.contextmanager
def one_line(folder: Path, verb: str = "cannot write") -> Iterator[None]:
    """Turn an OSError into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: {_reason(error, verb)}") from error


def _reason(error: OSError, verb: str = "cannot write") -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk full"
    return f"{verb} ({error.strerror or error})"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where it is damaged or cannot be read."""
    with one_line(path, "cannot read"):
        data = path.read_bytes()
    try:
        value = load(data)
    except ValueError as error:
        raise InputError(f"{path}: damaged, {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged, not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must survive a power cut as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
