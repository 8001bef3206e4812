"""Images a second of the streamed input beside torch's DataLoader: python scripts/bench_input.py --images 20000

Makes JPEG files of 400 x 300 pixels of real images, CIFAR-10's and MNIST's, each enlarged beside others of its class.
Both sides read the same files in turns with the same crop, flip and colour, and give uint8.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nas.errors import InputError
from nas.run.command_line import run

WIDTH, HEIGHT = 400, 300
ACROSS, DOWN = 4, 3  # images that one file shows


@dataclasses.dataclass(frozen=True)
class Config:
    """Images a second of `nas.data.streaming` and of torch's DataLoader with torchvision's transforms."""

    images: int = 20_000
    """JPEG files to make"""
    folder: Path | None = None
    """where they are kept, to be used again; default: a folder that goes"""
    size: int = 224
    """pixels that come out"""
    batch: int = 64
    """images a batch"""
    colour: float = 0.0
    """colour factors in 1 +- this"""
    threads: int = 2
    """threads of ours, processes of torch's"""
    seconds: float = 10.0
    """length of a turn"""
    rounds: int = 3
    """turns that each side gets; the median is printed"""
    data_dir: str | None = None
    """folder of prepared TFDS sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"""

    def __post_init__(self) -> None:
        for name in ("images", "size", "batch", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1")
        if not self.seconds > 0:
            raise InputError(f"seconds: {self.seconds} is not above 0")
        if self.images < 20:
            raise InputError(f"images: {self.images} is below 20, one for each class")


def main(config: Config) -> None:
    with contextlib.ExitStack() as stack:
        folder = config.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = make_files(folder, config.images, config.data_dir)
        print(
            f"{made} files of {WIDTH} x {HEIGHT}, {config.threads} threads or processes, batch {config.batch}"
        )
        torch = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
        ours, theirs = [], []
        for _ in range(config.rounds):
            ours.append(streamed(folder, config))
            if torch:
                theirs.append(by_torch(folder, config))
        print(f"nas.data.streaming   {statistics.median(ours):8.0f} images/s")
        if not torch:
            print("torch's DataLoader   not measured: pip install -r requirements-bench.txt")
            return
        print(f"torch's DataLoader   {statistics.median(theirs):8.0f} images/s")
        print(f"ratio                {statistics.median(ours) / statistics.median(theirs):8.2f}")


def make_files(folder: Path, count: int, data_dir: str | None) -> int:
    """Write ``count`` files to class folders, unless so many are there; returns how many there are."""
    import numpy as np
    from PIL import Image

    from nas.data import load

    if (there := len(list(folder.glob("*/*.jpg")))) == count:
        return there
    if there:
        raise InputError(f"folder: {folder} has {there} files, not {count}: give another one")
    rng = np.random.default_rng(0)
    sets = {name: load(name, data_dir=data_dir).train for name in ("cifar10", "mnist")}
    of_class = {
        (name, label): np.flatnonzero(split.labels == label)
        for name, split in sets.items()
        for label in range(10)
    }
    for number in range(count):
        name, label = list(of_class)[number % len(of_class)]
        chosen = rng.choice(of_class[name, label], ACROSS * DOWN)
        tiles = sets[name].images[np.sort(chosen)]
        tiles = np.broadcast_to(tiles, (*tiles.shape[:3], 3))
        side = tiles.shape[1]
        grid = (
            tiles.reshape(DOWN, ACROSS, side, side, 3).swapaxes(1, 2).reshape(DOWN * side, ACROSS * side, 3)
        )
        image = Image.fromarray(np.ascontiguousarray(grid)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        path = folder / f"{name}_{label}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    return count


def warm_batches(config: Config) -> int:
    """What is read ahead before a turn's time begins."""
    return 3 * config.threads


def streamed(folder: Path, config: Config) -> float:
    from nas.data.streaming import Augmentation, FolderImages, train_stream

    augmentation = Augmentation(size=config.size, colour=config.colour)
    batches = train_stream(
        FolderImages(folder), config.batch, augmentation=augmentation, threads=config.threads
    )
    for _ in range(warm_batches(config)):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < config.seconds:
        count += len(next(batches)["label"])
    return count / (time.perf_counter() - began)


def by_torch(folder: Path, config: Config) -> float:
    values = (folder, config.size, config.batch, config.threads, config.seconds, config.colour)
    command = [sys.executable, str(Path(__file__).with_name("_torch_input.py")), *map(str, values)]
    done = subprocess.run(
        [*command, str(warm_batches(config))], capture_output=True, text=True, env=os.environ, check=False
    )
    if done.returncode:
        raise InputError(f"torch: {(done.stderr.strip() or 'it was killed').splitlines()[-1]}")
    return float(done.stdout)


if __name__ == "__main__":
    run(main)
