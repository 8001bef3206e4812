"""The two values that the data layer hands out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from nas.data.encoded import SAMPLE
from nas.data.pixels import pixel_covariance


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images of one purpose with their labels, in an order shuffled once (any prefix is a random sample).

    ``images`` is uint8 [n, height, width, channel] in [0, 255], or stays in its files (`Encoded`); ``labels`` int32
    [n]. Arrays are read-only and memory-mapped. Pickling copies the pixels: give another process the arguments of
    ``load`` instead.
    """

    images: Any  # np.ndarray, or what is indexed as one: Encoded
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images {'x'.join(map(str, self.images.shape[1:]))})"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """What a search may see of an image-classification set. There are no test images in it.

    ``image_shape`` is (height, width, channel). ``mean`` and ``std``, float32 [channel], are those of the
    training pixels scaled to [0, 1]; ``std`` is 1 for a channel that never varies. ``split_seed`` is the seed
    that drew the splits. ``checksum`` names the exact content of both splits and is equal on every machine.
    """

    name: str
    version: str
    train: Split
    valid: Split
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    class_names: tuple[str, ...]
    split_seed: int
    checksum: str

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """float64 [channel, channel], of the training pixels scaled to [0, 1]; of a sample of images in files."""
        images = self.train.images
        return pixel_covariance(images if isinstance(images, np.ndarray) else images[:SAMPLE])
