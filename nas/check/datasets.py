"""What a data set has to keep to."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from nas.check.base import Check, require
from nas.data import EMBEDDED, GENERATED, Dataset, Split, load_test, own_sets
from nas.data.config import DataConfig
from nas.data.tfds_sets import locate


def find(name: str) -> None:
    """Raises InputError where there is no set, folder or file of this name; what is in it is for the checks."""
    own = own_sets.own_set(name)
    if own is not None:
        own_sets.check(own)
    elif name not in EMBEDDED and name not in GENERATED:
        locate(name)


def splits_of(data: DataConfig) -> tuple[Dataset, dict[str, Split]]:
    found = data.load()
    return found, {"train": found.train, "valid": found.valid, "test": load_test(**data.arguments())}


def images_are_well_formed(data: DataConfig) -> None:
    found, splits = splits_of(data)
    for name, split in splits.items():
        require(split.images.dtype == np.uint8, f"images of {name} are {split.images.dtype}")
        require(split.images.shape == (len(split), *found.image_shape), f"{name} is {split.images.shape}")
        require(len(split) > 0, f"{name} has no images")
        labels = np.asarray(split.labels)
        inside = labels.min() >= 0 and labels.max() < found.num_classes
        require(inside, f"{name} has labels from {labels.min()} to {labels.max()}, of {found.num_classes}")


def every_class_is_everywhere(data: DataConfig) -> None:
    found, splits = splits_of(data)
    for name, split in splits.items():
        missing = sorted({*range(found.num_classes)} - {*np.unique(split.labels).tolist()})
        names = ", ".join(found.class_names[label] for label in missing[:5])
        require(not missing, f"{name} has no image of {names}")


def splits_do_not_overlap(data: DataConfig) -> None:
    """No image of validation or test is among those of training, pixel by pixel; copies in the set itself are named."""
    _, splits = splits_of(data)
    seen = {np.asarray(image).tobytes() for image in splits["train"].images}
    for name in ("valid", "test"):
        twice = sum(np.asarray(image).tobytes() in seen for image in splits[name].images)
        require(
            twice <= len(splits[name]) // 100,
            f"{twice} of the {len(splits[name])} images of {name} are among those of train",
        )


def it_loads_the_same_again(data: DataConfig) -> None:
    require(data.load().checksum == data.load().checksum, "it is another set when it is loaded again")


def checks(data: DataConfig) -> Iterator[Check]:
    """All checks of a data set."""
    for sentence, check in (
        ("it loads: images, labels and classes fit together", images_are_well_formed),
        ("every class is in every split", every_class_is_everywhere),
        ("images of validation and test are not in train (up to 1 %)", splits_do_not_overlap),
        ("it is the same when it is loaded again", it_loads_the_same_again),
    ):
        yield Check(sentence, functools.partial(check, data))
