"""How well latencies of HW-NAS-Bench are predicted from a few of them: Kendall's tau on all networks not fitted to.

    python scripts/bench_latency.py --data-dir FOLDER

Beside the regression of `nas.objectives.predicted_latency`, here by the choices alone, a sum over operations: one value
for each operation on each edge, found by least squares from the same networks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.run.command_line import run


@dataclasses.dataclass(frozen=True)
class Config:
    """Rank correlation of predicted with measured latencies of NAS-Bench-201's networks, a row a device."""

    data_dir: Path | None = None
    """folder with nasbench201/ and hw_nas_bench/"""
    dataset: str = "cifar10"
    """whose columns: cifar10, cifar100 or ImageNet16-120"""
    networks: tuple[int, ...] = (100, 200, 400)
    """fitted to so many"""
    draws: int = 10
    """of the networks fitted to; the interval is over these, from the lowest to the highest"""


def main(config: Config) -> None:
    from scipy.stats import kendalltau

    from nas.objectives.predicted_latency import FEWEST, fitted
    from nas.tables.loading import load_table
    from search_spaces import SPACES

    if min(config.networks) < FEWEST or config.draws < 1:
        raise InputError(f"networks, draws: {config.networks}, {config.draws} are below {FEWEST}, 1")
    table, space = load_table("nasbench201", config.data_dir), SPACES["nasbench201"]
    if config.dataset not in table.devices:
        raise InputError(
            f"dataset: {config.dataset!r}: the table has columns of {', '.join(table.devices) or 'none'}"
        )
    encoded = np.array([space.encode(space.from_string(arch)) for arch in table.archs])
    archs = np.array([dict(space.from_string(arch)) for arch in table.archs], dtype=object)
    print("| Column | Networks | Regression | Sum over operations |\n| --- | ---: | ---: | ---: |")
    for name, values in table.devices[config.dataset].items():
        if not name.startswith("latency_ms"):
            continue
        for n in config.networks:
            taus = []
            for seed in range(config.draws):
                order = np.random.default_rng(seed).permutation(np.flatnonzero(values > 0))
                fit, held = order[:n], order[n:]
                ms = values[fit]
                ones = np.c_[encoded, np.ones(len(encoded))]
                sums = ones[held] @ np.linalg.lstsq(ones[fit], ms, rcond=None)[0]
                both = fitted(archs[fit], ms)(*archs[held]), sums
                taus.append([kendalltau(of, values[held]).statistic for of in both])  # pyright: ignore[reportAttributeAccessIssue]
            cells = (
                f"{np.median(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in zip(*taus, strict=True)
            )
            print(f"| {name} | {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run(main)
