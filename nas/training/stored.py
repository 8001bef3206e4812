"""Compiled programs on disk, shared by all processes and kept from run to run.

JAX's persistent cache saves XLA's work, but a program has to be traced and lowered before its entry can be found.
For a `chain` network that takes 40 to 190 ms a training step and 25 to 80 ms an evaluation; loading the
executable takes 10 to 30 ms. So whole training programs are also kept as executables, found without tracing by
what they are made from: the network and the sources that it can depend on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
from jax.experimental import serialize_executable

from nas import cpu
from nas.cache import cache_folder, is_safe

# What lowers JAX's own operations on CPU, which a network uses without naming it.
LOWERINGS = ("nas.cpu",)
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_disable_most_optimizations")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # and what begins with NAS_, folders aside


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, shared by all processes: below ``NAS_CACHE_DIR`` or ``~/.cache/nas``.

    A folder chosen by ``JAX_COMPILATION_CACHE_DIR`` stays. Raises InputError where others can write to ours.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def stored(what: str, shape: Any, network: Any, lower: Callable[[str], jax.stages.Lowered]) -> Any:
    """``lower(name)`` compiled, from disk where an equal program was stored before.

    Equal means: the same ``what``, ``shape`` and network by their fields, sources, versions, flags and devices.
    What cannot be read, for whatever reason, is compiled again; what cannot be written is not. A network with
    a module whose source is not at hand here, or with a value known by its address alone, is never stored: it
    could have changed. ``name`` is to be the jitted function's: it keeps the program apart from others in JAX's
    own cache. The program takes arguments, and runs on the first devices of this process. Raises InputError where
    others can write to ours: unpickling runs whatever they put there.
    """
    key = _key(what, shape, network, lower) if jax.process_count() == 1 else None
    if key is None:
        return cpu.compiled(lower(what))
    path = cache_folder("programs") / key
    if is_safe(path):
        with contextlib.suppress(Exception):  # damaged, or of a jax that reads it no more
            devices, *parts = pickle.loads(path.read_bytes())
            return serialize_executable.deserialize_and_load(
                *parts, execution_devices=jax.local_devices()[:devices]
            )
    before = _hits()
    program = cpu.compiled(lower(f"{what}_{key}"))
    if _hits() > before:
        return program  # XLA cannot serialise what itself came from JAX's cache: it would not run
    with contextlib.suppress(Exception):  # a full disk, a platform that cannot serialise
        devices = len(jax.tree.leaves(program.input_shardings)[0].device_set)
        payload = pickle.dumps((devices, *serialize_executable.serialize(program)))
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


class _NoNameError(Exception):
    """A value that nothing but its address in this process tells from others."""


def _key(what: str, shape: Any, network: Any, lower: Callable[..., Any]) -> str | None:
    function = getattr(lower, "func", lower)  # of a functools.partial
    modules = {function.__module__, *(name for name in LOWERINGS if name in sys.modules)}
    try:
        described = _described((what, shape, network), modules)
    except (_NoNameError, ValueError, RecursionError):  # the latter of a function that closes over itself
        return None
    sources = _sources(frozenset(modules))
    if sources is None:
        return None
    flags = {name: value for name, value in sorted(os.environ.items()) if _is_flag(name)}
    devices = [f"{device.platform} {device.device_kind}" for device in jax.local_devices()]
    parts = (
        described, sources, sys.version, devices, flags, cpu.native_status(), cpu.processor(),
        *(jax.config.values[name] for name in SETTINGS),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _described(value: Any, modules: set[str]) -> Any:
    """``value`` in plain values: modules by their fields, functions by their code and what they close over.

    (Flax's own repr has the last name of a function alone.) Adds to ``modules`` where classes and functions are
    defined. Raises _NoNameError.
    """
    if isinstance(value, tuple | list):
        return [_described(part, modules) for part in value]
    if isinstance(value, Mapping):
        return [(_described(key, modules), _described(part, modules)) for key, part in value.items()]
    if isinstance(value, functools.partial):
        return ["partial", *(_described(p, modules) for p in (value.func, value.args, value.keywords))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        fields = [(name, _described(getattr(value, name), modules)) for name in names]
        return [_described(type(value), modules), fields]
    if isinstance(value, CodeType):
        parts = (value.co_firstlineno, value.co_code, value.co_names, value.co_consts)
        return [_described(part, modules) for part in parts]
    if isinstance(value, FunctionType):
        modules.add(value.__module__)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells)
        return [value.__module__, *(_described(part, modules) for part in parts)]
    if callable(value) and hasattr(value, "__qualname__"):  # a class, or what jax.jit and the like make
        if "<" in value.__qualname__:  # which another function made
            raise _NoNameError
        modules.add(value.__module__)
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    if " at 0x" in text:
        raise _NoNameError
    return text


def _is_flag(name: str) -> bool:
    return name in FLAGS or (name.startswith("NAS_") and not name.endswith("_DIR"))


@functools.cache
def _sources(roots: frozenset[str]) -> str | None:
    """A digest of the modules ``roots`` and of all that they hold something of, through any number of others.

    Installed packages count by their version, all others by their text; None where a text is not at hand, such as
    that of a space which came to this process without its file. What draws, records or runs a search is not
    reached, so that changing it leaves stored programs valid; nor is what functions import when called.
    """
    texts: dict[str, bytes] = {}
    versions: dict[str, str] = {}
    open_names = set(roots)
    while open_names:
        name = open_names.pop()
        package = name.partition(".")[0]
        if name in texts or package in versions or package in sys.stdlib_module_names:
            continue
        try:
            module = sys.modules[name]
            if _is_installed(module):
                versions[package] = str(getattr(sys.modules[package], "__version__", None))
                continue
            texts[name] = Path(str(module.__file__)).read_bytes()
        except (KeyError, OSError, AttributeError):
            return None
        open_names |= {_module_of(value) for value in tuple(vars(module).values())} - {""}
    return hashlib.sha256(repr((sorted(texts.items()), sorted(versions.items()))).encode()).hexdigest()


def _module_of(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _is_installed(module: ModuleType) -> bool:
    """Whether it belongs to a package beside JAX, this project's own not counted."""
    if module.__name__.partition(".")[0] in ("nas", "search_spaces"):
        return False
    path = getattr(module, "__file__", None)
    return path is None or Path(path).is_relative_to(sysconfig.get_paths()["purelib"])
