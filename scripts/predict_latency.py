"""Measure networks to predict latencies from: python scripts/predict_latency.py --space mbconv --dataset cifar10"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.goals import LatencyConfig
from nas.run.command_line import run
from nas.run.options import SearchOptions, narrowed
from nas.strategies import sample_architectures


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure networks of a space, and their operations, into OUT, and say how well latencies are predicted from them.

    A search then takes --latency-predictor OUT --objective valid_accuracy predicted_latency_ms (a regression) or
    summed_latency_ms (a sum of measured operations).
    """

    space: str = "mbconv"
    """name of the search space"""
    fix: tuple[str, ...] = ()
    """choices with one value: resolution=32"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: kernel=3,5"""
    networks: int = 200
    """how many different ones are drawn and measured"""
    seed: int = 0
    """they are drawn from"""
    out: Path | None = None
    """folder of the latencies; default: runs/latencies-SPACE-DATASET"""
    resume: bool = False
    """go on with the latencies in that folder"""
    latency: LatencyConfig = dataclasses.field(default_factory=LatencyConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


def main(config: Config) -> None:
    # Here: --help does not wait for jax and the networks.
    from nas.objectives.predicted_latency import FEWEST
    from nas.run.latency_fitting import FILE, agreements, measure_latencies
    from search_spaces import spaces_with

    if config.networks < FEWEST:
        raise InputError(f"networks: {config.networks} is below {FEWEST}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed: {config.seed} is not one of 0..{2**32 - 1}")
    options = SearchOptions(space=config.space, fix=config.fix, narrow=config.narrow)
    space = narrowed(options, spaces_with(config.space)).searched()
    archs = sample_architectures(space, config.seed, config.networks, "networks")
    out = config.out or Path("runs") / f"latencies-{space.name}-{config.data.label}".replace("/", "_")

    def said(done: int, total: int) -> None:
        print(f"\r{done} of {total} networks", end="" if done < total else "\n", file=sys.stderr, flush=True)

    predictor = measure_latencies(
        space, archs, config.data.load(), config.latency, out, resume=config.resume, on_measured=said
    )
    print("| Objective | Networks | Kendall's tau, 95 % interval | Median error |")
    print("| --- | ---: | ---: | ---: |")
    for found in agreements(predictor):
        tau = found.tau
        print(
            f"| {found.name} | {len(predictor.networks)} | {tau.value:.3f} [{tau.low:.3f}, {tau.high:.3f}] "
            f"| {found.error:.1%} |"
        )
    print(out / FILE)


if __name__ == "__main__":
    run(main, compute=True)
