"""Batches of image sets that fit neither a device nor memory: read, decoded and augmented while training runs.

`train_stream` and `evaluation_batches` over a TFDS set (array_record) or a folder of class folders of JPEG and PNG
files, with Grain, for training loops of one's own. `nas.training.loop` reads such files through `nas.data.encoded`.

Batch k of `train_stream` is a pure function of the set, the settings, the seed and k. Whatever the number of
processes, they see the same images in it, each with the same draws, and each process decodes its own share alone.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nas.cores import local_cores
from nas.data import own_sets
from nas.data.pixels import pixel_covariance, pixel_statistics
from nas.data.streaming_pixels import Augmentation, centre_view, ten_views, train_view
from nas.data.tfds_records import Records, first_line
from nas.data.tfds_sets import Located, locate
from nas.errors import InputError, one_of

Batch = dict[str, np.ndarray]  # image uint8 [n, size, size, C], label int32 [n]
_READ_AHEAD = 2  # batches


class Source(Protocol):
    """Encoded images by number."""

    num_classes: int
    channels: int

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[bytes, int]:
        """The file's bytes and its label. Raises InputError."""
        ...

    def place(self, number: int) -> str:
        """Where that image is, for messages."""
        ...


class TfdsImages:
    """The images of one split of a prepared TFDS set. Raises InputError where it is not there or cannot be read."""

    def __init__(
        self, name: str | Located, split: str, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        located = name if isinstance(name, Located) else locate(name, data_dir)
        self._records, self._split, name = Records(located, None), split, located.name
        if split not in self._records.splits:
            raise one_of(f"dataset: {name}: split", split, self._records.splits)
        self.num_classes, self.channels = self._records.num_classes, self._records.channels
        self._ends = list(itertools.accumulate(self._records.shard_lengths(split)))

    def __len__(self) -> int:
        return self._records.splits[self._split]

    def read(self, number: int) -> tuple[bytes, int]:
        return self._records.encoded(self._split, bisect.bisect_right(self._ends, number), number)

    def place(self, number: int) -> str:
        return f"image {number} of split {self._split} in {self._records.source.folder}"


class FolderImages:
    """The images of a folder of class folders (`nas.data.own_sets`), or of one of its splits: train, valid, test."""

    def __init__(self, folder: str | os.PathLike[str], split: str = "train", channels: int = 3) -> None:
        path = Path(folder).expanduser().absolute()
        own_sets.check(path)
        self.class_names, files = own_sets.class_files(path)
        if split not in files:
            raise one_of(f"dataset: {path}: split", split, files)
        self._files, self._labels = files[split]
        self.num_classes, self.channels = len(self.class_names), channels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, number: int) -> tuple[bytes, int]:
        try:
            return self._files[number].read_bytes(), self._labels[number]
        except OSError as error:
            raise InputError(f"dataset: cannot read {self._files[number]} ({error.strerror})") from None

    def place(self, number: int) -> str:
        return str(self._files[number])


class Stream:
    """Training batches without end, from `train_stream`; `position` is what a checkpoint keeps of it."""

    def __init__(self, batches: Any, settings: Mapping[str, int], threads: int) -> None:
        self._batches, self._settings, self._threads = batches, dict(settings), threads
        self.step, self._iterator = 0, None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = read_ahead(self._batches[self.step :], self._threads)
        batch = next(self._iterator)
        self.step += 1
        return batch

    def position(self) -> dict[str, int]:
        """Plain numbers: the next batch's, and the settings that batches depend on."""
        return {"step": self.step, **self._settings}

    def go_to(self, position: Mapping[str, int]) -> None:
        """Go on from a `position`, also one that another number of processes kept. Raises InputError."""
        for name, value in self.position().items():
            if name != "step" and position.get(name) != value:
                raise InputError(
                    f"stream: {name} is {value}, the position was kept with {position.get(name)}"
                )
        step = position.get("step")
        if not isinstance(step, int) or step < 0:
            raise InputError(f"stream: step {step!r} is not a whole number from 0")
        self.step, self._iterator = step, None


