"""Checks, while tests run, the shapes that signatures state: ``x: Float[Array, "batch height width channel"]``.

jaxtyping's import hook and beartype, applied to the modules that import jaxtyping; of these to the functions whose
annotations name a shape, so that the check costs nothing elsewhere.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

ROOT = Path(__file__).parents[1]
CHECKED = ("nas", "search_spaces")  # packages
KINDS = "|".join(name for name in dir(jaxtyping) if name[0].isupper())  # Float, Int, ...
CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for other type checkers


def modules_with_shapes(folders: Iterable[Path]) -> list[str]:
    """The modules below packages that import jaxtyping, by dotted name."""
    return [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        if re.search(r"^\s*(from|import) jaxtyping\b", path.read_text(), re.MULTILINE)
    ]


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype's check of every call if the signature names a shape, else the function as it is."""
    annotations = inspect.get_annotations(function).values()
    if not any(re.search(rf"\b({KINDS})\[", str(annotation)) for annotation in annotations):
        return function
    return beartype(conf=CONF)(function)


def install(folders: Iterable[Path] = tuple(ROOT / name for name in CHECKED)) -> Any:
    """From now on, imports check shapes; the returned hook has ``uninstall``."""
    return jaxtyping.install_import_hook(modules_with_shapes(folders), "tests.shapes.check")
