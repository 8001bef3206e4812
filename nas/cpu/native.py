"""The C++ kernels for CPU: built by the system's compiler on first use, kept in a cache folder.

``NAS_NATIVE=0`` does without them, ``NAS_NATIVE=-convolution,-pooling`` without those named (`enabled`). They live
under ``NAS_CACHE_DIR`` (or ~/.cache/nas), one shared library for each source, compiler, jaxlib and processor. XLA calls
them through its foreign function interface.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

_SOURCES = Path(__file__).parent / "kernels"
_TARGETS = (
    "nas_conv",
    "nas_conv_dx",
    "nas_conv_dw",
    "nas_separable",
    "nas_separable_backward",
    "nas_max_pool",
    "nas_max_pool_dx",
    "nas_max_pool_gather",
    "nas_sum_pool",
    "nas_moments",
    "nas_batch_norm",
    "nas_batch_norm_backward",
    "nas_batch_norm_backward_tangent",
    "nas_relu",
    "nas_relu_backward",
    "nas_add",
    "nas_weighted_sum",
    "nas_weighted_sum_backward",
    "nas_mixture",
    "nas_mixture_backward",
)
_FLAGS = ("-O3", "-std=c++17", "-fPIC")
_BUILD_SECONDS = 300
_building = threading.Lock()  # the cache below would let two threads build


@dataclass(frozen=True)
class _Native:
    """The kernels' shared library, or None and why not."""

    library: Path | None
    status: str


class _BuildError(Exception):
    """The kernels cannot be built or loaded; one line says why."""


def native_status() -> str:
    """One line: whether CPU programs use the native kernels, and if not, why. Builds them if need be."""
    return _native().status


def available() -> bool:
    """Whether the native kernels are registered with XLA. Builds them if need be; never raises."""
    return _native().library is not None


def enabled(name: str) -> bool:
    """Whether the kernels called ``name`` are to be used: all but those that ``NAS_NATIVE=-name,-name`` leaves out."""
    return f"-{name}" not in os.environ.get("NAS_NATIVE", "").split(",") and available()


def call(target: str, shape: tuple[int, ...], *arrays: jax.Array, **attributes: Any) -> jax.Array:
    """The kernel ``target`` on float32 arrays: its one result, of this shape."""
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, np.float32))(*arrays, **attributes)


def _native() -> _Native:
    with _building:
        return _found()


@functools.cache
def _found() -> _Native:
    if os.environ.get("NAS_NATIVE") == "0":
        return _Native(None, "XLA's own operations: NAS_NATIVE=0")
    try:
        path, library = _load(_compiler())
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (_BuildError, OSError, ImportError, AttributeError, subprocess.SubprocessError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return _Native(None, f"XLA's own operations: {first_line}")
    return _Native(path, f"native kernels: {path.name}")


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    for command in [named] if named else ["g++", "clang++", "c++"]:
        words = command.split()
        if words and shutil.which(words[0]):
            return words
    raise _BuildError(f"no C++ compiler ({named or 'g++, clang++, c++'})")


def _load(compiler: list[str]) -> tuple[Path, ctypes.CDLL]:
    """The library from the cache, built there if need be; this process's own if the cache is no use."""
    name = f"kernels-{_key(compiler)}.so"
    try:
        path = _cache_folder() / name
        return path, _cached(compiler, path)
    except (OSError, RuntimeError):  # read-only, full, no home, not private
        path = Path(tempfile.mkdtemp(prefix="nas-kernels-")) / name
        try:
            _build(compiler, path)
            return path, ctypes.CDLL(str(path))
        finally:
            shutil.rmtree(path.parent)


def _cached(compiler: list[str], path: Path) -> ctypes.CDLL:
    if path.exists() and _is_private(path):
        with contextlib.suppress(OSError):  # a damaged one is replaced
            return ctypes.CDLL(str(path))
    with _locked(path.with_suffix(".lock")):
        if path.exists() and _is_private(path):  # by now
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(path))
        _build(compiler, path)
    return ctypes.CDLL(str(path))


def _cache_folder() -> Path:
    """Where the library is kept. Raises OSError where others could have put one: it runs as us."""
    root = Path(os.environ.get("NAS_CACHE_DIR") or Path.home() / ".cache" / "nas").expanduser()
    folder = root / "native"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(root) or not _is_private(folder):
        raise OSError(f"{folder} can be written by others")
    return folder


def _is_private(path: Path) -> bool:
    """Whether nobody but this user (and root) can have written ``path``."""
    if not hasattr(os, "getuid"):  # Windows, which has no modes
        return True
    status = path.stat()
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _key(compiler: list[str]) -> str:
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, check=True, timeout=_BUILD_SECONDS
    ).stdout
    parts = [
        *(path.name.encode() + path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file())
    ]
    parts += [
        " ".join([*compiler, *_FLAGS]).encode(),
        version,
        importlib.metadata.version("jaxlib").encode(),
        processor().encode(),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def processor() -> str:
    """What `-march=native` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kept = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name")}
        return "\n".join(sorted(kept))
    return f"{platform.machine()} {platform.processor()}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where there are no native kernels

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: list[str], path: Path) -> None:
    """Compile the kernels to ``path``, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=path.parent) as folder:
        built = Path(folder) / path.name
        try:
            _compile(compiler, "-march=native", built)
        except _BuildError:  # what some compilers call it for Arm
            _compile(compiler, "-mcpu=native", built)
        built.chmod(0o700)  # whatever the umask: `_is_private` refuses a file that a group may write to
        os.replace(built, path)


def _compile(compiler: list[str], tuned: str, built: Path) -> None:
    """Compile all sources at once, then link them."""
    objects = {source: built.with_name(f"{source.stem}.o") for source in sorted(_SOURCES.glob("*.cc"))}
    include = ("-I", jax.ffi.include_dir())
    commands = [
        [*compiler, *_FLAGS, tuned, *include, "-c", str(source), "-o", str(to)]
        for source, to in objects.items()
    ]
    with concurrent.futures.ThreadPoolExecutor(len(commands)) as threads:
        list(threads.map(_run, commands))
    _run([*compiler, "-shared", "-o", str(built), *map(str, objects.values())])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS)
    if done.returncode:
        lines = done.stderr.splitlines()
        line = next((line for line in lines if "error" in line), f"failed with {done.returncode}")
        raise _BuildError(f"{command[0]}: {line}")
