"""Images that stay in their files, of a folder or a TFDS set, and are decoded when a batch needs them.

`read_labels` finds what the splits of such a set are drawn from without decoding it: labels by number. An `Encoded`
stands for the images of a split where `nas.data.load` has arrays otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nas.cores import local_cores
from nas.data import own_sets
from nas.data.cache import Writer
from nas.data.decoding import roles
from nas.data.streaming import (
    FolderImages,
    Source,
    TfdsImages,
    decoded,
    grain,
    read_ahead,
)
from nas.data.streaming_pixels import Augmentation, centre_view, ten_views, train_view
from nas.data.tfds_records import Records
from nas.data.tfds_sets import Located
from nas.errors import InputError

SAMPLE = 1000  # images that statistics of pixels are taken over


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Images ``numbers`` of ``source``, seen as squares of ``size``; by number and by slice, as an array of uint8.

    What is seen is the centre of the image with its short side scaled to ``resize``, unless a random view is asked
    for. At no time are more images decoded than the batches that are being read ahead.
    """

    source: Source
    numbers: np.ndarray
    size: int
    resize: int
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self.size, self.size, self.source.channels

    @property
    def nbytes(self) -> int:
        """Of all images, were they decoded."""
        return math.prod(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Uint8 [len(index), size, size, C]."""
        numbers = np.arange(len(self))[index].ravel()
        views = list(self.batches(numbers[:, None]))
        return np.concatenate(views) if views else np.empty((0, *self.shape[1:]), np.uint8)

    take = __getitem__

    def batches(
        self, index: np.ndarray, seeds: np.ndarray | None = None, *, ten: bool = False
    ) -> Iterator[np.ndarray]:
        """Uint8 [B, size, size, C] for each row of ``index`` [K, B], read and decoded ahead in threads.

        With ``seeds`` [K, B], a random-resized crop each, which is a function of the image and its seed. With ``ten``
        corners, centre and their mirror images: [B, 10, size, size, C].
        """
        source, numbers = self.source, self.numbers[index].ravel()
        of = ten_views if ten else centre_view
        crop = Augmentation(size=self.size, flip=False)

        def view(k: int) -> np.ndarray:
            def pixels(file: bytes) -> np.ndarray:
                if seeds is None:
                    return of(file, source.channels, self.resize, self.size)
                return train_view(file, source.channels, crop, np.random.default_rng(int(seeds.ravel()[k])))

            return decoded(source, int(numbers[k]), pixels)["image"]

        return read_ahead(
            grain().MapDataset.range(len(numbers)).map(view).batch(index.shape[1]), len(local_cores())
        )

    def __add__(self, other: Encoded) -> Encoded:
        """The images of both."""
        if self.source is other.source:
            return dataclasses.replace(self, numbers=np.concatenate([self.numbers, other.numbers]))
        numbers = np.concatenate([self.numbers, other.numbers + len(self.source)])
        return dataclasses.replace(self, source=_Both(self.source, other.source), numbers=numbers)


class _Both:
    """The images of two sources, one behind the other."""

    def __init__(self, *sources: Source) -> None:
        self._sources, self._ends = sources, list(itertools.accumulate(map(len, sources)))
        self.num_classes, self.channels = sources[0].num_classes, sources[0].channels

    def __len__(self) -> int:
        return self._ends[-1]

    def _at(self, number: int) -> tuple[Source, int]:
        second = number >= self._ends[0]
        return self._sources[second], number - second * self._ends[0]

    def read(self, number: int) -> tuple[bytes, int]:
        source, own = self._at(number)
        return source.read(own)

    def place(self, number: int) -> str:
        source, own = self._at(number)
        return source.place(own)


def source_of(where: Path | Located, role: str) -> Source:
    """The images of ``role`` (train, valid, test) of a folder or of a TFDS set. Raises InputError."""
    if isinstance(where, Path):
        return FolderImages(where, role)
    return TfdsImages(where, roles(Records(where, None))[role])


def read_labels(where: Path | Located, writer: Writer) -> dict[str, Any]:
    """Write ``<role>.labels`` of all splits of use, in the order of the files; returns what they are.

    A TFDS set's labels lie in its records, so that it is read once from end to end. Raises InputError.
    """
    if isinstance(where, Path):
        names, files = own_sets.class_files(where)
        labels = {role: np.array(of, np.int32) for role, (_, of) in files.items()}
    else:
        records = Records(where, None)
        names = records.class_names
        labels = {role: records.labels(split) for role, split in roles(records).items()}
    for role, of in labels.items():
        if len(of) and not 0 <= of.min() <= of.max() < len(names):
            raise InputError(
                f"dataset: labels of {role} are from {of.min()} to {of.max()}, not from 0 to {len(names) - 1}"
            )
        writer.whole(f"{role}.labels", of)
    return {
        "num_classes": len(names),
        "class_names": names,
        "sizes": {role: len(of) for role, of in labels.items()},
    }


def view_size(image_size: int | None, resize: int) -> int:
    """Height and width of what is seen; where that is not given, 7/8 of ``resize``. Raises InputError."""
    size = image_size or max(1, round(resize * 7 / 8))
    if not 1 <= size <= resize:
        raise InputError(
            f"dataset: image_size={size} is not from 1 to resize={resize}, which it is cut out of"
        )
    return size
