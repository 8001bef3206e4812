"""Which images a search works on, as settings: what a command line or a worker is told of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nas.data.dataset import Dataset
from nas.data.loading import load
from nas.data.own_sets import own_set
from nas.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, split how: the arguments of `nas.data.load`."""

    dataset: str = "mnist5k"
    """mnist5k, digits, a set of nas/data/generated.py, any TFDS image-classification set by its TFDS name, a folder
    of class folders with PNG or JPEG files (flowers/), or a file of images and labels (my.npz)"""
    split_seed: int = 0
    """what images go where; independent of --seed, so that searches from several seeds are comparable"""
    valid_fraction: float = 0.1
    """share of the training images that validation gets"""
    test_fraction: float = 0.1
    """share of all images that test gets, where the set has no test split of its own"""
    subset: int | None = None
    """use so many of the training and validation images, drawn evenly over classes"""
    image_size: int | None = None
    """resize images to this height and width; needed where a set's sizes vary"""
    resize: int | None = None
    """of a folder or a TFDS set whose images fit no disk when they are decoded: leave them in their files and decode
    those of a batch, the short side scaled to this, the central image_size seen (256, of which 224); training sees
    random-resized crops with the augmentation resized_crop"""
    data_dir: str | None = None
    """folder of prepared TFDS sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"""

    def __post_init__(self) -> None:
        if not 0 <= self.split_seed < 2**32:
            raise InputError(f"split_seed: {self.split_seed} is not from 0 to {2**32 - 1}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DataConfig:
        """That of a run, by its record's config."""
        return cls(
            **{field.name: config[field.name] for field in dataclasses.fields(cls) if field.name in config}
        )

    def arguments(self) -> dict[str, Any]:
        return {
            "name": self.dataset,
            "seed": self.split_seed,
            "valid_fraction": self.valid_fraction,
            "test_fraction": self.test_fraction,
            "subset": self.subset,
            "image_size": self.image_size,
            "resize": self.resize,
            "data_dir": self.data_dir,
        }

    def load(self) -> Dataset:
        return load(**self.arguments())

    @property
    def own(self) -> bool:
        """Whether the set is a folder or a file of the user's."""
        return own_set(self.dataset) is not None

    @property
    def label(self) -> str:
        """The set's name as part of a folder's name."""
        path = own_set(self.dataset)
        return (path.stem if path is not None else self.dataset).replace("/", "_")

    def placed(self) -> DataConfig:
        """The same for a process with another working directory."""
        path = own_set(self.dataset)
        return self if path is None else dataclasses.replace(self, dataset=str(path))
