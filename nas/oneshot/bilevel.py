"""The bilevel loop of differentiable search (Liu et al. 2019, algorithm 1): one step of it, as pure functions.

Architecture parameters step on a batch of one half of the training images, weights on one of the other half.
A supernet sees the former through its mixing alone (`nas.oneshot.relaxation`), so all that is expensive are a few
derivatives of its loss by weights and mixing, which no relaxation changes: `Derivatives`. `search_step` is the same
function of them whether the whole step is one program or each derivative is (`nas.oneshot.programs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from nas.cpu.function import for_cpu
from nas.errors import one_of
from nas.nn.layout import Layout
from nas.oneshot.relaxation import Levels, Relaxation
from nas.training.network import Noise, Tree, apply_train
from nas.training.programs import Batch, count_correct

ORDERS = ("first", "exact", "difference")


class Rates(NamedTuple):
    """What one step takes beside data: traced numbers, at the values of Liu et al. 2019, section 3.1."""

    learning_rate: ArrayLike = 0.025
    momentum: ArrayLike = 0.9
    weight_decay: ArrayLike = 3e-4
    clip_norm: ArrayLike = 5.0
    alpha_learning_rate: ArrayLike = 3e-4
    alpha_weight_decay: ArrayLike = 1e-3
    alpha_b1: ArrayLike = 0.5
    alpha_b2: ArrayLike = 0.999
    unroll: ArrayLike = 0.025
    """xi of equation 6: the learning rate of the virtual step; published: the weights' own"""
    dropout: ArrayLike = 0.0
    nesterov: ArrayLike = 0.0
    """1: the weights' momentum is Nesterov's; 0: it is not"""
    penalty: ArrayLike = 0.0
    """of the relaxation's penalty in a step of the architecture"""
    progress: ArrayLike = 0.0
    temperature: ArrayLike = 1.0
    radius: ArrayLike = 0.0

    @property
    def levels(self) -> Levels:
        return Levels(self.progress, self.temperature, self.radius)


class State(NamedTuple):
    """All that a search changes."""

    params: Tree
    rest: dict[str, Tree]  # other collections: running statistics
    opt_state: Tree  # of `weights_optimiser`
    alphas: Array  # [layout.size]
    alpha_opt_state: Tree  # of `architecture_optimiser`


class Metrics(NamedTuple):
    """Of one step: mean losses and correct answers of its two batches, before the updates."""

    train_loss: Array
    train_correct: Array
    valid_loss: Array
    valid_correct: Array


class Point(NamedTuple):
    """Where a loss is differentiated: weights, mixing, other collections, data and noise."""

    params: Tree
    mixing: Array
    rest: dict[str, Tree]
    batch: Batch
    noise: Noise


class Loss(NamedTuple):
    loss: Array
    correct: Array
    rest: dict[str, Tree]


class Derivatives(NamedTuple):
    """Derivatives of a supernet's mean loss at a `Point`.

    ``by_weights``: (Loss, gradient); ``by_mixing``: (Loss, gradient); ``by_both``: (Loss, gradient by weights, by
    mixing); ``mixed``: (point, v) -> the derivative along v, weights shaped, of the gradient by mixing;
    ``curvature``: (point, u) -> the same along a mixing u.
    """

    by_weights: Callable[[Point], tuple[Loss, Tree]]
    by_mixing: Callable[[Point], tuple[Loss, Array]]
    by_both: Callable[[Point], tuple[Loss, Tree, Array]]
    mixed: Callable[[Point, Tree], Array]
    curvature: Callable[[Point, Array], Array]


