"""The pages of the guide are run: what they show is what a reader gets.

A Python block that begins with ``# name.py`` is written to that file. Then the page's Bash blocks run one after the
other, and its other Python blocks as one script, in a folder of the page's own. A block below
``<!-- not run: reason -->`` is not run; the options that it names have to exist all the same.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUICK = {"reasons", "your_data"}  # in the default run; the others take minutes together


class Block(NamedTuple):
    runs: bool
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(not skip, kind, text) for skip, kind, text in BLOCK.findall(page.read_text())]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[] if p.stem in QUICK else [pytest.mark.slow], id=p.stem) for p in PAGES]
)
def test_a_page_runs(page, tmp_path):
    for name in ("scripts", "experiments", "search_spaces", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "MPLBACKEND": "agg"}
    bash, python = [], []
    for block in blocks(page):
        named = re.match(r"# (\w+\.py)\n", block.text)
        if block.runs and block.language == "python" and named:
            (tmp_path / named[1]).write_text(block.text)
        elif block.runs and "quickstart.sh" not in block.text:  # which tests/unit/test_shell.py runs
            (bash if block.language == "bash" else python).append(block.text)
    runs = [(["bash", "-euo", "pipefail", "-c", text], text) for text in bash]
    if python:
        runs.append(([sys.executable, "-c", "\n".join(python)], "\n".join(python)))
    for command, shown in runs:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1000)
        assert done.returncode == 0, f"{page.name}:\n{shown}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_option_on_a_page_exists(page, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "python" and (named := re.match(r"# (\w+\.py)\n", block.text)):
            Path(named[1]).write_text(block.text)
        if block.language != "bash":
            continue
        lines = block.text.replace("\\\n", " ")
        for name, words in re.findall(r"^python scripts/(\w+)\.py(.*)$", lines, re.MULTILINE):
            options = shlex.split(words, comments=True)
            code, shown, complained = script(name, *options, "--help")
            assert (code, complained) == (0, ""), words
            for option in re.findall(r"(?<!\S)--[a-z-]+", " ".join(options)):
                assert re.search(rf"{option}\b", shown), f"{name}: {option}"


def test_every_link_leads_somewhere():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.timeout(600)
def test_the_python_of_the_readme_runs(tmp_path):
    code = "\n".join(block.text for block in blocks(ROOT / "README.md") if block.language == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "depth" in done.stdout
