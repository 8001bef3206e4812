"""Score networks without training them: python scripts/score.py --space nasbench201 --dataset cifar10"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.run.command_line import run
from nas.run.options import SearchOptions, narrowed
from nas.strategies import sample_architectures


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw architectures of a space and write their training-free scores to OUT/scores.csv."""

    space: str = "chain"
    """name of the search space"""
    fix: tuple[str, ...] = ()
    """choices with one value: connections=residual depth=3"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: width=16,32"""
    scores: tuple[str, ...] = ("all",)
    """params, flops, naswot, ntk_condition, …; all: every one but knas_code, which takes 50 batches"""
    architectures: int = 100
    """how many different ones to draw"""
    seed: int = 0
    """of architectures and of initial weights"""
    batch_size: int = 32
    """images in a batch"""
    out: Path | None = None
    """folder of the scores; default: runs/scores-SPACE-DATASET-SEED"""
    resume: bool = False
    """go on with the scores in that folder"""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


def main(config: Config) -> None:
    # Here: --help does not wait for jax and the networks.
    from nas.objectives.score import Scorer, check_score
    from nas.proxies import PROXIES
    from nas.run.scoring import mean_seconds, score_architectures
    from nas.tables.scores import FILE
    from search_spaces import spaces_with

    if config.architectures < 1:
        raise InputError(f"architectures: {config.architectures} is below 1")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed: {config.seed} is not one of 0..{2**32 - 1}")
    names = list(dict.fromkeys(config.scores))
    if names == ["all"]:
        names = [name for name in PROXIES if name != "knas_code"]
    if not names:
        raise InputError(f"scores: none given; name all, or some of {', '.join(PROXIES)}")
    for name in names:
        check_score(name)
    options = SearchOptions(space=config.space, fix=config.fix, narrow=config.narrow)
    space = narrowed(options, spaces_with(config.space))
    archs = sample_architectures(space, config.seed, config.architectures, "architectures")
    name = f"scores-{Path(config.space).stem}-{config.data.label}-{config.seed}"
    out = config.out or Path("runs") / name.replace("/", "_")
    settings = dataclasses.asdict(config) | {"scores": names, "space": config.space}
    for aside in ("out", "resume", "architectures"):
        del settings[aside]
    del settings["data"]["data_dir"]
    scorer = Scorer(space, config.data, names, seed=config.seed, batch_size=config.batch_size)
    table = score_architectures(scorer, archs, out, settings, resume=config.resume)
    print(
        f"| {'Score':19} | {'Better':6} | {'Best':>12} | {'Median':>12} | {'s each':>7} | Best architecture |"
    )
    print(f"| {'-' * 19} | {'-' * 6} | {'-' * 11}: | {'-' * 11}: | {'-' * 6}: | ----------------- |")
    for name in names:
        sign = PROXIES[name].sign
        values = [-math.inf if math.isnan(value) else value for value in table.values[name].tolist()]
        best = max(range(len(values)), key=values.__getitem__)
        median = sorted(values)[len(values) // 2]
        cell = table.archs[best].replace("|", r"\|")
        print(f"| {name:19} | {'higher' if sign > 0 else 'lower':6} | {sign * values[best]:12.6g} "
              f"| {sign * median:12.6g} | {mean_seconds(table, name):7.3f} | {cell} |")  # fmt: skip
    print(out / FILE)


if __name__ == "__main__":
    run(main, compute=True)
