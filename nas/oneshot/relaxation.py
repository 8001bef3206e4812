"""Relaxations: from architecture parameters to the weights with which a supernet mixes its candidates.

A relaxation is a tuple of pure functions over a vector ``alphas`` float32 [layout.size] (see `nas.nn.layout`): the
entries of a choice's values are its alphas, those of its edge weight, where the layout has them, its beta
(Xu et al. 2020). ``progress`` in [0, 1] is the share of the search that is done; ``key`` a `jax.random.key`.
All values but ``layout`` may be traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nas.nn.layout import Layout

Relax = Callable[[Layout, Array, Array, ArrayLike], Array]
"""``(layout, alphas, key, progress) -> mixing`` float32 [layout.size]; differentiable in ``alphas``."""
Gradient = Callable[[Array], Array]
"""The gradient of the loss of a training batch by the mixing, at a mixing."""
Perturb = Callable[[Layout, Array, Array, ArrayLike, Gradient], Array]
"""``(layout, mixing, key, progress, gradient) -> mixing`` for a step of the weights."""


def nothing(layout: Layout, alphas: Array) -> Array:
    return jnp.zeros((), alphas.dtype)


class Relaxation(NamedTuple):
    """``expected`` is the mixing without noise, which derivation and records go by; ``penalty`` is added to the
    loss of a step of the architecture; ``learns`` is false where there are no alphas to step. Where it ``samples``
    the weights are those of single candidates, and no mixture is trained."""

    relax: Relax
    expected: Callable[[Layout, Array], Array]
    penalty: Callable[[Layout, Array], Array] = nothing
    perturb: Perturb | None = None
    initial_scale: float = 1e-3
    learns: bool = True
    samples: bool = False


def initial(relaxation: Relaxation, layout: Layout, key: Array) -> Array:
    """Alphas to start from: normal, with the relaxation's scale (published: 1e-3)."""
    return relaxation.initial_scale * jax.random.normal(key, (layout.size,))


# -------------------------------------------------------------------------------------------------- helpers


def by_choice(layout: Layout, alphas: Array, function: Callable[[Array], Array]) -> Array:
    """``function`` [choices, values] -> same on the alphas of the choices that have equally many values.

    The weights so found of a choice with an edge weight are multiplied by it: softmax of the betas of all
    choices that meet at its node (Xu et al. 2020, equation 2).
    """
    candidates = jnp.zeros(layout.candidates, alphas.dtype)
    for positions in layout.blocks:
        candidates = candidates.at[positions].set(function(alphas[positions]).astype(alphas.dtype))
    if not layout.node_inputs:
        return candidates
    return _with_edges(layout, alphas, candidates)


def _with_edges(layout: Layout, alphas: Array, candidates: Array) -> Array:
    edges = jnp.zeros_like(alphas)
    for group in layout.edge_groups:
        edges = edges.at[group].set(jax.nn.softmax(alphas[group]))
    return jnp.concatenate([candidates * edges[layout.edge_of], edges[layout.candidates :]])


def _straight_through(hard: Array, soft: Array) -> Array:
    """``hard`` with the gradient of ``soft``."""
    return hard + soft - jax.lax.stop_gradient(soft)


def _one_hot(scores: Array) -> Array:
    return jax.nn.one_hot(jnp.argmax(scores, -1), scores.shape[-1], dtype=scores.dtype)


def _between(first: float, last: float, progress: ArrayLike) -> Array:
    return first + (last - first) * jnp.asarray(progress, jnp.float32)


# ---------------------------------------------------------------------------------------------- relaxations


def softmax(layout: Layout, alphas: Array, key: Array, progress: ArrayLike) -> Array:
    """DARTS (Liu et al. 2019, equation 2)."""
    return softmax_expected(layout, alphas)


def softmax_expected(layout: Layout, alphas: Array) -> Array:
    return by_choice(layout, alphas, jax.nn.softmax)


def sigmoid(layout: Layout, alphas: Array, key: Array, progress: ArrayLike) -> Array:
    """FairDARTS: candidates do not compete (Chu et al. 2020, equation 4)."""
    return sigmoid_expected(layout, alphas)


def sigmoid_expected(layout: Layout, alphas: Array) -> Array:
    return by_choice(layout, alphas, jax.nn.sigmoid)


def zero_one_loss(layout: Layout, alphas: Array, weight: float = 10.0) -> Array:
    """``-weight * mean((sigmoid(alpha) - 1/2)^2)``: away from the middle (Chu et al. 2020, equation 6)."""
    return -weight * jnp.mean(jnp.square(jax.nn.sigmoid(alphas[: layout.candidates]) - 0.5))


def gumbel(
    layout: Layout,
    alphas: Array,
    key: Array,
    progress: ArrayLike,
    temperatures: tuple[float, float] = (10, 0.1),
) -> Array:
    """GDAS: one candidate a choice, drawn by the Gumbel-max trick; gradients as of the softmax with that noise
    at a temperature that falls linearly (Dong and Yang 2019, equations 4 to 7)."""
    temperature = _between(*temperatures, progress)
    noise = jax.random.gumbel(key, (layout.size,)).astype(alphas.dtype)

    def draw(both: Array) -> Array:
        logits = (jax.nn.log_softmax(both[..., 0]) + both[..., 1]) / temperature
        return _straight_through(_one_hot(logits), jax.nn.softmax(logits))

    return _jointly(layout, alphas, noise, draw)


