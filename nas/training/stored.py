"""Compiled programs on disk, shared by all processes and kept from run to run.

JAX's persistent cache saves XLA's work, but a program has to be traced and lowered before its entry can be
found, which for small networks takes longer than compiling their native kernel calls. So whole training
programs are also kept as executables, found by what they are made from without tracing anything.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from nas.cache import cache_root
from nas.cpu import native_status, processor

SOURCES = ("nas", "search_spaces")  # what a program's values can depend on beside the network's own module


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, shared by all processes: below ``NAS_CACHE_DIR`` or ``~/.cache/nas``.

    A folder chosen by ``JAX_COMPILATION_CACHE_DIR`` stays.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def stored(what: str, shape: Any, network: Any, lower: Callable[[str], jax.stages.Lowered]) -> Any:
    """``lower(name)`` compiled, from disk where an equal program was stored before.

    Equal means: the same ``what``, ``shape`` and network by their repr, sources, versions, flags and devices.
    What cannot be read, for whatever reason, is compiled again; what cannot be written is not. A network with
    a module whose source is not at hand here is never stored: it could have changed. ``name`` is to
    be the jitted function's: it keeps the program apart from others in JAX's own cache.
    """
    key = _key(what, shape, network)
    if key is None:
        return lower(what).compile()
    path = cache_root() / "programs" / key
    with contextlib.suppress(Exception):  # damaged, or of a jax that reads it no more
        return serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
    before = _hits()
    program = lower(f"{what}_{key}").compile()
    if _hits() > before:
        return program  # XLA cannot serialise what itself came from JAX's cache: it would not run
    with contextlib.suppress(Exception):  # a full disk, a platform that cannot serialise
        payload = pickle.dumps(serialize_executable.serialize(program))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(payload)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
    return program


@functools.cache
def _counter() -> list[int]:
    """Fills with the thread's number for each program that JAX's own cache gives to a thread."""
    hits: list[int] = []

    def listen(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(threading.get_ident())

    jax.monitoring.register_event_listener(listen)
    return hits


def _hits() -> int:
    return _counter().count(threading.get_ident())


def _key(what: str, shape: Any, network: Any) -> str | None:
    devices = [f"{device.platform} {device.device_kind}" for device in jax.local_devices()]
    flags = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NAS_NATIVE")}
    modules = sorted({type(part).__module__ for part in (network, *_modules(network))})
    sources = [_module_source(name) for name in modules]
    if None in sources:
        return None
    parts = (
        what, repr(shape), repr(network), sources, _sources(), jax.__version__,
        importlib.metadata.version("jaxlib"), sys.version, devices, flags, native_status(), processor(),
        jax.config.values["jax_enable_x64"], jax.config.values["jax_default_matmul_precision"],
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _modules(network: Any) -> list[Any]:
    return [node.module for node in getattr(network, "nodes", ())]


@functools.cache
def _module_source(name: str) -> str | None:
    """The text of a module's file, such as a user's own space; None where it came to this process without."""
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):
        return None


@functools.cache
def _sources() -> str:
    """A digest of this project's own sources."""
    digest = hashlib.sha256()
    for package in SOURCES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
