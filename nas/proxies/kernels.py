"""The empirical neural tangent kernel (Jacot et al. 2018) and the scores made of it: TE-NAS's, KNAS's."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np

from nas.proxies import passes
from nas.proxies.probe import Probe, finite
from nas.proxies.watching import ScoreError

MAX_BYTES = 1 << 29  # of Jacobian that is held at a time


def ntk(probe: Probe, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The Gram matrix [B, B], float64, of the gradients of each example's summed outputs by all parameters.

    Exact: one backward pass an example of the first batch, through the batch's normalisation, by which an example's
    outputs depend on all images (as in TE-NAS's code, which takes weights without biases). Of the Jacobian as many
    layers are held at a time as ``max_bytes`` hold, or else one; the passes are made again for the next ones.
    """
    passed = probe.differentiated
    batch, outputs = passed.output.shape
    units = [
        (step.piece.name, step.piece.unit.shapes.size.params)
        for step in passed.steps
        if step is not None and step.piece.unit.shapes.size.params
    ]
    gram = np.zeros((batch, batch))
    for group in _groups(units, max_bytes // (4 * batch)):
        jacobian = np.zeros((batch, sum(size for _, size in group)), np.float32)
        for i in range(batch):
            cotangent = np.zeros((batch, outputs), np.float32)
            cotangent[i] = 1
            found = passes.backward(passed, cotangent).params
            leaves = [
                leaf
                for name, _ in group
                for leaf in jax.tree.leaves(found if name is None else found.get(name))
            ]
            at = 0
            for leaf in leaves:
                jacobian[i, at : at + leaf.size] = np.asarray(leaf).ravel()
                at += leaf.size
        for columns in np.array_split(jacobian, math.ceil(jacobian.shape[1] / 65536), axis=1):
            wide = columns.astype(np.float64)
            gram += wide @ wide.T
    if not np.isfinite(gram).all():
        raise ScoreError("ntk: a gradient is not finite")
    return gram


def _groups(sizes: list[tuple[str | None, int]], most: int) -> list[list[tuple[str | None, int]]]:
    """Consecutive layers of at most ``most`` parameters together, or one alone."""
    groups: list[list[tuple[str | None, int]]] = []
    for one in sizes:
        if groups and sum(size for _, size in groups[-1]) + one[1] <= most:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def ntk_condition(probe: Probe) -> float:
    """The kernel's largest eigenvalue over its smallest (Chen et al. 2021, TE-NAS, section 3.1.1); lower is better.

    inf where the smallest is not above rounding: a network whose examples are not told apart.
    """
    return condition(ntk(probe))


def condition(gram: np.ndarray) -> float:
    """The condition number of a Gram matrix of float32 vectors; inf where it is singular to their precision."""
    values = np.linalg.eigvalsh(gram)
    # Rounding in float32 moves singular values by some eps of the largest, eigenvalues by the square of that.
    least = values[-1] * len(gram) * (16 * np.finfo(np.float32).eps) ** 2
    return finite("ntk_condition", values[-1] / values[0]) if values[0] > least else math.inf


def knas(probe: Probe) -> float:
    """KNAS as published: the mean of the Gram matrix of the examples' gradients (Xu et al. 2021, section 3).

    The gradients are those of `ntk`. The mean over all pairs of g_i g_j is |mean g|^2: one backward pass.
    """
    passed = probe.differentiated
    share = np.full(passed.output.shape, 1 / len(passed.output), np.float32)
    mean = jax.tree.leaves(passes.backward(passed, share).params)
    return finite("knas", sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in mean))


KNAS_BATCHES, KNAS_COORDINATES, KNAS_TENSORS = 50, 50, 11


def knas_code(probe: Probe) -> float:
    """KNAS as the authors' code has it (`procedure` in their functions.py), on exactly 50 batches.

    Of the first 11 parameters that have a gradient and at least 50 elements, the first 50 coordinates (in PyTorch's
    order of axes): the gradients of the loss on batches 0 to 24 and on 25 to 49, each centred, their dot product
    / 2500, summed. Needs a network whose nodes stand in the order of its PyTorch modules for the same tensors.
    """
    if len(probe.batches) < KNAS_BATCHES:
        raise ScoreError(f"knas_code: needs {KNAS_BATCHES} batches, {len(probe.batches)} given")
    rows = []
    for k in range(KNAS_BATCHES):
        leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(list(probe.gradient(k).params.values())))
        large = (leaf for leaf in leaves if leaf.size >= KNAS_COORDINATES)
        rows.append([_first(leaf) for leaf in itertools.islice(large, KNAS_TENSORS)])
    gradients = np.asarray(rows, np.float64)  # [batch, tensor, coordinate]
    halves = np.split(gradients, 2)
    first, second = (half - half.mean(0) for half in halves)
    return finite("knas_code", (first * second).sum() / KNAS_BATCHES**2)


def _first(leaf: np.ndarray) -> np.ndarray:
    """The first coordinates as PyTorch has them: outputs, inputs, then the kernel's rows and columns."""
    ordered = np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim >= 2 else leaf
    return ordered.reshape(-1)[:KNAS_COORDINATES]
