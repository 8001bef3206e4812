"""Four processes as one, over gloo: what one computes they compute, and one of them killed costs nothing recorded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARCH = (
    "minichain:depth=2,width=4,kernel=3,connections=plain,normalisation=batch,learning_rate=0.1,"
    "augmentation=crop+cutout"
)
TRAIN = ("train.py", "--arch", ARCH, "--dataset", "digits", "--validate", "--hyper", "batch_size=64")
SEARCH = (
    "search.py", "--space", "chain", "--fix", "depth=2", "width=16", "--strategy", "darts_first", "--trials", "1",
    "--dataset", "digits", "--subset", "400", "--supernet", "eigenvalue=false", "--engine", "local", "--epochs", "2",
    "--test-seeds", "0",
)  # fmt: skip


def started(count: int, out: Path, *command: str) -> list[subprocess.Popen[str]]:
    """``command`` with ``--out``, in ``count`` processes that join each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    script, *options = command
    line = [sys.executable, str(ROOT / "scripts" / script), *options, "--out", str(out)]
    return [
        subprocess.Popen(
            line,
            env=env | {"JAX_PROCESS_ID": str(k)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Their exit codes and what they said on standard error."""
    said = [process.communicate(timeout=500)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def measurements(out: Path) -> list[dict[str, Any]]:
    """All that was measured, but how long it took."""
    events = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in event.items() if not name.endswith("_seconds")}
        for event in events
        if event["event"] in ("measurement", "final")
    ]


def assert_close(several: list[dict[str, Any]], one: list[dict[str, Any]], tolerance: float) -> None:
    assert [set(event) for event in several] == [set(event) for event in one]
    for a, b in zip(several, one, strict=True):
        for name, value in b.items():
            if name.endswith(("_loss", "_accuracy")) and isinstance(value, float):
                assert a[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize(("command", "tolerance"), [((*TRAIN, "--epochs", "2"), 1e-3), (SEARCH, 1e-2)])
def test_four_processes_have_the_losses_of_one(tmp_path: Path, command: tuple[str, ...], tolerance: float):
    for count in (1, 4):
        for code, said in ended(started(count, tmp_path / str(count), *command)):
            assert code == 0, said
    assert_close(measurements(tmp_path / "4"), measurements(tmp_path / "1"), tolerance)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # three trainings of four processes
@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_is_killed_ends_the_job_with_one_line_and_nothing_is_lost(tmp_path: Path, victim: int):
    """Also the one that writes. What was resumed equals, bit for bit, what was never disturbed."""
    command = (*TRAIN, "--epochs", "12")
    for code, said in ended(started(4, tmp_path / "undisturbed", *command)):
        assert code == 0, said
    out = tmp_path / "killed"
    processes = started(4, out, *command)
    deadline = time.monotonic() + 400
    while not (out / "trials.jsonl").is_file() or len(measurements(out)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    for k, (code, said) in enumerate(ended(processes)):
        assert code == (-9 if k == victim else 75)
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == (0 if k == victim else 1), said
        assert "Traceback" not in said
    assert 3 <= len(measurements(out)) < 13
    for code, said in ended(started(4, out, *command, "--resume")):
        assert code == 0, said
    assert measurements(out) == measurements(tmp_path / "undisturbed")


def test_processes_that_cannot_be_are_one_line(tmp_path: Path):
    env = os.environ | {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "2",
    }
    line = [sys.executable, str(ROOT / "scripts" / "train.py"), "--arch", ARCH, "--out", str(tmp_path / "x")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: processes: JAX_COORDINATOR_ADDRESS needs JAX_NUM_PROCESSES")


def test_a_process_alone_is_not_asked_for_its_devices():
    """On a TPU host they are its workers', and a process that only asks how many there are takes them."""
    program = (
        "from pathlib import Path; from nas.training.processes import from_first, is_writer, own_folder; "
        "assert is_writer() and from_first(b'x') == b'x' and own_folder(Path('a')) == Path('a')"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"JAX_PLATFORMS": "nowhere"}, cwd=ROOT
    )


@pytest.mark.slow
def test_a_search_by_workers_leaves_the_devices_to_them(tmp_path):
    command = (
        "scripts/search.py --space mlp --dataset digits --fix depth=1 --epochs 1 --trials 2 --strategy nsga2 "
        f"--objective valid_accuracy latency_ms --test-seeds 1 --out {tmp_path / 'run'}"
    )
    done = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "nowhere"}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr
