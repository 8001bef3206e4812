"""Searches that are ended from outside: SIGTERM, a disk that is full, files that call sys.exit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.record import read_run, record_difference

ROOT = Path(__file__).parents[2]
SEARCH = (
    "--space", "chain", "--dataset", "digits", "--fix", "depth=1", "width=8", "head_depth=0", "augmentation=none",
    "--test-seeds", "0",
)  # fmt: skip


def started(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts/search.py"), *SEARCH, *options]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_search_with_one_line(tmp_path: Path, engine: str, how: signal.Signals) -> None:
    process = started(tmp_path, "--engine", engine, "--trials", "500", "--epochs", "3", "--out", "run")
    record, limit = tmp_path / "run" / "trials.jsonl", time.monotonic() + 120
    while not (record.exists() and record.read_text().count('"measurement"') > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no progress"
        time.sleep(0.05)
    os.kill(process.pid, how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    said = "terminated" if how == signal.SIGTERM else "interrupted"
    lines = [line for line in err.splitlines() if not line.startswith("random seed 0: ")]
    assert lines == [f"error: {said}; what was measured is kept, --resume goes on where the script has it"]
    assert len(read_run(tmp_path / "run").trials) > 1


@pytest.mark.slow
def test_a_full_disk_ends_a_search_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    options = ("--engine", "local", "--strategy", "hyperband", "--epochs", "4", "--eta", "2")
    try:
        process = started(tmp_path, *options, "--out", "disk/run")
        _, err = process.communicate(timeout=200)
        assert process.returncode == 74, err
        assert err.splitlines()[-1].startswith("error: ")
        assert not read_run(disk / "run").failed
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        for folder, more in (("disk/run", ("--resume",)), ("whole", ())):
            process = started(tmp_path, *options, "--out", folder, *more)
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
        assert record_difference(disk / "run", tmp_path / "whole") is None
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_space_file_that_calls_exit_is_one_line(script, tmp_path: Path) -> None:
    Path("ends.py").write_text("import sys\nsys.exit(7)\n")
    code, _, err = script("search", "--space", "ends.py")
    assert (code, err) == (2, "error: space: ends.py does not run: SystemExit: 7 (line 2)\n")


POOLS = {
    "meter": "from nas.run.metering import process\nwith process(serve) as meter: meter(None)",
    "table": "from nas.run.simulated import _in_processes\nnext(_in_processes(serve, [None], 2))",
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_processes_that_serve_another_end_when_it_is_killed(tmp_path: Path, pool: str) -> None:
    script = tmp_path / "script.py"
    served = "import time\ndef serve():\n    print('served', flush=True)\n    time.sleep(600)\n"
    body = "".join(f"    {line}\n" for line in POOLS[pool].splitlines())
    script.write_text(f"{served}if __name__ == '__main__':\n{body}")
    killed = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert killed.stdout
    assert killed.stdout.readline() == "served\n"
    killed.kill()
    killed.communicate(timeout=30)  # till nobody holds the pipe
