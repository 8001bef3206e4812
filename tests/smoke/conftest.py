"""What smoke tests share: scripts called as on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def loaded(name: str) -> ModuleType:
    """A script as a module, also where the standard library has one of its name (``profile``)."""
    if name not in sys.stdlib_module_names:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """``script("search", "--space", "x")`` -> exit code, standard output, standard error.

    Runs in this process through the same `run` as on the command line: what is tested is all but the
    interpreter's start.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0"))

    def call(name, *arguments):
        module = loaded(name)
        cli = importlib.import_module("_cli")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            cli.run(module.main)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
