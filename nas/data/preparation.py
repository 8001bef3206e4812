"""Prepare a TFDS set as array_record, by TFDS's own code, from the internet or from files placed by hand.

TFDS asks TensorFlow for little here: to open files and to write PNG. A small stand-in answers for it, so that
most image sets are prepared without TensorFlow, record for record as with it. Where a set needs more, the
error says so. TFDS keeps the stand-in until the process ends: call ``prepare`` in a process of its own, as
``scripts/prepare_data.py`` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import importlib
import importlib.resources.abc
import io
import logging
import os
import re
import resource
import shutil
import socket
import sys
import types
import urllib.request
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from nas.data.cache import locked
from nas.data.tfds_records import Records, first_line, image_and_label
from nas.data.tfds_sets import Located, import_tfds, known_set, parse_name, tfds_folder
from nas.errors import InputError, one_of

_OPEN_FILES = 4096  # TFDS shuffles through 1000 files at once


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A set that is ready. ``images`` counts them by split; ``unchecked`` are files TFDS has no sums for."""

    name: str
    version: str
    folder: Path
    images: Mapping[str, int]
    num_classes: int
    was_there: bool
    unchecked: tuple[str, ...] = ()


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    from_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Prepared:
    """Prepare ``set[/config][:version]`` below ``data_dir`` (default ``TFDS_DATA_DIR``), unless it is there.

    ``from_folder`` holds the set's files as they are downloaded, under the names that TFDS has registered;
    their sizes and sha256 sums must be the registered ones, and nothing is downloaded. A set counts as
    prepared when every shard could be opened and its first image decoded.

    Raises ``InputError``, one line, for what is unknown, missing, damaged, or needs a package.
    """
    known_set(name)
    root = tfds_folder(data_dir)
    folder = None if from_folder is None else Path(from_folder).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise InputError(f"prepare: there is no folder {folder}")
    wanted: list[str] = []
    tfds = import_tfds()
    _stand_in_for_absent_packages(wanted)
    builder = _builder(tfds, name, root, wanted)
    image_and_label(name, builder.info)
    located = Located(name, Path(builder.data_path), str(builder.version), "")
    was_there = located.folder.exists()
    unchecked: tuple[str, ...] = ()
    if not was_there:
        downloads = root / "downloads" / builder.name
        try:
            downloads.mkdir(parents=True, exist_ok=True)
            with locked(downloads.with_name(f".{builder.name}.lock")):
                unchecked = _generate(tfds, builder, downloads, folder, wanted, progress)
        except OSError as error:
            raise InputError(f"prepare: cannot write {root} ({error.strerror or error})") from error
        finally:
            for empty in (downloads, *list(located.folder.parents)[: 1 + name.count("/")]):
                with contextlib.suppress(OSError):
                    empty.rmdir()
    records = Records(located, None)
    records.check()
    return Prepared(
        name, located.version, located.folder, records.splits, records.num_classes, was_there, unchecked
    )


def _builder(tfds: Any, name: str, root: Path, wanted: list[str]) -> Any:
    """TFDS's builder of the set; ``InputError`` for a configuration or version that it does not have."""
    base, config, _ = parse_name(name)
    try:
        configs = [known.name for known in tfds.builder_cls(base).BUILDER_CONFIGS]
        if config is not None and config not in configs:
            raise one_of(f"prepare: configuration of {base}", config, configs or ["(it has none)"])
        builder = tfds.builder(name, data_dir=root)
    except InputError:
        raise
    except Exception as error:  # a set's code is imported here, and may raise anything
        if wanted:
            raise _needs_tensorflow(name, wanted) from error
        what = re.sub(r"^Failed to construct dataset .*?}\": ", "", first_line(error))
        raise InputError(f"prepare: {name}: {what}") from error
    return builder