def _jointly(layout: Layout, alphas: Array, noise: Array, function: Callable[[Array], Array]) -> Array:
    """`by_choice` of a function of alphas and noise, the last axis [2]."""
    candidates = jnp.zeros(layout.candidates, alphas.dtype)
    for positions in layout.blocks:
        both = jnp.stack([alphas[positions], noise[positions]], -1)
        candidates = candidates.at[positions].set(function(both).astype(alphas.dtype))
    return _with_edges(layout, alphas, candidates) if layout.node_inputs else candidates


def dirichlet(layout: Layout, alphas: Array, key: Array, progress: ArrayLike) -> Array:
    """DrNAS: weights from Dir(elu(alpha) + 1), gradients by implicit reparametrisation (Chen et al. 2021, 3.1)."""
    keys = iter(jax.random.split(key, len(layout.blocks)))

    def draw(values: Array) -> Array:
        return jax.nn.softmax(jax.random.loggamma(next(keys), concentration(values)))

    return by_choice(layout, alphas, draw)


def concentration(alphas: Array) -> Array:
    return jnp.maximum(jax.nn.elu(alphas) + 1, 1e-6)


def dirichlet_expected(layout: Layout, alphas: Array) -> Array:
    def mean(values: Array) -> Array:
        of = concentration(values)
        return of / of.sum(-1, keepdims=True)

    return by_choice(layout, alphas, mean)


def distance_to_one(layout: Layout, alphas: Array, weight: float = 1e-3) -> Array:
    """The anchor of DrNAS: the concentrations' squared distance to 1 (Chen et al. 2021, section 3.2)."""
    found = concentration(alphas[: layout.candidates]) - 1
    return weight * jnp.sqrt(jnp.sum(jnp.square(found)) + 1e-12)


def as_given(layout: Layout, alphas: Array, key: Array, progress: ArrayLike) -> Array:
    return alphas


# ------------------------------------------------------------------------------- perturbation (SmoothDARTS)


def random_perturbation(
    layout: Layout,
    mixing: Array,
    key: Array,
    progress: ArrayLike,
    gradient: Gradient,
    radii: tuple[float, float] = (0.03, 0.3),
) -> Array:
    """SDARTS-RS: uniform noise on the mixing, its radius growing linearly (Chen and Hsieh 2020, equation 6)."""
    radius = _between(*radii, progress).astype(mixing.dtype)
    noise = jax.random.uniform(key, mixing.shape, mixing.dtype, -1, 1)
    return _in_simplex(layout, mixing + radius * noise, mixing)


def adversarial_perturbation(
    layout: Layout,
    mixing: Array,
    key: Array,
    progress: ArrayLike,
    gradient: Gradient,
    radii: tuple[float, float] = (0.03, 0.3),
    steps: int = 7,
) -> Array:
    """SDARTS-ADV: the mixing within the radius that has the largest loss, by projected gradient ascent of
    ``steps`` steps of signs, each 2.5 / steps of it (Chen and Hsieh 2020, equation 7; Madry et al. 2018)."""
    radius = _between(*radii, progress).astype(mixing.dtype)
    moved = mixing
    for _ in range(steps):
        ahead = moved + 2.5 / steps * radius * jnp.sign(gradient(moved))
        moved = _in_simplex(layout, jnp.clip(ahead, mixing - radius, mixing + radius), mixing)
    return moved


def _in_simplex(layout: Layout, moved: Array, mixing: Array) -> Array:
    """Weights not below 0, with the sum that the choice had; edge weights stay."""
    found = mixing
    for positions in layout.blocks:
        weights = jnp.maximum(moved[positions], 0)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-12)
        found = found.at[positions].set(weights * (mixing[positions].sum(-1, keepdims=True) / total))
    return found


RELAXATIONS: dict[str, Relaxation] = {
    "softmax": Relaxation(softmax, softmax_expected),
    "gumbel": Relaxation(gumbel, softmax_expected, samples=True),
    "dirichlet": Relaxation(dirichlet, dirichlet_expected, distance_to_one),
    "sigmoid": Relaxation(sigmoid, sigmoid_expected, zero_one_loss),
    "perturbed": Relaxation(softmax, softmax_expected, perturb=random_perturbation),
    "adversarial": Relaxation(softmax, softmax_expected, perturb=adversarial_perturbation),
}

given = Relaxation(as_given, lambda layout, alphas: alphas, learns=False)
"""The alphas are weights that somebody else has drawn: single paths (Li and Talwalkar 2019; Guo et al. 2020)."""


def entropy(layout: Layout, mixing: Array) -> Array:
    """Mean over the choices of the entropy of their weights, made to sum to 1, over its maximum: 1 is even."""
    total, count = jnp.zeros(()), 0
    for positions in layout.blocks:
        weights = jnp.maximum(mixing[positions], 0)
        shares = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-12)
        bits = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0), -1)
        total += jnp.sum(bits) / math.log(max(positions.shape[1], 2))
        count += len(positions)
    return total / count