def derivatives(network: Any) -> Derivatives:
    """Those of ``network``, called as ``network.apply(variables, images, train=True, mixing=…)``."""

    # What is computed again has no forward mode on CPU (`nas.nn.recompute`).
    kept = getattr(network, "remat", False) and for_cpu()
    forward = network.clone(remat=False) if kept else network

    def loss_of(params: Tree, mixing: Array, at: Point, network: Any = network) -> tuple[Array, Loss]:
        variables = {"params": params, **at.rest}
        logits, rest, extra = apply_train(network, variables, (at.batch.images,), at.noise, mixing=mixing)
        total = _mean_loss(logits, at.batch.target)
        loss = Loss(total, count_correct(logits, at.batch.labels), rest)
        return sum(extra.losses, total), loss

    def by_weights(at: Point) -> tuple[Loss, Tree]:
        (_, loss), found = jax.value_and_grad(loss_of, 0, has_aux=True)(at.params, at.mixing, at)
        return loss, found

    def by_mixing(at: Point) -> tuple[Loss, Array]:
        (_, loss), found = jax.value_and_grad(loss_of, 1, has_aux=True)(at.params, at.mixing, at)
        return loss, found

    def by_both(at: Point) -> tuple[Loss, Tree, Array]:
        (_, loss), found = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(at.params, at.mixing, at)
        return loss, *found

    def gradient(params: Tree, mixing: Array, at: Point) -> Array:
        # By both, though one is asked for: normalisations have no forward mode but over a reverse one, and those
        # before the first mixture do not depend on the mixing.
        return jax.grad(lambda params, mixing: loss_of(params, mixing, at, forward)[0], (0, 1))(
            params, mixing
        )[1]

    def mixed(at: Point, along: Tree) -> Array:
        return jax.jvp(lambda params: gradient(params, at.mixing, at), (at.params,), (along,))[1]

    def curvature(at: Point, along: Array) -> Array:
        return jax.jvp(lambda mixing: gradient(at.params, mixing, at), (at.mixing,), (along,))[1]

    return Derivatives(by_weights, by_mixing, by_both, mixed, curvature)


def _mean_loss(logits: Array, target: Array) -> Array:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy(wide, target.astype(wide.dtype)).mean()


# ---------------------------------------------------------------------------------------------- derivatives


def unrolled(params: Tree, gradient: Tree, opt_state: Tree, rates: Rates) -> Tree:
    """The weights after one virtual step of momentum: ``w - xi * (momentum * trace + gradient + decay * w)``.

    As the authors' code has it, without clipping.
    """

    def step(p: Array, g: Array, t: Array) -> Array:
        moved = p - rates.unroll * (rates.momentum * t + g + rates.weight_decay * p)
        return moved.astype(p.dtype)

    return jax.tree.map(step, params, gradient, optax.tree.get(opt_state, "trace"))


def shifted(params: Tree, along: Tree, length: ArrayLike) -> Tree:
    return jax.tree.map(lambda p, v: (p + length * v).astype(p.dtype), params, along)


def difference_step(along: Tree) -> Array:
    """epsilon of equation 8: 0.01 / ||v||."""
    return 0.01 / jnp.maximum(optax.tree.norm(along), 1e-12)


def mixing_gradient(
    of: Derivatives, order: str, state: State, mixing: Array, train: Batch, valid: Batch, noise: Noise,
    rates: Rates, run: Callable[[Any], Any] = lambda function: function,
) -> tuple[Loss, Array]:  # fmt: skip
    """The gradient of the validation loss by the mixing, and that loss.

    ``first``: at the weights as they are (xi = 0). Otherwise at those after a virtual step on ``train``, which
    depend on the mixing (equation 7): what comes of that is the mixed second derivative along the gradient by
    the weights, ``exact`` by forward over reverse differentiation, or by the central ``difference`` of equation 8.
    ``run`` makes of a pure function what is called: `jax.jit` where this is not traced as a whole.
    """
    at = Point(state.params, mixing, state.rest, train, noise)
    if order == "first":
        return of.by_mixing(at._replace(batch=valid))
    _, gradient = of.by_weights(at)
    ahead = run(unrolled)(state.params, gradient, state.opt_state, rates)
    loss, along, direct = of.by_both(at._replace(params=ahead, batch=valid))
    if order == "exact":
        return loss, direct - rates.unroll * of.mixed(at, along)
    if order != "difference":
        raise one_of("order", order, ORDERS)
    length = run(difference_step)(along)
    _, above = of.by_mixing(at._replace(params=run(shifted)(state.params, along, length)))
    _, below = of.by_mixing(at._replace(params=run(shifted)(state.params, along, -length)))
    return loss, direct - rates.unroll * (above - below) / (2 * length)


# ---------------------------------------------------------------------------------------------- the loop


class Problem(NamedTuple):
    """What one search is about, beside its network: hashable, so that programs can be kept by it."""

    layout: Layout
    relaxation: Relaxation
    order: str = "first"
    alpha_scale: float = 1e-3
    """of the alphas at first"""
    perturbation_steps: int = 7


def _keys(seed: ArrayLike) -> Array:
    """Keys of the architecture's mixing, the weights' mixing, and its perturbation."""
    return jax.random.split(jax.random.key(seed), 3)


def architecture_mixing(problem: Problem, alphas: Array, seed: ArrayLike, rates: Rates) -> Array:
    return problem.relaxation.relax(problem.layout, alphas, _keys(seed)[0], rates.levels)