def _generate(
    tfds: Any, builder: Any, downloads: Path, folder: Path | None, wanted: list[str], progress: bool
) -> tuple[str, ...]:
    """Run TFDS's preparation; returns the files that could not be checked.

    ``downloads`` is this set's alone: TFDS names unpacked files by base name only, so that mnist and
    fashion_mnist sharing one folder would take each other's.
    """
    unpacked = downloads / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # an interrupted preparation may have left half of it
    config = tfds.download.DownloadConfig(extract_dir=unpacked, manual_dir=folder, try_download_gcs=False)
    placed: list[_PlacedFiles] = []
    if folder is None:
        _reachable(builder)
    else:
        make_manager = builder._make_download_manager

        def make_placed(**options: Any) -> _PlacedFiles:
            placed.append(_PlacedFiles(tfds, make_manager(**options), builder, folder))
            return placed[0]

        builder._make_download_manager = make_placed
    if not progress:
        tfds.disable_progress_bar()
    for chatty in ("absl", "urllib3"):  # what goes wrong is in the exception
        logging.getLogger(chatty).setLevel(logging.ERROR)
    _allow_open_files()
    wanted.clear()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself at length
            builder.download_and_prepare(
                download_dir=downloads, download_config=config, file_format="array_record"
            )
    except Exception as error:  # a set's code may raise anything
        raise _explain(error, builder, placed[0] if placed else None, wanted) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return tuple(placed[0].unchecked) if placed else ()


def _explain(
    error: Exception, builder: Any, placed: _PlacedFiles | None, wanted: list[str]
) -> InputError | OSError:
    """The one line for a failed preparation (an ``OSError``: the data folder cannot be written)."""
    name = builder.name
    if placed is not None and placed.problem is not None:
        return placed.problem
    if wanted:
        return _needs_tensorflow(name, wanted)
    if isinstance(error, ImportError):
        return InputError(f"prepare: {name} needs a package that is not installed: {first_line(error)}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return error
    what = f"prepare: {name}: {type(error).__name__}: {first_line(error)}"
    if placed is None:
        return InputError(f"{what}; {_by_hand(builder)}")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        what += f"; what {name} wants: {' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}"
    return InputError(what)


def _needs_tensorflow(name: str, wanted: list[str]) -> InputError:
    return InputError(
        f"prepare: {name} cannot be prepared without TensorFlow ({wanted[-1]}): "
        f"pip install -r requirements-data.txt"
    )


def _reachable(builder: Any) -> None:
    """``InputError`` at once when no host of the set has an address: TFDS would try for minutes."""
    hosts = {host for url in builder.url_infos or {} if (host := urlsplit(url).hostname)}
    if not hosts or urllib.request.getproxies():
        return
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            return
    raise InputError(f"prepare: {builder.name}: cannot reach {', '.join(sorted(hosts))}; {_by_hand(builder)}")


def _by_hand(builder: Any) -> str:
    files = [f"{_file_name(url, info)} ({url})" for url, info in (builder.url_infos or {}).items()]
    listed = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return f"put the files into a folder and give it with --from: {listed or 'see the homepage of the set'}"


class _PlacedFiles:
    """TFDS's download manager, except that each download is a file of ``folder`` with the registered sum."""

    def __init__(self, tfds: Any, manager: Any, builder: Any, folder: Path) -> None:
        from tensorflow_datasets.core.utils.lazy_imports_utils import tree

        self._tfds, self._tree, self._manager = tfds, tree, manager
        self._name, self._folder = builder.name, folder
        self._infos: Mapping[str, Any] = builder.url_infos or {}
        self.downloaded_size = 0
        self.unchecked: list[str] = []
        self.problem: InputError | None = None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._manager, attribute)

    def download(self, urls: Any) -> Any:
        """The files of a tree of URLs; ``InputError`` naming all that are missing or wrong."""
        leaves = self._tree.flatten(urls)
        files = {url: self._folder / _file_name(url, self._infos.get(url)) for url in map(_url, leaves)}
        problems = [problem for url, file in files.items() if (problem := self._problem(url, file))]
        if problems:
            self.problem = InputError(f"prepare: {self._name}: {'; '.join(problems)}")
            raise self.problem
        self.downloaded_size += sum(file.stat().st_size for file in files.values())
        return self._tree.map_structure(lambda leaf: self._tfds.core.Path(files[_url(leaf)]), urls)

    def download_and_extract(self, urls: Any) -> Any:
        """The unpacked files of a tree of URLs."""

        def packed(leaf: Any, file: Any) -> Any:
            method = getattr(leaf, "_extract_method", None)
            return self._tfds.download.Resource(path=file, extract_method=method)

        return self._manager.extract(self._tree.map_structure(packed, urls, self.download(urls)))

    def _problem(self, url: str, file: Path) -> str | None:
        if not file.is_file():
            return f"{file.name} is not in {self._folder} (it is {url})"
        info = self._infos.get(url)
        if info is None:
            self.unchecked.append(file.name)
            return None
        size = file.stat().st_size
        if size != int(info.size):
            return f"{file} has {size} bytes, not {int(info.size)}"
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        return None if found == info.checksum else f"{file} has sha256 {found}, not {info.checksum}"


