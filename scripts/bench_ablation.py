"""What each group of native CPU kernels is worth: python scripts/bench_ablation.py

Runs the benchmarks with all kernels and without one group, or all, of them (``NAS_NATIVE=-group``), each in a process
of its own, and prints what is left of the speed and what compiling takes: the training of `chain` networks and a
ResNet-20, the first-order step of DARTS's supernet, the scores, and a cold sweep: a random search of `chain` on
`mnist5k` that starts with every cache empty but the kernels. Nothing else should run meanwhile. A group stays if
without it a benchmark loses a tenth of its speed or the sweep takes a tenth longer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nas.errors import InputError, one_of
from nas.run.command_line import run

SCRIPTS = Path(__file__).parent
GROUPS = ("convolution", "pooling", "normalisation", "edges", "separable")
PARTS = ("training", "supernet", "scores", "sweep")


@dataclasses.dataclass(frozen=True)
class Config:
    """Take the native kernels out of the benchmarks, group by group."""

    groups: tuple[str, ...] = GROUPS
    """groups to leave out, each by itself; several at once are joined by +; all: every one"""
    parts: tuple[str, ...] = PARTS
    """benchmarks to run: training, supernet, scores, sweep"""
    networks: int = 8
    """networks of chain"""
    channels: int = 8
    """of the supernet"""
    cells: int = 4
    """of the supernet"""
    scored: int = 25
    """networks scored"""
    trials: int = 12
    """of the sweep"""
    epochs: int = 5
    """of each trial of the sweep"""
    limit: float = 600
    """seconds after which a benchmark is given up"""
    json: Path | None = None
    """write the figures there too"""


def main(config: Config) -> None:
    for part in config.parts:
        if part not in PARTS:
            raise one_of("parts", part, PARTS)
    for group in config.groups:
        for name in group.split("+"):
            if name not in (*GROUPS, "all"):
                raise one_of("groups", name, (*GROUPS, "all"))
    if min(config.networks, config.channels, config.cells, config.scored, config.trials, config.epochs) < 1:
        raise InputError("bench: all numbers are at least 1")
    found = {}
    print(f"{'without':28} {'images/s':>9} {'compile s':>9} {'step s':>7} {'compile s':>9} {'scores/min':>10} "
          f"{'sweep s':>8} {'compile s':>9}")  # fmt: skip
    for group in ("nothing", *config.groups):
        native = {"nothing": "1", "all": "0"}.get(group, ",".join(f"-{name}" for name in group.split("+")))
        row = {part: measured(part, native, config) for part in config.parts}
        found[group] = row
        training, supernet, scores, sweep = (row.get(part) or {} for part in PARTS)
        cells = [
            _cell(training.get("images_per_second"), 9, 0), _cell(training.get("compile_seconds"), 9, 2),
            _cell(supernet.get("step_seconds"), 7, 2), _cell(supernet.get("compile_seconds"), 9, 1),
            _cell(scores.get("per_minute"), 10, 1), _cell(sweep.get("wall_seconds"), 8, 1),
            _cell(sweep.get("compile_seconds"), 9, 1),
        ]  # fmt: skip
        print(f"{group:28} {' '.join(cells)}", flush=True)
    print(
        "images/s and scores/min: geometric means; compile s: median of chain, supernet, sum of the sweep's trials"
    )
    if config.json:
        config.json.write_text(json.dumps(found, indent=1) + "\n")


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def measured(part: str, native: str, config: Config) -> dict[str, Any] | None:
    """The figures of one benchmark; None where it did not end in time."""
    with tempfile.TemporaryDirectory() as folder:
        figures, cache = Path(folder) / "figures.json", Path(folder) / "cache"
        _prepare(cache)
        environment = {**os.environ, "NAS_NATIVE": native, "NAS_CACHE_DIR": str(cache)}
        json_to = ["--json", str(figures)]
        command = {
            "training": ["bench_training.py", "--no-torch", "--no-plain", "--networks", str(config.networks), *json_to],
            "supernet": ["bench_supernet.py", "--no-torch", "--no-warm", "--orders", "first", "--channels",
                         str(config.channels), "--cells", str(config.cells), *json_to],
            "scores": ["bench_scores.py", "--no-torch", "--networks", str(config.scored), "--ntk-networks", "5",
                       *json_to],
            "sweep": ["search.py", "--engine", "local", "--strategy", "random", "--trials", str(config.trials),
                      "--epochs", str(config.epochs), "--test-seeds", "0", "--out", str(Path(folder) / "run")],
        }[part]  # fmt: skip
        began = time.perf_counter()
        try:
            subprocess.run(
                [sys.executable, str(SCRIPTS / command[0]), *command[1:]],
                env=environment, check=True, capture_output=True, text=True, timeout=config.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        except subprocess.CalledProcessError as error:
            raise InputError(f"{part} without {native}: {error.stderr.strip().splitlines()[-1:]}") from None
        wall = time.perf_counter() - began
        if part == "sweep":
            text = (Path(folder) / "run" / "trials.jsonl").read_text()
            return {"wall_seconds": wall, "compile_seconds": _total(text, "compile_seconds")}
        rows = json.loads(figures.read_text())
    if part == "training":
        chains = [row["compile_seconds"] for row in rows if row["network"].startswith("chain")]
        speed = statistics.geometric_mean(row["images_per_second"] for row in rows)
        return {"images_per_second": speed, "compile_seconds": statistics.median(chains)}
    if part == "supernet":
        return {"step_seconds": rows[0]["step_seconds"], "compile_seconds": rows[0]["compile_cold_seconds"]}
    return {"per_minute": statistics.geometric_mean(row["per_minute"] for row in rows)}


def _prepare(cache: Path) -> None:
    """A cache folder with the kernels, which are built once for a machine, and nothing else."""
    from nas import cpu
    from nas.cache import cache_root

    cpu.native_status()
    cache.mkdir(mode=0o700)
    (cache / "native").symlink_to(cache_root() / "native")


def _total(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf'"{name}": ([0-9.e+-]+)', text))


if __name__ == "__main__":
    run(main)
