"""The batches that scores are computed on, of a data set's training images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nas.data import Dataset
from nas.errors import InputError
from nas.training.programs import Batch


def batches_of(dataset: Dataset, count: int, batch_size: int) -> list[Batch]:
    """``count`` batches of the first training images (which stand in an order drawn by the split's seed), standardised.

    InputError where there are not so many images.
    """
    have = len(dataset.train)
    if count * batch_size > have:
        raise InputError(
            f"{dataset.name}: {count} batches of {batch_size} images are more than its {have} training images"
        )
    classes = np.eye(dataset.num_classes, dtype=np.float32)
    made = []
    for k in range(count):
        part = slice(k * batch_size, (k + 1) * batch_size)
        labels = np.asarray(dataset.train.labels[part])
        images = dataset.train.images[part].astype(np.float32) / 255
        standardised = (images - dataset.mean) / dataset.std
        made.append(batch(standardised, classes[labels], labels))
    return made


def batch(images: ArrayLike, target: ArrayLike, labels: ArrayLike) -> Batch:
    """A batch of arrays of any kind, on the device."""
    return Batch(jnp.asarray(images), jnp.asarray(target), jnp.asarray(labels))
