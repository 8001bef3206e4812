"""What the README shows is run: its space, and that every option it names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_space_of_the_readme_is_searched(tmp_path, engine):
    (code,) = re.findall(r"```python\n(# my_space.py\n.*?)```", README, re.DOTALL)
    (tmp_path / "my_space.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable, ROOT / "scripts/search.py", "--space", "my_space.py", "--strategy", "evolution",
            "--trials", "3", "--epochs", "1", "--dataset", "digits", "--engine", engine, "--test-seeds", "1",
            "--out", "run",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| evolution |" in done.stdout
    assert "best: my_space.py:depth=" in done.stdout


def test_every_option_in_the_readme_exists(script):
    commands = re.findall(r"^python scripts/(\w+)\.py (.*)$", README.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) > 8
    for name, words in commands:
        options = shlex.split(words, comments=True)
        code, shown, complained = script(name, *options, "--help")
        assert (code, complained) == (0, ""), words
        for option in re.findall(r"--[a-z-]+", " ".join(options)):
            assert re.search(rf"{option}\b", shown), f"{name}: {option}"
