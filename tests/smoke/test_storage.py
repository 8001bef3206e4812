"""A search that writes to Google Cloud Storage, whose machine is destroyed: a storage server on loopback.

pip install gcsfs gcp-storage-emulator
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.record import read_run, record_difference

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SERVER = """
import sys, time
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=False, default_bucket="bucket", data_dir=sys.argv[2]).start()
time.sleep(3600)
"""
SEARCH = (
    "--space", "chain", "--dataset", "digits", "--subset", "300", "--fix", "depth=1", "width=8",
    "--strategy", "random", "--trials", "6", "--epochs", "3", "--engine", "local", "--test-seeds", "1",
)  # fmt: skip


class Server:
    """The storage server, which can be killed and started again with what it held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.port), str(self.folder)], stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError("the storage server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install gcsfs gcp-storage-emulator"
        )
    server = Server(tmp_path / "server")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.port}")
    yield server
    server.kill()


def _command(*more: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/search.py"), *SEARCH, *more]


def _lines(folder: Path) -> int:
    path = folder / "trials.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_machine_that_is_destroyed_is_replaced_by_another(tmp_path, server):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with (tmp_path / "log").open("w") as log:
        search = subprocess.Popen(_command("--out", "gs://bucket/run"), cwd=here, stderr=log, stdout=log)
        while _lines(here / "runs/bucket/run") < 5:
            assert search.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        server.kill()  # the storage goes away too, and comes back
        time.sleep(7)
        server.start()
        time.sleep(8)
        search.send_signal(signal.SIGKILL)
        search.wait()
    shutil.rmtree(here)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for folder, out in ((there, ("gs://bucket/run", "--resume")), (tmp_path, ("whole",))):
        done = subprocess.run(_command("--out", *out), cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert record_difference(there / "runs/bucket/run", tmp_path / "whole") is None
    shutil.rmtree(there / "runs")
    report = [sys.executable, str(ROOT / "scripts/report.py"), "gs://bucket/run"]
    done = subprocess.run(report, cwd=there, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| random " in done.stdout
    assert read_run(there / "runs/bucket/run").done