def _url(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else leaf.url


def _file_name(url: str, info: Any) -> str:
    """The name that TFDS has registered for what is at ``url``, or the last part of it."""
    return (info and info.filename) or PurePosixPath(unquote(urlsplit(url).path)).name


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stand_in_for_absent_packages(wanted: list[str]) -> None:
    """Let TFDS take a stand-in for TensorFlow, and the standard library's for importlib_resources, where these
    are not installed. What TFDS asks the stand-in for and does not get is appended to ``wanted``.

    TFDS imports each once, at its first use. A stand-in can be imported during that use only: other packages,
    which look whether TensorFlow is there, find none.
    """
    from tensorflow_datasets.core import dataset_builder
    from tensorflow_datasets.core.utils import lazy_imports_utils

    for name, module, lazy, used in (
        ("tensorflow", _stand_in(wanted), lazy_imports_utils.tensorflow, "io"),
        ("importlib_resources", importlib.resources, dataset_builder.importlib_resources, "abc"),
    ):
        if _importable(name):
            continue
        sys.modules[name] = module
        try:
            getattr(lazy, used)
        finally:
            del sys.modules[name]


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _stand_in(wanted: list[str]) -> types.ModuleType:
    class Module(types.ModuleType):
        def __init__(self, name: str, **content: Any) -> None:
            super().__init__(name)
            self.__dict__.update(content)

        def __getattr__(self, attribute: str) -> Any:
            wanted.append(f"{self.__name__}.{attribute}")
            raise AttributeError(wanted[-1])

    class NeverRaised(Exception):
        """Stands where TFDS catches what only TensorFlow raises."""

    gfile = Module(
        "tensorflow.io.gfile",
        GFile=_open,
        copy=_copy,
        exists=os.path.exists,
        glob=glob.glob,
        isdir=os.path.isdir,
        listdir=os.listdir,
        makedirs=_makedirs,
        remove=os.remove,
        walk=os.walk,
    )
    return Module(
        "tensorflow",
        __version__="2.21.0",
        bool=np.bool_,
        float32=np.float32,
        int32=np.int32,
        int64=np.int64,
        string=np.object_,
        uint8=np.uint8,
        executing_eagerly=lambda: True,
        compat=Module("tensorflow.compat", as_text=os.fsdecode, as_bytes=os.fsencode),
        errors=Module(
            "tensorflow.errors", ResourceExhaustedError=NeverRaised, UnimplementedError=NeverRaised
        ),
        image=Module("tensorflow.image", encode_png=_encode_png),
        io=Module("tensorflow.io", gfile=gfile),
    )


def _open(path: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def _copy(source: str, target: str, overwrite: bool = False) -> None:
    if not overwrite and os.path.exists(target):
        raise FileExistsError(target)
    shutil.copyfile(source, target)


def _makedirs(path: str) -> None:
    os.makedirs(path, exist_ok=True)


@dataclasses.dataclass(frozen=True)
class _Encoded:
    content: bytes

    def numpy(self) -> bytes:
        return self.content


def _encode_png(pixels: np.ndarray) -> _Encoded:
    """PNG of uint8 [height, width, 1..4]: lossless, so that the pixels are those TensorFlow would write."""
    from PIL import Image

    if pixels.dtype != np.uint8:
        raise TypeError(f"PNG of {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return _Encoded(buffer.getvalue())
