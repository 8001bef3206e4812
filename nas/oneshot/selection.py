"""How a search with shared weights looks for the architecture that it selects: at random, or by evolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nas.nn.layout import Layout

POPULATION, PARENTS, MUTATED = 50, 10, 0.1  # Guo et al. 2020, section 3.4 and algorithm 1


def drawn(rng: np.random.Generator, layout: Layout, judge: Callable[[np.ndarray], float], count: int) -> None:
    """``count`` random architectures (Li and Talwalkar 2019, section 3)."""
    for _ in range(count):
        judge(rng.random(layout.size))


def evolved(
    rng: np.random.Generator,
    layout: Layout,
    judge: Callable[[np.ndarray], float],
    count: int,
    population: int = 50,
    parents: int = 10,
    mutation: float = 0.1,
) -> None:
    """About ``count`` architectures: each generation half crossed, half mutated, from the best of all before.

    Guo et al. 2020, algorithm 1: the ``parents`` best of all have the next ``population``; a child of two takes each
    choice from either, a mutant has each choice drawn anew with probability ``mutation``.
    """
    judged: list[tuple[float, int, np.ndarray]] = []
    blocks = [row for block in layout.blocks for row in block]

    def add(genes: np.ndarray) -> None:
        judged.append((judge(genes), -len(judged), genes))

    for _ in range(min(population, count)):
        add(rng.random(layout.size))
    while len(judged) < count:
        best = [genes for *_, genes in sorted(judged, key=lambda of: of[:2], reverse=True)[:parents]]
        for k in range(min(population, count - len(judged))):
            one, other = (best[i] for i in rng.integers(0, len(best), 2))
            genes = one.copy()
            for row in blocks:
                if k % 2 and rng.random() < 0.5:
                    genes[row] = other[row]
                elif not k % 2 and rng.random() < mutation:
                    genes[row] = rng.random(len(row))
            add(genes)
