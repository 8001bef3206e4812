"""Images and labels of a prepared TFDS set, record by record.

Only array_record is read: it gives records by number and needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.pixels import MODES, decode_image
from nas.data.tfds_sets import Located, import_tfds, prepare_command
from nas.errors import InputError

Chunk = tuple[np.ndarray, np.ndarray]  # uint8 [n, height, width, channel], int32 [n]
_CHUNK = 128  # images in memory at a time


class Records:
    """The records of one prepared set, decoded a chunk at a time."""

    def __init__(self, source: Located, image_size: int | None) -> None:
        tfds = import_tfds()
        from tensorflow_datasets.core.decode import DeserializeMethod

        self.source, self.image_size = source, image_size
        with _explained(source.name, f"{source.folder} is damaged or not a TFDS set"):
            self._builder = tfds.builder_from_directory(source.folder)
            info = self._builder.info
            self.splits = {
                name: split.num_examples for name, split in info.splits.items() if split.num_examples
            }
        file_format = getattr(info.file_format, "value", "of unknown format")
        if file_format != "array_record":
            raise InputError(
                f"dataset: {source.folder} is {file_format}, which cannot be read record by record; "
                f"prepare it again as array_record: {prepare_command(source.name, Path('ANOTHER_FOLDER'))}"
            )
        self._image_key, self._label_key = image_and_label(source.name, info)
        self.channels = info.features[self._image_key].shape[-1] or 3
        label = info.features[self._label_key]
        self.num_classes = int(label.num_classes)
        self.class_names = list(label.names or map(str, range(self.num_classes)))
        example = importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
        self._raw, self._parse = DeserializeMethod.RAW_BYTES, example.FromString
        self._readers: dict[str, Any] = {}

    def first_label(self, split: str) -> int:
        """Label of the first record (-1 where the labels are secret)."""
        return self._read(split, 0, range(1))[0][1]

    def shard_lengths(self, split: str) -> list[int]:
        return list(self._builder.info.splits[split].shard_lengths)

    def encoded(self, split: str, shard: int, number: int) -> tuple[bytes, int]:
        """The file and the label of one record, of the whole split's count, which is in that shard."""
        return self._read(split, shard, range(number, number + 1))[0]

    def labels(self, split: str) -> np.ndarray:
        """Int32 [n]: all labels of ``split``, which is read from end to end and not decoded."""
        parts = [[label for _, label in self._read(split, shard, ids)] for shard, ids in self.plan(split)]
        return np.array(list(itertools.chain.from_iterable(parts)), np.int32)

    def check(self) -> None:
        """Read and decode the first image of every shard; ``InputError`` when one is damaged."""
        for split in self.splits:
            lengths = self.shard_lengths(split)
            for shard, first in enumerate(itertools.accumulate(lengths[:-1], initial=0)):
                if lengths[shard]:
                    self._decode(split, first, self._read(split, shard, range(first, first + 1))[0][0])

    def chunks(self, split: str, part: int = 0, parts: int = 1) -> Iterator[Chunk]:
        """Every ``parts``-th chunk of ``split``, beginning with number ``part``: pixels and labels."""
        for shard, ids in self.plan(split)[part::parts]:
            images: list[np.ndarray] = []
            labels: list[int] = []
            for number, (encoded, label) in zip(ids, self._read(split, shard, ids), strict=True):
                pixels = self._decode(split, number, encoded)
                if images and pixels.shape != images[0].shape:
                    raise self.varied(images[0].shape, pixels.shape)
                if not 0 <= label < self.num_classes:
                    raise InputError(
                        f"dataset: {self.source.name}: label {label} of image {number} of split {split} in "
                        f"{self.source.folder} is not one of 0..{self.num_classes - 1}"
                    )
                images.append(pixels)
                labels.append(label)
            yield np.stack(images), np.asarray(labels, np.int32)

    def plan(self, split: str) -> list[tuple[int, range]]:
        """Chunks of ``split``: the shard and the record numbers of each. No chunk crosses a shard."""
        plan, start = [], 0
        for shard, length in enumerate(self.shard_lengths(split)):
            stop = start + length
            plan += [(shard, range(first, min(first + _CHUNK, stop))) for first in range(start, stop, _CHUNK)]
            start = stop
        return plan

    def varied(self, one: tuple[int, ...], other: tuple[int, ...]) -> InputError:
        """The error for two images of different shapes."""
        return InputError(
            f"dataset: {self.source.name} has images of varying size "
            f"({one[1]}x{one[0]}, {other[1]}x{other[0]}); give image_size, such as 32"
        )

    def _read(self, split: str, shard: int, ids: range) -> list[tuple[bytes, int]]:
        path = self._builder.info.splits[split].filepaths[shard]
        with _explained(
            self.source.name, f"{path} is damaged; delete {self.source.folder} and prepare it again"
        ):
            if split not in self._readers:
                self._readers[split] = self._builder.as_data_source(split=split, deserialize_method=self._raw)
            values = []
            for record in self._readers[split].__getitems__(list(ids)):
                feature = self._parse(record).features.feature
                encoded = feature[self._image_key].bytes_list.value[0]
                values.append((encoded, feature[self._label_key].int64_list.value[0]))
            return values

    def _decode(self, split: str, number: int, encoded: bytes) -> np.ndarray:
        try:
            return decode_image(encoded, self.channels, self.image_size)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"dataset: {self.source.name}: image {number} of split {split} in {self.source.folder} "
                f"is damaged ({first_line(error)})"
            ) from error


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """What TFDS and array_record raise on damaged files has no common class."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"dataset: {name}: {what} ({first_line(error)})") from error


def image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Names of the image and of the label feature; ``InputError`` unless there is one of each to take."""
    features = import_tfds().features
    table = dict(info.features.items()) if isinstance(info.features, features.FeaturesDict) else {}
    images = [key for key, feature in table.items() if type(feature) is features.Image]
    labels = [key for key, feature in table.items() if type(feature) is features.ClassLabel]
    pair = info.supervised_keys
    if isinstance(pair, tuple) and len(pair) == 2 and pair[0] in images and pair[1] in labels:
        image, label = pair
    elif len(images) == 1 and len(labels) == 1:
        image, label = images[0], labels[0]
    else:
        kinds = ", ".join(f"{key}: {type(table[key]).__name__}" for key in sorted(table))
        raise InputError(f"dataset: {name} is not an image-classification set (features {kinds or 'none'})")
    shape, dtype = table[image].shape, np.dtype(table[image].np_dtype)
    if dtype != np.uint8 or (shape[-1] or 3) not in MODES:
        raise InputError(
            f"dataset: {name} has {dtype} images of {shape[-1]} channels; "
            f"only uint8 of {', '.join(map(str, MODES))} channels can be used"
        )
    return image, label


def first_line(error: BaseException) -> str:
    """The first line of what the error says, or its class."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
