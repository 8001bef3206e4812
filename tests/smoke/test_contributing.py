"""The recipes of CONTRIBUTING.md: each adds its files and lines to a copy of the tree, and its command runs there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Title and text of every section.
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
)
BLOCK = re.compile(r"^`([\w/]+\.py)`:$|^```(\w+)\n(.*?)^```$", re.M | re.S)


def patched(text: str, diff: str) -> str:
    """``text`` after a hunk without line numbers: what it expects must stand there once."""
    lines = diff.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
    assert text.count(before) == 1, diff
    return text.replace(before, after)


def apply(recipe: str, tree: Path) -> list[str]:
    """Write the files and changes of a section into ``tree``; returns its commands."""
    path, commands = None, []
    for name, language, block in BLOCK.findall(recipe):
        if name:
            path = tree / name
        elif language == "bash":
            commands += block.replace("\\\n", " ").splitlines()
        else:
            assert path is not None, block
            if language == "python":
                assert not path.exists()
            path.write_text(block if language == "python" else patched(path.read_text(), block))
    return commands


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("nas", "search_spaces", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_there_is_a_recipe_for_each() -> None:
    assert set(SECTIONS) == {
        "A strategy",
        "A relaxation",
        "A training-free score",
        "An activation",
        "A search space",
    }


@pytest.mark.parametrize(
    "title",
    [
        title if title == "A training-free score" else pytest.param(title, marks=pytest.mark.slow)
        for title in SECTIONS
    ],
)
def test_the_recipe_runs_as_it_is_written(title: str, tree: Path) -> None:
    commands = apply(SECTIONS[title], tree)
    for command in commands:
        python, *words = shlex.split(command)
        assert python == "python"
        done = subprocess.run(
            [sys.executable, *words], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)},
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ": done, " in done.stderr
        assert not re.search(r"trial \d+ failed", done.stderr)
    assert commands


@pytest.mark.parametrize("title", SECTIONS)
def test_the_recipe_keeps_to_the_style(title: str, tree: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tree)
    apply(SECTIONS[title], tree)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "."]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
