"""Prepare a TFDS image-classification set as array_record, so that ``--dataset NAME`` finds it.

python scripts/prepare_data.py cifar10
python scripts/prepare_data.py mnist --from ~/Downloads/mnist --data-dir ~/tensorflow_datasets
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from _cli import run
from nas.data.preparation import prepare


@dataclasses.dataclass(frozen=True)
class Config:
    """Prepare a TFDS image-classification set as array_record, so that --dataset NAME finds it."""

    name: Annotated[str, tyro.conf.Positional]
    """TFDS name: set, set/config or set:version, such as cifar10, emnist/letters."""
    data_dir: Path | None = None
    """Where sets are kept; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder with the set's files as downloaded by hand: their sums are checked, nothing is downloaded."""


def main(config: Config) -> None:
    done = prepare(
        config.name, data_dir=config.data_dir, from_folder=config.from_, progress=sys.stderr.isatty()
    )
    for file in done.unchecked:
        print(f"not checked: {file} (TFDS has no sum for it)")
    images = ", ".join(f"{count:,} {split}" for split, count in done.images.items())
    state = "was there already" if done.was_there else "prepared"
    print(
        f"{done.name} {done.version} {state}: {images} images of {done.num_classes} classes in {done.folder}"
    )


if __name__ == "__main__":
    run(main)