def weights_mixing(problem: Problem, alphas: Array, seed: ArrayLike, rates: Rates) -> Array:
    return problem.relaxation.relax(problem.layout, alphas, _keys(seed)[1], rates.levels)


def alpha_gradient(problem: Problem, alphas: Array, by_mixing: Array, seed: ArrayLike, rates: Rates) -> Array:
    """A gradient by the mixing drawn back through the relaxation, with the penalty's."""
    _, back = jax.vjp(lambda alphas: architecture_mixing(problem, alphas, seed, rates), alphas)
    penalty = jax.grad(lambda alphas: problem.relaxation.penalty(problem.layout, alphas))(alphas)
    return back(by_mixing)[0] + rates.penalty * penalty


def architecture_optimiser(rates: Rates) -> optax.GradientTransformation:
    """Adam with L2 weight decay."""
    at: Any = rates
    return optax.chain(
        optax.add_decayed_weights(at.alpha_weight_decay),
        optax.adam(at.alpha_learning_rate, at.alpha_b1, at.alpha_b2),
    )


def weights_optimiser(rates: Rates) -> optax.GradientTransformation:
    """Momentum, Nesterov's if wanted, with L2 weight decay on all weights, gradients clipped by their norm."""
    at: Any = rates
    return optax.chain(
        optax.clip_by_global_norm(at.clip_norm),
        optax.add_decayed_weights(at.weight_decay),
        optax.chain(_momentum(at.momentum, at.nesterov), optax.scale_by_learning_rate(at.learning_rate)),
    )


def _momentum(decay: ArrayLike, nesterov: ArrayLike) -> optax.GradientTransformation:
    """`optax.trace`, whose ``nesterov`` may be traced: 0 or 1."""
    trace = optax.trace(decay)  # type: ignore[arg-type]

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        traces, state = trace.update(updates, state, params)
        return jax.tree.map(lambda g, t: t + nesterov * (g + decay * t - t), updates, traces), state

    return optax.GradientTransformation(trace.init, update)


def architecture_update(
    problem: Problem, alphas: Array, opt_state: Tree, by_mixing: Array, seed: ArrayLike, rates: Rates
) -> tuple[Array, Tree]:
    gradient = alpha_gradient(problem, alphas, by_mixing, seed, rates)
    updates, opt_state = architecture_optimiser(rates).update(gradient, opt_state, alphas)
    return optax.apply_updates(alphas, updates), opt_state  # type: ignore[return-value]


def weights_update(params: Tree, opt_state: Tree, gradient: Tree, rates: Rates) -> tuple[Tree, Tree]:
    updates, opt_state = weights_optimiser(rates).update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def search_step(
    problem: Problem,
    of: Derivatives,
    state: State,
    train: Batch,
    valid: Batch,
    rates: Rates,
    seed: ArrayLike,
    run: Callable[[Any], Any] = lambda function: function,
) -> tuple[State, Metrics]:
    """A step of the architecture on ``valid``, then one of the weights on ``train`` with the new architecture.

    ``seed`` (uint32) fixes all noise. ``run`` as in `mixing_gradient`.
    """
    noise = Noise(rates.dropout, seed)
    alphas, alpha_opt_state = state.alphas, state.alpha_opt_state
    seen: Loss | None = None
    if problem.relaxation.learns:
        mixing = run(architecture_mixing)(problem, alphas, seed, rates)
        seen, by_mixing = mixing_gradient(of, problem.order, state, mixing, train, valid, noise, rates, run)
        alphas, alpha_opt_state = run(architecture_update)(
            problem, alphas, alpha_opt_state, by_mixing, seed, rates
        )
    mixing = run(weights_mixing)(problem, alphas, seed, rates)
    at = Point(state.params, mixing, state.rest, train, noise)
    if problem.relaxation.perturb is not None:

        def gradient(mixing: Array) -> Array:
            return of.by_mixing(at._replace(mixing=mixing))[1]

        key = _keys(seed)[2]
        mixing = problem.relaxation.perturb(
            problem.layout, mixing, key, rates.levels, gradient, problem.perturbation_steps
        )
    loss, gradient_of_weights = of.by_weights(at._replace(mixing=mixing))
    params, opt_state = run(weights_update)(state.params, state.opt_state, gradient_of_weights, rates)
    none = jnp.full((), jnp.nan, loss.loss.dtype)
    metrics = Metrics(loss.loss, loss.correct, seen.loss if seen else none, seen.correct if seen else none)
    return State(params, loss.rest, opt_state, alphas, alpha_opt_state), metrics
