"""Scores of forward passes: which rectifiers are on (NASWOT, SWAP, linear regions), how far a map moves (Zen)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np

from nas.errors import InputError
from nas.proxies import passes
from nas.proxies.passes import Mode, Tree
from nas.proxies.probe import Probe, finite, map_weights
from nas.proxies.watching import ScoreError, is_map


def codes(probe: Probe, k: int = 0) -> Iterator[tuple[np.ndarray, int]]:
    """Of each rectifier on batch ``k``: which of its units are on, in words [B, words] of bits; how many units."""
    for output in probe.rectified(k):
        on = (output > 0).reshape(len(output), -1)
        bits = np.packbits(on, axis=1)
        words = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
        words[:, : bits.shape[1]] = bits
        yield words.view(np.uint64), on.shape[1]


def naswot(probe: Probe) -> float:
    """log |K|, K_ij the number of rectifiers that examples i and j agree on (Mellor et al. 2021, equation 2).

    As in the authors' code, rectifiers are counted where they are applied, on unused branches too. -inf where two
    examples agree on all.
    """
    agreed = 0.0
    for words, units in codes(probe):
        differ = np.stack([np.bitwise_count(words ^ row).sum(1, dtype=np.int64) for row in words])
        agreed = agreed + (units - differ)
    sign, logarithm = np.linalg.slogdet(agreed)
    return finite("naswot", logarithm) if sign > 0 else -math.inf


def swap(probe: Probe) -> float:
    """SWAP: how many different patterns the rectifiers show over the batch (Peng et al., ICLR 2024, section 3).

    A rectifier's pattern is on which examples it is on: at most 2^B, and at most the rectifiers' number, which a batch
    of 32 images comes near. Of the weights as they are, the authors' code means 32 draws of normal ones on 16 images
    (``--batch-size 16`` of `score.py`), and sees the rectifiers of maps alone.
    """
    found: set[bytes] = set()
    for output in probe.rectified():
        bits = np.packbits((output > 0).reshape(len(output), -1), axis=0)
        columns = np.ascontiguousarray(bits.T)
        found.update(np.unique(columns.view(f"V{columns.shape[1]}")).ravel().tolist())
    return float(len(found))


def swap_regularised(probe: Probe, mu: float, sigma: float) -> float:
    """log of SWAP times exp(-(parameters / 1000 - mu)^2 / sigma) (Peng et al. 2024, section 3, and their code).

    ``mu`` and ``sigma``, thousands of parameters and their square, say which size is wanted, so that no value fits all
    spaces and this is not among `PROXIES`: call it from a function of your own. In log, for the factor leaves float64.
    """
    if not (math.isfinite(mu) and 0 < sigma < math.inf):
        raise InputError(f"swap_regularised: mu={mu} or sigma={sigma} is not a finite number, sigma above 0")
    thousands = probe.cut.size.params / 1000
    return finite("swap_regularised", math.log(swap(probe)) - (thousands - mu) ** 2 / sigma)


def linear_regions(probe: Probe) -> float:
    """How many linear regions the examples of all batches lie in: their different patterns (Chen et al. 2021, TE-NAS).

    Each example soon has a region of its own: TE-NAS counts with 3,000 images of 3x3 pixels, and one cell a stage.
    """
    found = set()
    for k in range(max(1, len(probe.batches))):
        rows = np.concatenate([words for words, _ in codes(probe, k)], axis=1)
        found.update(row.tobytes() for row in rows)
    return float(len(found))


ZEN_REPEATS, ZEN_STEP = 4, 1e-2


def zen(probe: Probe, *, batch_size: int = 16) -> float:
    """The Zen-score (Lin et al. 2021, algorithm 1): log of how far the last feature map moves with the input.

    Weights and ``batch_size`` images are Gaussian noise, drawn from the probe's seed; the mean over images of the
    sum over the map of |f(x) - f(x + 0.01 e)|, in log, plus log of the standard deviation of each batch
    normalisation's input (the root of its channels' mean variance; none where it never varies, as behind edges that
    are "none"), for what it divided by; the mean of 4 draws (the
    authors: 32). Shortcuts stay, as in NAS-Bench-201 evaluations. The map is the last one of more than one
    pixel. -inf where it does not move.
    """
    return float(np.mean([_zen(probe, (probe.seed, k), batch_size) for k in range(ZEN_REPEATS)]))


def _zen(probe: Probe, seed: tuple[int, int], batch_size: int) -> float:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, batch_size, *probe.image_shape), np.float32)
    variables = zen_variables(probe.variables, rng)
    maps, logarithm = [], 0.0
    for x in (images[0], images[0] + np.float32(ZEN_STEP) * images[1]):
        maps.append(_last_map(probe, variables, x))
    passed = passes.forward(probe.cut, variables, images[0], Mode(watch="variances"))
    for variance in (one for seen in passed.watched for one in seen):
        if np.any(variance):  # one whose input never varies divides nothing of what moves
            logarithm += math.log(np.asarray(variance, np.float64).mean()) / 2
    moved = np.abs(np.asarray(maps[0], np.float64) - maps[1]).sum((1, 2, 3)).mean()
    return finite("zen", math.log(moved) + logarithm) if moved > 0 else -math.inf


def zen_variables(variables: Tree, rng: np.random.Generator) -> Tree:
    """Standard normal weights, biases 0, scales 1."""
    neutral = {"bias": np.zeros_like, "scale": np.ones_like}

    def other(name: str, leaf: Tree) -> np.ndarray:
        return neutral.get(name, np.asarray)(np.asarray(leaf))

    drawn = map_weights(variables["params"], lambda leaf: rng.standard_normal(leaf.shape, np.float32), other)
    return {**variables, "params": drawn}


def _last_map(probe: Probe, variables: Tree, images: np.ndarray) -> jax.Array:
    if probe.cut.pieces[0].name is None:
        found = passes.forward(probe.cut, variables, images, Mode(watch="map")).watched[0]
    else:
        found = [value for value in passes.forward(probe.cut, variables, images).values[1:] if is_map(value)]
    if not found:
        raise ScoreError("zen: the network has no feature map")
    return found[-1]
