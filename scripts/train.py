"""Train one architecture to the end and test it: python scripts/train.py --arch runs/my-search --epochs 60"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _cli import print_table, run
from nas.errors import InputError, one_of
from nas.objectives.train import DataConfig
from nas.results.record import is_run, read_run
from nas.run.training import train_to_end
from nas.space import Architecture, SearchSpace, parse_architecture
from nas.training.loop import TrainingConfig
from search_spaces import spaces_with


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one architecture from several seeds on train and validation images, and test each at the end."""

    arch: str
    """the folder of a search (its best architecture), or space:architecture"""
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
    """folder of the run; default: runs/train-SPACE-DATASET"""
    resume: bool = False
    """go on with the run in that folder"""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


def main(config: Config) -> None:
    space, arch = architecture(config.arch)
    dataset = config.data.dataset.replace("/", "_")
    out = config.out or Path("runs") / f"train-{space.name}-{dataset}"
    result = train_to_end(
        space,
        arch,
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
    if all(final.error for final in result.finals):
        raise InputError(f"{out}: {result.finals[0].error}")


def architecture(text: str) -> tuple[SearchSpace, Architecture]:
    """What ``--arch`` means. Raises InputError."""
    folder = Path(text)
    if is_run(folder):
        found = read_run(folder)
        name = str(found.config.get("space"))
        spaces = spaces_with(name)
        if name not in spaces:
            raise one_of(f"{folder}: its space", name, spaces)
        if found.best is None:
            raise InputError(f"{folder}: no trial was measured there")
        return spaces[name], found.best.arch
    if ":" not in text:
        raise InputError(f"arch: {text} is neither the folder of a run nor space:architecture")
    return parse_architecture(text, spaces_with(text.partition(":")[0]))


if __name__ == "__main__":
    run(main, compute=True)
