"""A user's own Python file: run when it is named, once as long as it stays the same, and what it defines.

Wherever a name is looked up, ``my.py:NAME`` may stand for what ``my.py`` calls ``NAME``. Imports nothing else of nas
but errors, so that every part can use it.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nas.errors import InputError, one_of

FILE_MODULE = "nas_own_file_"
"""How the names of modules made from users' files begin: workers get what these define by value."""


class Named(NamedTuple):
    """``my.py:NAME``; ``name`` is empty where only the file is named."""

    file: str
    name: str


def named_in_file(text: str) -> Named | None:
    """What ``text`` names in a Python file, None where it is no name of one."""
    if text.endswith(".py"):
        return Named(text, "")
    file, colon, name = text.rpartition(":")
    return Named(file, name) if colon and file.endswith(".py") else None


_loaded: dict[str, tuple[tuple[int, int], ModuleType]] = {}


def load_file(file: str, place: str) -> ModuleType:
    """The module made of ``file``; of a file that has not changed since, the same one again.

    Raises InputError, which begins with ``place``, where there is no such file or it does not run.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{place}: no file {file}")
    path = path.resolve()
    stat = path.stat()
    state = (stat.st_mtime_ns, stat.st_size)
    if str(path) in _loaded and _loaded[str(path)][0] == state:
        return _loaded[str(path)][1]
    # Two files of one name in two folders are two modules.
    module_name = f"{FILE_MODULE}{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(module_name)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if before is None:
            del sys.modules[module_name]
        else:
            sys.modules[module_name] = before
        if isinstance(error, InputError) or not isinstance(error, Exception | SystemExit):
            raise
        raise InputError(
            f"{place}: {file} does not run: {type(error).__name__}: {error}{line_in(error, str(path))}"
        ) from error
    _loaded[str(path)] = state, module
    return module


def line_in(error: BaseException, path: str) -> str:
    """`` (line 12)`` where ``error`` came up in that file, the innermost such line."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return ""  # its own text says so
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""


def where(error: BaseException) -> str:
    """`` (my.py, line 12)``: the innermost place of ``error`` in a user's file, nothing where it is in none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _loaded:
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def value_named(text: str, place: str) -> Any:
    """What ``my.py:NAME`` is. Raises InputError, which begins with ``place``."""
    found = named_in_file(text)
    if found is None or not found.name:
        raise InputError(f"{place}: {text!r} is not of the form FILE.py:NAME")
    module = load_file(found.file, place)
    if not hasattr(module, found.name):
        raise one_of(f"{place}: {found.file}", found.name, defined_in(module))
    return getattr(module, found.name)


def defined_in(module: ModuleType) -> dict[str, Any]:
    """What a user's file itself defines, by name: not what it imports, nor names that begin with ``_``."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not (callable(value) and getattr(value, "__module__", module.__name__) != module.__name__)
        and name != "annotations"
    }


def pickled(value: Any, cloudpickle: Any) -> bytes:
    """For other processes, which cannot import files of the user's: what comes from these goes by value.

    ``cloudpickle``: the module, the package's or the one in Ray.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(FILE_MODULE):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(value)
