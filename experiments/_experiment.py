"""What every experiment file shares: the import path, its claim, its scales, its command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "scripts", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from _cli import run  # noqa: E402  (the path has to be set first)

__all__ = ["Claim", "ExperimentConfig", "run"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, and what this code got: the head of an experiment file."""

    paper: str
    """authors, title, venue, year"""
    where: str
    """table or figure"""
    says: str
    """the numbers claimed"""
    hardware_hours: str
    """what the paper took, on what"""
    here: str
    """what this code got, with the command, the hardware and the time; "not run" where it was not"""


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Options that every experiment has."""

    scale: Literal["smoke", "cpu", "paper"] = "smoke"
    """smoke: seconds, to see that it works; cpu: shows the effect on two cores; paper: the published protocol"""
    out: Path | None = None
    """folder of the results; default: runs/EXPERIMENT-SCALE"""
    resume: bool = False
    """go on with the results in that folder"""
    data_dir: str | None = None
    """folder of prepared TFDS sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"""
