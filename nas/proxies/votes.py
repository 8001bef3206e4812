"""What several scores say together: ranks, never values, so that scores of different units can be joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.errors import InputError


def _ranks(scores: Mapping[str, Sequence[float]], signs: Mapping[str, int]) -> np.ndarray:
    """Ranks from 1 [scores, networks], higher better, ties shared. InputError for NaN, unequal lengths, no score."""
    if not scores or len({len(column) for column in scores.values()}) != 1:
        raise InputError("votes: needs at least one score, each of as many networks")
    columns = np.array([signs[name] * np.asarray(column, np.float64) for name, column in scores.items()])
    for name, column in zip(scores, columns, strict=True):
        if np.isnan(column).any():
            raise InputError(f"votes: {name} is not a number for network {int(np.isnan(column).argmax())}")
    return np.stack([_ranked(column) for column in columns])


def _ranked(column: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def mean_rank(scores: Mapping[str, Sequence[float]], signs: Mapping[str, int]) -> np.ndarray:
    """Of each network its mean rank over the scores (TE-NAS, section 3.2), from 1, higher better; ties share."""
    return _ranks(scores, signs).mean(0)


def majority(scores: Mapping[str, Sequence[float]], signs: Mapping[str, int]) -> np.ndarray:
    """Of each network how many others most scores put it before, less how many they put before it.

    The vote of Abdelfattah et al. 2021 (section 3.3) on every pair of networks.
    """
    won = [np.sign(ranks[:, None] - ranks[None, :]) for ranks in _ranks(scores, signs)]
    return np.sign(np.sum(won, axis=0)).sum(1)
