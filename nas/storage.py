"""Run folders and data in a bucket: ``gs://bucket/folder``, and whatever else fsspec knows.

A run is written to a local folder, as ever, and a thread copies what is new to the bucket: first the record, in the
order in which it is read, then checkpoints and the rest. A bucket that cannot be reached for a while holds nothing
up. Where the local folder is gone, `--resume` begins with the bucket's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nas.cache import cache_folder
from nas.errors import InputError

PERIOD_SECONDS = 5.0
"""The mirror is never further behind than this and what one round of copying takes."""
LAST_SECONDS = 10.0
"""How long the end of a search waits for the bucket: a machine that is taken away gives 15 seconds."""
REMOTE = re.compile(r"(gs|gcs|s3|az|abfs|memory):/+(.+)")
RECORDS = ("config.json", "env.json", "trials.jsonl", "searches.jsonl")  # what is copied first, in this order


def remote(path: str | Path) -> str | None:
    """``path`` as a URL where it is one: ``gs://bucket/run``, also as `pathlib.Path` shortens it; else None."""
    match = REMOTE.fullmatch(str(path))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


def local_folder(url: str) -> Path:
    """Where a run that is mirrored to ``url`` is written: the same path below ``runs``."""
    return Path("runs").joinpath(
        *(part for part in url.partition("://")[2].split("/") if part not in ("", ".", ".."))
    )


@contextlib.contextmanager
def mirrored(out: str | Path, *, resume: bool = False, writes: bool = True) -> Iterator[Path]:
    """The local folder of ``out``; within, and at the end, what is new in it is copied to ``out`` where that is a URL.

    ``writes``: False in a process that only computes. Raises InputError where the bucket cannot be read at the start,
    holds a run already, or holds another run than the local folder; what happens to it later is said in one line and
    loses nothing here.
    """
    url = remote(out)
    if url is None:
        yield Path(out)
        return
    if not writes:
        yield local_folder(url)
        return
    mirror = Mirror(url, local_folder(url))
    mirror.begin(resume)
    print(f"note: {url} is written to {mirror.folder} and mirrored from there", file=sys.stderr, flush=True)
    mirror.start()
    try:
        yield mirror.folder
    finally:
        mirror.stop()


def copied(path: str | Path) -> str | Path:
    """``path``; where it is a URL, the local folder with the records that lie there.

    What is here and further than the bucket stays as it is: a search may be writing it. Raises InputError.
    """
    url = remote(path)
    if url is None:
        return path
    mirror = Mirror(url, local_folder(url))
    if not mirror.records():
        raise InputError(f"{url}: nothing is there")
    if mirror.is_ahead():
        mirror.download(checkpoints=False)
    return mirror.folder


def fetched(url: str, name: str) -> Path:
    """A cache folder with the files of ``url/name`` at ``name``, downloaded once. Raises InputError."""
    into = cache_folder("downloads") / re.sub(r"[^\w.-]+", "_", url)
    if not (into / name).exists():
        partial = into / f"{name}.{os.getpid()}.partial"  # workers may want the same at once
        shutil.rmtree(partial, ignore_errors=True)
        if Mirror(f"{url}/{name}", partial).download() and not (into / name).exists():
            with contextlib.suppress(OSError):  # another one was quicker
                partial.rename(into / name)
        shutil.rmtree(partial, ignore_errors=True)
    return into


class Mirror:
    """Copies of ``folder`` at ``url``."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._copied: dict[str, tuple[int, int]] = {}  # of each file: time of its change and size, as copied
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = False
        self._files, self._root = _file_system(url)

    def begin(self, resume: bool) -> None:
        """Settle which of the two folders is the run. Raises InputError."""
        if self.records() and not resume:
            raise InputError(f"{self.url}: holds a run already; go on with --resume or choose another --out")
        if self.is_ahead():
            self.download()

    def records(self) -> list[str]:
        """The names of the records that the bucket has. Raises InputError."""
        return [name for name in self._list() if name.endswith(".jsonl")]

    def is_ahead(self) -> bool:
        """Whether the bucket has more of the run than the folder. InputError where they are of different runs."""
        ahead = False
        for name in self.records():
            theirs, path = self._read(name), self.folder / name
            ours = path.read_bytes() if path.exists() else b""
            if not theirs.startswith(ours) and not ours.startswith(theirs):
                raise InputError(f"{self.url}/{name} and {path} are of different runs; remove one of them")
            ahead |= len(theirs) > len(ours)
        return ahead

    def download(self, *, checkpoints: bool = True) -> int:
        """Copy the bucket's files here, over those that are here; how many there were. Raises InputError."""
        names = [name for name in self._list() if checkpoints or "checkpoints/" not in f"{name}/"]
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._read(name))
        return len(names)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"mirror of {self.url}")
        self._thread.start()

    def stop(self) -> None:
        """Copy what is left, for `LAST_SECONDS` at most; what could not be copied is said in one line."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
        if left := len(self._new()):
            print(
                f"warning: {self.url}: {left} files of {self.folder} could not be mirrored; --resume copies them",
                file=sys.stderr,
                flush=True,
            )

    def _run(self) -> None:
        while True:
            last = self._ending.wait(PERIOD_SECONDS)
            try:
                self.copy()
                self._complained = False
            except Exception as error:  # whatever a bucket's library raises: the search does not end of it
                if not self._complained:
                    print(
                        f"note: {self.url}: {_reason(error)}; tried again every {PERIOD_SECONDS:g} s",
                        file=sys.stderr,
                        flush=True,
                    )
                self._complained = True
            if last and not self._complained:
                return
            if last:
                time.sleep(1)  # the process may end meanwhile: the thread does not keep it

    def copy(self) -> None:
        """Copy what is new, records first; remove there what was copied and is here no more."""
        for name, state in self._new().items():
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that was deleted meanwhile
                self._files.pipe_file(f"{self._root}/{name}", (self.folder / name).read_bytes())
                self._copied[name] = state
        for name in [name for name in self._copied if not (self.folder / name).exists()]:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")
            del self._copied[name]

    def _new(self) -> dict[str, tuple[int, int]]:
        """The files that are not there as they are here, in the order in which they are to be copied."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if "tmp" in name or not path.is_file():
                continue  # a checkpoint being written
            status = path.stat()
            if self._copied.get(name) != (status.st_mtime_ns, status.st_size):
                found[name] = (status.st_mtime_ns, status.st_size)

        def order(name: str) -> tuple[int, str]:
            last = name.rpartition("/")[2]
            return (RECORDS.index(last) if last in RECORDS else len(RECORDS), name)

        return {name: found[name] for name in sorted(found, key=order)}

    def _list(self) -> list[str]:
        with _one_line(self.url):
            self._files.invalidate_cache()
            if not self._files.exists(self._root):
                return []
            start = len(self._root.strip("/")) + 1
            return sorted(path.strip("/")[start:] for path in self._files.find(self._root))

    def _read(self, name: str) -> bytes:
        with _one_line(f"{self.url}/{name}"):
            return self._files.cat_file(f"{self._root}/{name}")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        with _one_line(url):
            return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url}: {error}: pip install -r requirements-cloud.txt") from None


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:  # whatever a bucket's library raises
        raise InputError(f"{place}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
