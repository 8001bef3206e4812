"""scripts/compare.py --objective table as it is started from a shell: finished, killed, resumed, reported on."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.record.comparison import SEARCHES, is_comparison
from nas.tables import write_table
from search_spaces import SPACES
from tests.planted import planted

ROOT = Path(__file__).parents[2]
FIXED = ("edge_0_1=nor_conv_3x3", "edge_0_3=skip_connect", "edge_1_3=none")
FILES = ["table.md", "table.csv", "table.tex", "tests.md"]
FILES += ["regret.png", "profiles.png", "ranks.png", "improvement.png", "report.html"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "planted.npz"
    write_table(planted(SPACES["nasbench201"].restrict(fix=FIXED), 1, noise=0.01, within=FIXED)[1], path)
    return path


def command(table: Path, out: Path, *options: str) -> list[str]:
    line = [
        sys.executable,
        str(ROOT / "scripts" / "compare.py"),
        "--objective",
        "table",
        "--table",
        str(table),
    ]
    line += ["--strategies", "random", "hyperband", "evolution+params", "--budget-trainings", "20"]
    return [*line, "--seeds", "40", "--out", str(out), *options]


def run(line: list[str]) -> str:
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"NAS_TEST_MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_until(done, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, "no progress"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_same_bytes_and_leaves_no_process(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    printed = run(command(table, whole, "--processes", "1"))
    assert [Path(line).name for line in printed.splitlines()[-len(FILES) :]] == FILES
    assert printed.startswith((whole / "table.md").read_text().partition("\n\n")[0])
    mark = uuid.uuid4().hex
    # More seeds than it will come to, so that it is killed in the middle.
    with subprocess.Popen(
        command(table, out, "--seeds", "4000", "--processes", "2"),
        cwd=ROOT,
        env=os.environ | {"NAS_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        searches = out / SEARCHES
        wait_until(
            lambda: process.poll() is not None or (is_comparison(out) and searches.stat().st_size > 20_000)
        )
        assert process.poll() is None, "it was over before it was killed"
        os.kill(process.pid, signal.SIGKILL)
    if Path("/proc/self/environ").exists():
        wait_until(lambda: not marked(mark), 30)
    lines = searches.read_bytes().splitlines(keepends=True)
    expected = (whole / SEARCHES).read_bytes().splitlines(keepends=True)
    assert len(lines) >= 5
    for mine, theirs in zip(lines[:-1], expected, strict=False):  # a line cut by the kill is the last
        assert mine == theirs
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"seeds": 4000', '"seeds": 40'))
    searches.write_bytes(b"".join(lines)[: sum(map(len, expected)) - 100])
    run(command(table, out, "--resume", "--processes", "1"))
    for name in (SEARCHES, "table.md", "tests.md", "regret.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    report = importlib.import_module("report")
    (out / "table.md").unlink()
    report.main(report.Config(runs=(out,)))
    assert capsys.readouterr().out == printed.replace(str(whole), str(out))
    assert (out / "table.md").read_bytes() == (whole / "table.md").read_bytes()
    with pytest.raises(InputError, match="is a comparison over a table, which is reported on by itself"):
        report.main(report.Config(runs=(out, whole)))
