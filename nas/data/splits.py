"""Stratified splitting: which image goes where, as a pure function of labels, counts and a generator."""

from __future__ import annotations

import itertools

import numpy as np


def stratified(
    labels: np.ndarray, count: int, rng: np.random.Generator, *, keep: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` images with the classes in proportion; the rest keeps at least ``keep`` of each class.

    Returns the indices drawn and the indices left, each in random order. Shares are rounded by largest
    remainder (ties: the lower label), and go to other classes where ``keep`` forbids them.
    ``count`` must be at most ``len(labels) - keep * classes``, with no class smaller than ``keep``.
    """
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    capacity = sizes - keep
    if capacity.min(initial=0) < 0 or not 0 <= count <= capacity.sum():
        raise ValueError(f"count={count} with keep={keep} of classes of {sizes.tolist()}")
    share, remainder = np.divmod(sizes * count, len(labels))
    take = np.minimum(share, capacity)
    missing = count - int(take.sum())
    for index in itertools.cycle(np.argsort(-remainder, kind="stable").tolist()):
        if not missing:
            break
        if take[index] < capacity[index]:
            take[index] += 1
            missing -= 1

    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = rank < np.repeat(take, sizes)
    return rng.permutation(by_class[drawn]), rng.permutation(by_class[~drawn])
