"""Relaxations: from architecture parameters to the weights with which a supernet mixes its candidates.

A relaxation is a tuple of pure functions over a vector ``alphas`` float32 [layout.size] (see `nas.nn.layout`): the
entries of a choice's values are its alphas, those of its edge weight, where the layout has them, its beta
(Xu et al. 2020). ``key`` is a `jax.random.key`, ``levels`` are numbers that a search changes as it goes. All values
but ``layout`` may be traced. `docs/guide/oneshot_settings.md` holds each against its authors' code.
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


class Levels(NamedTuple):
    """What a relaxation is told of the step that it is in: traced numbers."""

    progress: ArrayLike = 0.0
    """share of the search that is done, from 0 to 1"""
    temperature: ArrayLike = 1.0
    """of the softmax of a draw (GDAS)"""
    radius: ArrayLike = 0.0
    """how far a mixing weight may be moved (SmoothDARTS)"""


Relax = Callable[[Layout, Array, Array, Levels], Array]
"""``(layout, alphas, key, levels) -> mixing`` float32 [layout.size]; differentiable in ``alphas``."""
Gradient = Callable[[Array], Array]
"""The gradient of the loss of a training batch by the mixing, at a mixing."""
Perturb = Callable[[Layout, Array, Array, Levels, Gradient, int], Array]
"""``(layout, mixing, key, levels, gradient, steps) -> mixing`` for a step of the weights."""


def nothing(layout: Layout, alphas: Array) -> Array:
    return jnp.zeros((), alphas.dtype)


class Relaxation(NamedTuple):
    """``expected`` is the mixing without noise, which derivation and records go by; ``penalty``, times the weight that
    a search gives it, is added to the loss of a step of the architecture; ``learns`` is false where there are no
    alphas to step. Where it ``samples`` the weights are those of single candidates, and no mixture is trained."""

    relax: Relax
    expected: Callable[[Layout, Array], Array]
    penalty: Callable[[Layout, Array], Array] = nothing
    perturb: Perturb | None = None
    learns: bool = True
    samples: bool = False


def initial(layout: Layout, key: Array, scale: float = 1e-3) -> Array:
    """Alphas to start from: normal with standard deviation ``scale``."""
    return scale * jax.random.normal(key, (layout.size,))


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


# ---------------------------------------------------------------------------------------------- relaxations


def softmax(layout: Layout, alphas: Array, key: Array, levels: Levels) -> Array:
    """DARTS (Liu et al. 2019, equation 2)."""
    return softmax_expected(layout, alphas)


def softmax_expected(layout: Layout, alphas: Array) -> Array:
    return by_choice(layout, alphas, jax.nn.softmax)


def sigmoid(layout: Layout, alphas: Array, key: Array, levels: Levels) -> Array:
    """FairDARTS: candidates do not compete (Chu et al. 2020, equation 4)."""
    return sigmoid_expected(layout, alphas)


def sigmoid_expected(layout: Layout, alphas: Array) -> Array:
    return by_choice(layout, alphas, jax.nn.sigmoid)


def zero_one_loss(layout: Layout, alphas: Array) -> Array:
    """``-mean((sigmoid(alpha) - 1/2)^2)``: away from the middle (Chu et al. 2020, equation 6; their weight: 10)."""
    return -jnp.mean(jnp.square(jax.nn.sigmoid(alphas[: layout.candidates]) - 0.5))


def gumbel(layout: Layout, alphas: Array, key: Array, levels: Levels) -> Array:
    """GDAS: one candidate a choice, drawn by the Gumbel-max trick; gradients as of the softmax with that noise
    at a temperature, which a search lets fall linearly (Dong and Yang 2019, equations 4 to 7).

    All candidates are run for the gradient. The authors' code runs the drawn one and puts 1 for the others' outputs.
    """
    temperature = jnp.asarray(levels.temperature, jnp.float32)
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


def dirichlet(layout: Layout, alphas: Array, key: Array, levels: Levels) -> Array:
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


def distance_to_one(layout: Layout, alphas: Array) -> Array:
    """The anchor of DrNAS: the concentrations' distance to 1 (Chen et al. 2021, section 3.2; their code decays the
    alphas instead, which are 0 where a concentration is 1)."""
    found = concentration(alphas[: layout.candidates]) - 1
    return jnp.sqrt(jnp.sum(jnp.square(found)) + 1e-12)


def as_given(layout: Layout, alphas: Array, key: Array, levels: Levels) -> Array:
    return alphas


# ------------------------------------------------------------------------------- perturbation (SmoothDARTS)


def random_perturbation(
    layout: Layout,
    mixing: Array,
    key: Array,
    levels: Levels,
    gradient: Gradient,
    steps: int,
) -> Array:
    """SDARTS-RS: uniform noise on the mixing within the radius, which grows (Chen and Hsieh 2020, equation 6)."""
    radius = jnp.asarray(levels.radius, mixing.dtype)
    noise = jax.random.uniform(key, mixing.shape, mixing.dtype, -1, 1)
    return _in_simplex(layout, mixing + radius * noise, mixing)


def adversarial_perturbation(
    layout: Layout,
    mixing: Array,
    key: Array,
    levels: Levels,
    gradient: Gradient,
    steps: int,
) -> Array:
    """SDARTS-ADV: a mixing within the radius that has a large loss, by projected gradient ascent of ``steps`` steps of
    signs, each 2 / steps of it, from a random point (Chen and Hsieh 2020, equation 7, and their code; Madry et al.
    2018)."""
    radius = jnp.asarray(levels.radius, mixing.dtype)
    moved = random_perturbation(layout, mixing, key, levels, gradient, steps)
    for _ in range(steps):
        ahead = moved + 2 / steps * radius * jnp.sign(gradient(moved))
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
