"""What smoke tests share: scripts called as on the command line."""

from __future__ import annotations

import importlib
import os
import sys

import pytest


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """``script("search", "--space", "x")`` -> exit code, standard output, standard error.

    Runs in this process through the same `run` as on the command line: what is tested is all but the
    interpreter's start.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0"))

    def call(name, *arguments):
        module = importlib.import_module(name)
        cli = importlib.import_module("nas.run.command_line")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            cli.run(module.main, getattr(module, "config_type", None))
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
