"""Train one architecture to the end and test it: python scripts/train.py --arch resnet20 --dataset cifar10"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _cli import chosen, print_table
from nas.data.config import DataConfig
from nas.errors import InputError
from nas.run.command_line import run
from nas.strategies.base import MOST_SEEDS
from nas.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one architecture from several seeds on train and validation images, and test each at the end."""

    arch: str
    """a named network (resnet20), space:architecture, or the folder of a search (its best architecture)"""
    space: str | None = None
    """the file of that search's space, where it has one: what a record names is not run"""
    epochs: int = 30
    """passes over the training images"""
    seeds: int = 1
    """trainings, from seeds --seed, --seed + 1, …"""
    seed: int = 0
    """the first one's seed"""
    hyper: tuple[str, ...] = ()
    """training hyperparameters, over those of the architecture: learning_rate=0.1 batch_size=128"""
    validate: bool = False
    """keep the validation images out of training and measure them every epoch"""
    out: Path | None = None
    """folder of the run; default: runs/train-NAME-DATASET, NAME being the network's or its space's"""
    resume: bool = False
    """go on with the run in that folder"""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


def main(config: Config) -> None:
    from nas.run.training import train_to_end  # here: --help does not wait for jax

    found = chosen(config.arch, config.space)
    name = config.arch if found.named else found.space.name
    dataset = config.data.label
    out = config.out or Path("runs") / f"train-{name}-{dataset}"
    if config.seeds > MOST_SEEDS:
        raise InputError(f"seeds: {config.seeds} is above {MOST_SEEDS}")
    result = train_to_end(
        found.space,
        found.arch,
        config.data,
        config.training,
        out,
        epochs=config.epochs,
        seeds=range(config.seed, config.seed + config.seeds),
        hyper=config.hyper,
        validate=config.validate,
        resume=config.resume,
    )
    print_table([result])
    if top5 := [final.test_top5_accuracy for final in result.finals if final.test_top5_accuracy >= 0]:
        print(f"- Top-5 test accuracy: {100 * sum(top5) / len(top5):.2f} %, mean of {len(top5)}.")
    if all(final.error for final in result.finals):
        raise InputError(f"{out}: {result.finals[0].error}")


if __name__ == "__main__":
    run(main, compute=True)