def train_stream(
    source: Source,
    batch_size: int,
    *,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    threads: int | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> Stream:
    """This process's share of batches of ``batch_size`` (of all processes together), shuffled anew in every pass.

    A pass has every image once; where it ends in the middle of a batch, the next one begins there. ``process`` of
    ``processes`` is JAX's own unless given. Decodes in ``threads`` (default: one a processor); they change no value.
    """
    augmentation = augmentation or Augmentation()
    process, processes, share = _share(batch_size, process, processes)
    if not len(source):
        raise InputError("stream: there are no images")
    if not 0 <= seed < 2**32:
        raise InputError(f"stream: seed {seed} is not from 0 to {2**32 - 1}")

    def view(number: int, rng: np.random.Generator) -> Batch:
        return decoded(source, number, lambda of: train_view(of, source.channels, augmentation, rng))

    # The draws belong to an image's place in the whole order: before the processes part.
    views = grain().MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(view)
    settings = {"seed": seed, "batch_size": batch_size, "images": len(source)}
    return Stream(views[process::processes].batch(share), settings, threads or len(local_cores()))


def evaluation_batches(
    source: Source,
    batch_size: int,
    *,
    resize: int = 256,
    crop: int = 224,
    views: int = 1,
    threads: int | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> Iterator[Batch]:
    """Every image once, in order: the short side scaled to ``resize``, the central square of ``crop``.

    With ``views=10`` images are [n, 10, crop, crop, C] (`ten_views`). All processes get equally many batches of
    equal size: what is left of the last ones repeats an image with the label -1, not to be counted.
    """
    if views not in (1, 10):
        raise one_of("views", views, (1, 10))
    if not 1 <= crop <= resize:
        raise InputError(f"crop: {crop} is not from 1 to resize={resize}")
    process, processes, share = _share(batch_size, process, processes)
    count = math.ceil(len(source) / batch_size) * batch_size
    of_image = centre_view if views == 1 else ten_views

    def view(number: int) -> Batch:
        real = number < len(source)
        number = number if real else len(source) - 1
        batch = decoded(source, number, lambda of: of_image(of, source.channels, resize, crop))
        return {**batch, "label": np.asarray(batch["label"] if real else -1, np.int32)}

    numbers = grain().MapDataset.range(count)[process::processes]
    return read_ahead(numbers.map(view).batch(share), threads or len(local_cores()))


def statistics(
    source: Source, *, images: int = 1000, size: int = 224, seed: int = 0
) -> dict[str, np.ndarray]:
    """``mean`` and ``std`` [C], ``covariance`` [C, C] of pixels in [0, 1] over so many images drawn by ``seed``."""
    chosen = np.random.default_rng(seed).permutation(len(source))[:images]
    pixels = np.stack(
        [
            decoded(source, int(number), lambda of: centre_view(of, source.channels, size, size))["image"]
            for number in chosen
        ]
    )
    mean, std = pixel_statistics(pixels, np.arange(len(pixels)))
    return {
        "mean": np.array(mean, np.float32),
        "std": np.array(std, np.float32),
        "covariance": pixel_covariance(pixels),
    }


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Share of images whose label is among the ``k`` largest of their ``logits`` [n, classes].

    Labels of -1 do not count. Of equal logits the lower class comes first; an image with a NaN is wrong.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if not 1 <= k <= logits.shape[-1]:
        raise InputError(f"k: {k} is not from 1 to the {logits.shape[-1]} classes")
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return math.nan
    first = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    right = (first == labels[:, None]).any(axis=-1) & ~np.isnan(logits).any(axis=-1)
    return float(right.mean())


def decoded(source: Source, number: int, view: Any) -> Batch:
    """``view`` of the file's bytes, and the label. Raises InputError for a damaged image or a label that is none."""
    encoded, label = source.read(number)
    if not 0 <= label < source.num_classes:
        raise InputError(
            f"dataset: label {label} of {source.place(number)} is not one of 0..{source.num_classes - 1}"
        )
    try:
        return {"image": view(encoded), "label": np.asarray(label, np.int32)}
    except InputError:
        raise
    except Exception as error:  # Pillow's have no common class
        raise InputError(f"dataset: {source.place(number)} is damaged ({first_line(error)})") from None


def _share(batch_size: int, process: int | None, processes: int | None) -> tuple[int, int, int]:
    """The process, their number, and the images of a batch that each has."""
    import jax

    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if not 0 <= process < processes:
        raise InputError(f"process: {process} is not from 0 to {processes - 1}")
    if batch_size < 1 or batch_size % processes:
        raise InputError(f"batch_size: {batch_size} is not a multiple of the {processes} processes")
    return process, processes, batch_size // processes


def read_ahead(batches: Any, threads: int) -> Iterator[Any]:
    """What a Grain data set gives, in order, computed before it is asked for."""
    options = grain().ReadOptions(num_threads=threads, prefetch_buffer_size=max(_READ_AHEAD, threads))
    return iter(batches.to_iter_dataset(options))


def grain() -> Any:
    """The package, imported when it is needed; ``InputError`` when it is absent."""
    try:
        import grain as package
    except ImportError as error:
        raise InputError(f"stream: needs grain ({error}): pip install -r requirements.txt") from error
    return package
