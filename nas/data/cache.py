"""Folders of ``.npy`` files that are written once, by one process, and memory-mapped by all.

An entry is complete or absent: it is written under another name and renamed. ``meta.json`` holds the size and
CRC-32 of every file. The CRC is computed again only for a file whose modification time is not the recorded
one, so that opening an entry costs a few ``stat`` calls, and a file that was touched is still found out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nas.errors import InputError

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_BLOCK = 1 << 20


class _Unusable(Exception):
    """The entry is not there, or not whole."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An open entry: ``meta`` as its builder returned it, and the arrays by name."""

    folder: Path
    meta: Mapping[str, Any]
    crc32: Mapping[str, int]

    def array(self, name: str) -> np.ndarray:
        """The array, memory-mapped and read-only."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


class Writer:
    """Writes the arrays of one entry: by plain writes, for a full disk kills who writes a memory map."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, dict[str, int]] = {}

    @contextlib.contextmanager
    def array(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """Open array ``name`` of ``shape``; yields a function that appends rows until it is full."""
        path = self._folder / f"{name}.npy"
        with open(path, "wb") as file:
            output = _Summed(file)
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(output, header)
            rows = 0

            def append(chunk: np.ndarray) -> None:
                nonlocal rows
                if chunk.dtype != dtype or chunk.shape[1:] != shape[1:]:
                    raise ValueError(f"{name}: {chunk.dtype}{list(chunk.shape)} in {dtype}{list(shape)}")
                output.write(np.ascontiguousarray(chunk).data)
                rows += len(chunk)

            yield append
            if rows != shape[0]:
                raise ValueError(f"{name}: {rows} rows of {shape[0]}")
            file.flush()
            os.fsync(file.fileno())
        status = path.stat()
        self.files[path.name] = {
            "bytes": status.st_size,
            "crc32": output.crc32,
            "mtime_ns": status.st_mtime_ns,
        }

    def whole(self, name: str, values: np.ndarray) -> None:
        """Write an array that is in memory already."""
        with self.array(name, values.shape, values.dtype.type) as append:
            append(values)


class _Summed:
    """A binary file that keeps the CRC-32 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc32 = 0

    def write(self, data: Any) -> None:
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)


def cached(folder: Path, build: Callable[[Writer], Mapping[str, Any]]) -> Entry:
    """Open the entry ``folder``, building it first when it is absent or damaged.

    ``build`` writes the arrays and returns what ``Entry.meta`` shall be (plain JSON). Of several processes
    that want the same entry one builds and the others wait. An entry that is there needs no write access.

    Raises ``InputError`` when the entry must be built and the folder cannot be written. ``build`` may raise
    what it likes except ``OSError``, which is taken to be about the cache.
    """
    try:
        return _open(folder)
    except _Unusable as reason:
        _LOG.info("%s: %s", folder, reason)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            with contextlib.suppress(_Unusable):
                return _open(folder)  # another process built it while this one waited
            partial = folder.with_name(f".{folder.name}.partial")
            _remove(partial)
            partial.mkdir()
            try:
                writer = Writer(partial)
                meta = build(writer)
                text = json.dumps({"format": _FORMAT, "files": writer.files, "meta": meta}, indent=1)
                (partial / "meta.json").write_text(text)
            except BaseException:
                _remove(partial)
                raise
            _remove(folder)
            partial.rename(folder)
            _LOG.info("%s: built", folder)
        return _open(folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"data cache: cannot write {folder} ({reason}); set NAS_CACHE_DIR to a folder with room"
        ) from error
    except _Unusable as reason:
        raise InputError(f"data cache: {folder} does not keep what is written to it ({reason})") from reason


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on file ``path``, which stays; the system frees it if the process dies."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _open(folder: Path) -> Entry:
    try:
        record = json.loads((folder / "meta.json").read_bytes())
        if record["format"] != _FORMAT:
            raise _Unusable(f"format {record['format']}")
        for name, expected in record["files"].items():
            status = (folder / name).stat()
            if status.st_size != expected["bytes"]:
                raise _Unusable(f"{name} has {status.st_size} bytes, not {expected['bytes']}")
            if status.st_mtime_ns != expected["mtime_ns"] and _crc32(folder / name) != expected["crc32"]:
                raise _Unusable(f"{name} was changed")
        crc32 = {name.removesuffix(".npy"): file["crc32"] for name, file in record["files"].items()}
        return Entry(folder, record["meta"], crc32)
    except FileNotFoundError as error:
        raise _Unusable(f"{error.filename} is not there") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Unusable(f"{type(error).__name__}: {error}") from error


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
