"""experiments/ofa_2020.py at its smoke scale, as it is started from a shell: whole, and resumed behind its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / "ofa_2020.py"), "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_it_compares_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "ofa"
    whole = started(out)
    assert whole.returncode == 0, whole.stderr
    table = (out / "table.md").read_text()
    assert table in whole.stdout
    for name in ("inherited.png", "limits.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((out / "result.json").read_text())["numbers"]) == {"gap", "kendall_tau", "gain"}
    limits = json.loads((out / "limits.json").read_text())
    assert all(one["quantity"] <= one["limit"] for one in limits)
    again = started(out, "--resume")
    assert again.returncode == 0, again.stderr
    assert (out / "table.md").read_text() == table
    refused = started(out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
