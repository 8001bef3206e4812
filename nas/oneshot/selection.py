"""How a search with shared weights looks for the architecture that it selects: at random, or by evolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nas.nn.layout import Layout
from nas.space import Architecture

Decode = Callable[[np.ndarray], Architecture]
"""The architecture that random numbers, float64 [layout.size], are strongest for."""
Judge = Callable[[Architecture], float]

TRIES = 10  # of drawing an architecture that was not judged yet, for each that is wanted


def drawn(
    rng: np.random.Generator, layout: Layout, decode: Decode, judge: Judge, count: int
) -> dict[Architecture, float]:
    """What ``count`` random architectures are worth, equal ones judged once (Li and Talwalkar 2019, section 3)."""
    found: dict[Architecture, float] = {}
    for _ in range(count):
        arch = decode(rng.random(layout.size))
        if arch not in found:
            found[arch] = judge(arch)
    return found


def evolved(
    rng: np.random.Generator,
    layout: Layout,
    decode: Decode,
    judge: Judge,
    count: int,
    population: int = 50,
    parents: int = 10,
    mutation: float = 0.1,
) -> dict[Architecture, float]:
    """What ``count`` different architectures are worth, fewer where chance finds no further ones.

    Guo et al. 2020, algorithm 1: the ``parents`` best of all have the next ``population``, half of it mutants, which
    have each choice drawn anew with probability ``mutation``, half children of two, which take each choice from
    either. As in the authors' code a child that was judged before does not count, and where ten times as many tries
    as children are wanted do not give enough, random architectures fill the generation.
    """
    found: dict[Architecture, float] = {}
    genes_of: dict[Architecture, np.ndarray] = {}
    rows = [row for block in layout.blocks for row in block]

    def add(propose: Callable[[], np.ndarray], wanted: int) -> None:
        for _ in range(TRIES * wanted):
            if not wanted:
                return
            genes = propose()
            arch = decode(genes)
            if arch not in found:
                found[arch], genes_of[arch] = judge(arch), genes
                wanted -= 1

    def anywhere() -> np.ndarray:
        return rng.random(layout.size)

    while len(found) < count:
        before, size = len(found), min(population, count - len(found))
        best = [genes_of[arch] for arch in sorted(found, key=lambda arch: -found[arch])[:parents]]

        def mutant(best: list[np.ndarray] = best) -> np.ndarray:
            genes = best[rng.integers(len(best))].copy()
            for row in rows:
                if rng.random() < mutation:
                    genes[row] = rng.random(len(row))
            return genes

        def child(best: list[np.ndarray] = best) -> np.ndarray:
            one, other = (best[i] for i in rng.integers(0, len(best), 2))
            genes = one.copy()
            for row in rows:
                if rng.random() < 0.5:
                    genes[row] = other[row]
            return genes

        if best:
            add(mutant, (size + 1) // 2)
            add(child, size // 2)
        add(anywhere, before + size - len(found))
        if len(found) == before:
            break
    return found
