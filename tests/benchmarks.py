"""Where the tests find published benchmark files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bench_files(*needed: str) -> Path:
    """The folder of benchmark files, which has all ``needed``; else the test is skipped, and says why."""
    folder = Path(os.environ.get("NAS_BENCH_DIR", ROOT.parent / "shared" / "data"))
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder} (NAS_BENCH_DIR)")
    return folder
