"""The bilevel loop of differentiable search (Liu et al. 2019, algorithm 1): one step of it, as pure functions.

Architecture parameters step on a batch of one half of the training images, weights on one of the other half.
A supernet sees the former through its mixing alone (`nas.oneshot.relaxation`), so all that is expensive are a few
derivatives of its loss by weights and mixing, which no relaxation changes: `Derivatives`. `search_step` is the same
function of them whether they are compiled one by one, where XLA's compile time grows faster than a program
(CPU: a second-order step calls one of them three times), or the whole step is one program.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nas import ops
from nas.errors import one_of
from nas.nn.layout import Layout
from nas.oneshot.relaxation import Relaxation, initial
from nas.training.network import Noise, Tree, abstract, abstract_noise, apply_train, initialise, outline
from nas.training.programs import Batch, Shape, copied, named
from nas.training.stored import stored

ORDERS = ("first", "exact", "difference")
FORMULATIONS = ("auto", "program", "pieces")


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
    progress: ArrayLike = 0.0
    """share of the search that is done"""


class State(NamedTuple):
    """All that a search changes."""

    params: Tree
    rest: dict[str, Tree]  # other collections: running statistics
    slots: Tree  # the weights' momentum
    alphas: Array  # [layout.size]
    alpha_slots: Tree  # Adam's two averages
    step: ArrayLike  # int32, steps made
    alpha_step: ArrayLike  # int32, steps of the architecture


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

    # What is computed again has no forward mode on CPU (`ops.recomputed`).
    kept = getattr(network, "remat", False) and jax.default_backend() == "cpu"
    forward = network.clone(remat=False) if kept else network

    def loss_of(params: Tree, mixing: Array, at: Point, network: Any = network) -> tuple[Array, Loss]:
        variables = {"params": params, **at.rest}
        logits, rest, extra = apply_train(network, variables, (at.batch.images,), at.noise, mixing=mixing)
        total = _mean_loss(logits, at.batch.target)
        loss = Loss(total, ops.count_correct(logits, at.batch.labels), rest)
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
        return jax.grad(lambda mixing: loss_of(params, mixing, at, forward)[0])(mixing)

    def mixed(at: Point, along: Tree) -> Array:
        return jax.jvp(lambda params: gradient(params, at.mixing, at), (at.params,), (along,))[1]

    def curvature(at: Point, along: Array) -> Array:
        return jax.jvp(lambda mixing: gradient(at.params, mixing, at), (at.mixing,), (along,))[1]

    return Derivatives(by_weights, by_mixing, by_both, mixed, curvature)


def _mean_loss(logits: Array, target: Array) -> Array:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return ops.softmax_cross_entropy(wide, target.astype(wide.dtype), mean=True)


# ---------------------------------------------------------------------------------------------- derivatives


def unrolled(params: Tree, gradient: Tree, slots: Tree, rates: Rates) -> Tree:
    """The weights after one virtual step of momentum: ``w - xi * (momentum * trace + gradient + decay * w)``.

    As the authors' code has it, without clipping.
    """
    (trace,) = slots

    def step(p: Array, g: Array, t: Array) -> Array:
        moved = p - rates.unroll * (rates.momentum * t + g + rates.weight_decay * p)
        return moved.astype(p.dtype)

    return jax.tree.map(step, params, gradient, trace)


def shifted(params: Tree, along: Tree, length: ArrayLike) -> Tree:
    return jax.tree.map(lambda p, v: (p + length * v).astype(p.dtype), params, along)


def difference_step(along: Tree) -> Array:
    """epsilon of equation 8: 0.01 / ||v||."""
    return 0.01 / jnp.maximum(ops.global_norm(along), 1e-12)


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
    ahead = run(unrolled)(state.params, gradient, state.slots, rates)
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


def _keys(seed: ArrayLike) -> Array:
    """Keys of the architecture's mixing, the weights' mixing, and its perturbation."""
    return jax.random.split(jax.random.key(seed), 3)


def architecture_mixing(problem: Problem, alphas: Array, seed: ArrayLike, rates: Rates) -> Array:
    return problem.relaxation.relax(problem.layout, alphas, _keys(seed)[0], rates.progress)


def weights_mixing(problem: Problem, alphas: Array, seed: ArrayLike, rates: Rates) -> Array:
    return problem.relaxation.relax(problem.layout, alphas, _keys(seed)[1], rates.progress)


def alpha_gradient(problem: Problem, alphas: Array, by_mixing: Array, seed: ArrayLike, rates: Rates) -> Array:
    """A gradient by the mixing drawn back through the relaxation, with the penalty's."""
    _, back = jax.vjp(lambda alphas: architecture_mixing(problem, alphas, seed, rates), alphas)
    penalty = jax.grad(lambda alphas: problem.relaxation.penalty(problem.layout, alphas))(alphas)
    return back(by_mixing)[0] + penalty


def architecture_update(
    problem: Problem, alphas: Array, slots: Tree, step: Array, by_mixing: Array, seed: ArrayLike, rates: Rates
) -> tuple[Array, Tree, Array]:
    """Adam with L2 weight decay on the alphas."""
    gradient = alpha_gradient(problem, alphas, by_mixing, seed, rates)
    scalars = {
        "learning_rate": jnp.asarray(rates.alpha_learning_rate),
        "weight_decay": jnp.asarray(rates.alpha_weight_decay),
        "b1": jnp.asarray(rates.alpha_b1),
        "b2": jnp.asarray(rates.alpha_b2),
        "step": step,
    }
    found, slots = ops.fused_update("adam", [alphas], [gradient], slots, scalars, [True])
    return found[0], slots, step + 1


def weights_update(params: Tree, slots: Tree, gradient: Tree, rates: Rates) -> tuple[Tree, Tree]:
    """Momentum with L2 weight decay on all weights, gradients clipped by their norm."""
    scalars = {
        "learning_rate": jnp.asarray(rates.learning_rate),
        "weight_decay": jnp.asarray(rates.weight_decay),
        "momentum": jnp.asarray(rates.momentum),
        "grad_scale": ops.clip_scale(gradient, jnp.asarray(rates.clip_norm))[1],
    }
    every = jax.tree.map(lambda p: True, params)
    return ops.fused_update("momentum", params, gradient, slots, scalars, every)


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
    alphas, alpha_slots, alpha_step = state.alphas, state.alpha_slots, state.alpha_step
    seen: Loss | None = None
    if problem.relaxation.learns:
        mixing = run(architecture_mixing)(problem, alphas, seed, rates)
        seen, by_mixing = mixing_gradient(of, problem.order, state, mixing, train, valid, noise, rates, run)
        alphas, alpha_slots, alpha_step = run(architecture_update)(
            problem, alphas, alpha_slots, alpha_step, by_mixing, seed, rates
        )
    mixing = run(weights_mixing)(problem, alphas, seed, rates)
    at = Point(state.params, mixing, state.rest, train, noise)
    if problem.relaxation.perturb is not None:

        def gradient(mixing: Array) -> Array:
            return of.by_mixing(at._replace(mixing=mixing))[1]

        key = _keys(seed)[2]
        mixing = problem.relaxation.perturb(problem.layout, mixing, key, rates.progress, gradient)
    loss, gradient_of_weights = of.by_weights(at._replace(mixing=mixing))
    params, slots = run(weights_update)(state.params, state.slots, gradient_of_weights, rates)
    none = jnp.full((), jnp.nan, loss.loss.dtype)
    metrics = Metrics(loss.loss, loss.correct, seen.loss if seen else none, seen.correct if seen else none)
    return State(params, loss.rest, slots, alphas, alpha_slots, state.step + 1, alpha_step), metrics


# --------------------------------------------------------------------------------------------- compiled


OF_RELAXATION = (
    "search_step",
    "weights_step",
    "architecture_mixing",
    "weights_mixing",
    "architecture_update",
)
_DONATED = {"search_step": (0,), "weights_step": (0,), "weights_update": (0, 1)}


class Search:
    """A search compiled for this platform: `init`, `compile`, `step`, `predict`.

    ``formulation``: ``program``, one XLA program a step; ``pieces``, one a derivative; ``auto``: pieces on CPU.
    Both give the same values.
    """

    def __init__(self, network: Any, problem: Problem, shape: Shape, formulation: str = "auto") -> None:
        if problem.order not in ORDERS:
            raise one_of("order", problem.order, ORDERS)
        if formulation not in FORMULATIONS:
            raise one_of("formulation", formulation, FORMULATIONS)
        if formulation == "auto":
            formulation = "pieces" if jax.default_backend() == "cpu" else "program"
        self.network, self.problem, self.shape, self.formulation = network, problem, shape, formulation
        self._programs: dict[str, Any] = {}

    def init(self, seed: int) -> State:
        variables = initialise(self.network, seed, self.shape.image_shape, self.shape.dtype)
        params = variables.pop("params")
        layout, relaxation = self.problem.layout, self.problem.relaxation
        alphas = initial(relaxation, layout, jax.random.key(seed))
        zeros = np.zeros(layout.size, np.float32)
        slots = (jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params),)
        counts = np.zeros((), np.int32)
        state = State(params, variables, slots, alphas, ([zeros], [zeros]), counts, counts)
        return jax.device_put(copied(state))

    def needed(self) -> tuple[str, ...]:
        """Names of the derivatives that a step of this search calls."""
        problem = self.problem
        names = {"by_weights"}
        if problem.relaxation.learns:
            more = {
                "first": ["by_mixing"],
                "exact": ["by_both", "mixed"],
                "difference": ["by_both", "by_mixing"],
            }
            names.update(more[problem.order])
        if problem.relaxation.perturb is not None:
            names.add("by_mixing")
        return tuple(sorted(names))

    def prepare(self, seed: int, *, curvature: bool = False) -> State:
        """`compile` and `init` at once: the latter is Python's work, the former XLA's."""
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            drawn = thread.submit(self.init, seed)
            self.compile(curvature=curvature)
            return drawn.result()

    def compile(self, *, curvature: bool = False) -> None:
        """Compile all that `step` and `predict` call, two programs at a time where they are many.

        ``curvature``: and what `nas.oneshot.monitor.hessian_vector` does.
        """
        needed = (*self.needed(), *self._small()) if self.formulation == "pieces" else ("search_step",)
        self._compile(list(dict.fromkeys(["predict", *needed, *(["by_mixing"] if curvature else [])])))

    def _small(self) -> tuple[str, ...]:
        """Names of what a step calls beside derivatives."""
        names = ["weights_mixing", "weights_update"]
        if self.problem.relaxation.learns:
            names += ["architecture_mixing", "architecture_update"]
            names += {"first": [], "exact": ["unrolled"]}.get(
                self.problem.order, ["unrolled", "difference_step", "shifted"]
            )
        return tuple(names)

    def _compile(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self._programs]
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            for name, program in zip(missing, threads.map(self._compiled, missing), strict=True):
                self._programs[name] = program

    def _compiled(self, name: str) -> Any:
        if name in OF_RELAXATION:  # functions, which have no name to be found by on disk
            function, arguments = self.traced(name, name)
            return function.lower(*arguments).compile()
        key = (self.shape, self.problem.layout.size)

        def lower(called: str) -> jax.stages.Lowered:
            function, arguments = self.traced(name, called)
            return function.lower(*arguments)

        return stored(name, key, self.network, lower)

    def traced(self, what: str, name: str) -> tuple[Any, tuple[Any, ...]]:
        """The program ``what``, jitted under ``name``, and shapes of what it is called with."""
        function, arguments = self._of_alphas(what) or self._of_weights(what)
        return jax.jit(named(name, function), donate_argnums=_DONATED.get(what, ())), arguments

    def _of_alphas(self, what: str) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """A function that knows no weights, whose shapes take longer to find out than this to compile."""
        alphas, seed, rates = abstract((self.problem.layout.size,)), abstract((), "uint32"), _abstract_rates()
        slots, count = ([alphas], [alphas]), abstract((), "int32")
        found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "architecture_mixing": (architecture_mixing, (alphas, seed, rates)),
            "weights_mixing": (weights_mixing, (alphas, seed, rates)),
            "architecture_update": (architecture_update, (alphas, slots, count, alphas, seed, rates)),
        }
        if what not in found:
            return None
        function, arguments = found[what]
        return functools.partial(function, self.problem), arguments

    def _of_weights(self, what: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        at, of, seed, rates = (
            self._abstract_point(), derivatives(self.network), abstract((), "uint32"), _abstract_rates(),
        )  # fmt: skip
        if what in Derivatives._fields:
            further = {"mixed": (at.params,), "curvature": (at.mixing,)}
            return getattr(of, what), (at, *further.get(what, ()))
        if what in ("search_step", "weights_step"):
            step = functools.partial(search_step, self._stepping(what == "search_step"), of)
            return step, (self._abstract_state(), at.batch, at.batch, rates, seed)
        images = self._abstract_batch(self.shape.evaluate_batch_size).images
        function, *arguments = {
            "predict": (functools.partial(_predict, self.network), at.params, at.rest, at.mixing, images),
            "weights_update": (weights_update, at.params, (at.params,), at.params, rates),
            "unrolled": (unrolled, at.params, at.params, (at.params,), rates),
            "difference_step": (difference_step, at.params),
            "shifted": (shifted, at.params, at.params, abstract(())),
        }[what]
        return function, tuple(arguments)

    def _abstract_batch(self, size: int) -> Batch:
        images = abstract((size, *self.shape.image_shape), self.shape.dtype)
        return Batch(images, abstract((size, self.shape.num_classes)), abstract((size,), "int32"))

    def _abstract_point(self) -> Point:
        variables = dict(outline(self.network, self.shape.image_shape).variables)
        params = variables.pop("params")
        mixing = abstract((self.problem.layout.size,))
        batch = self._abstract_batch(self.shape.batch_size)
        return Point(params, mixing, variables, batch, abstract_noise())

    def _abstract_state(self) -> State:
        at, count = self._abstract_point(), abstract((), "int32")
        return State(at.params, at.rest, (at.params,), at.mixing, ([at.mixing], [at.mixing]), count, count)

    def derivatives(self) -> Derivatives:
        """`Derivatives`, each compiled when it is first called."""
        return Derivatives(*(functools.partial(self._call, name) for name in Derivatives._fields))

    def _call(self, name: str, *arguments: Any) -> Any:
        self._compile([name])
        return self._programs[name](*arguments)

    def step(
        self, state: State, train: Batch, valid: Batch, rates: Rates, seed: np.uint32, *, learn: bool = True
    ) -> tuple[State, Metrics]:
        """`search_step`, without a step of the architecture unless ``learn``; ``state`` is consumed."""
        rates = Rates(*(np.asarray(rate, np.float32) for rate in rates))
        if self.formulation == "program":
            name = "search_step" if learn else "weights_step"
            self._compile([name])
            return self._programs[name](state, train, valid, rates, np.uint32(seed))
        return search_step(
            self._stepping(learn),
            self.derivatives(),
            state,
            train,
            valid,
            rates,
            np.uint32(seed),
            run=self._run,
        )

    def _run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of this module, compiled for this search's problem."""

        def call(*arguments: Any) -> Any:
            return self._call(function.__name__, *(one for one in arguments if not isinstance(one, Problem)))

        return call

    def _stepping(self, learn: bool) -> Problem:
        problem = self.problem
        return problem if learn else problem._replace(relaxation=problem.relaxation._replace(learns=False))

    def predict(self, state: State, mixing: Array, images: Array) -> Array:
        """Logits float32 [B, classes], B being the shape's, without noise.

        Normalised by the statistics of these images: running ones are of a mixture of all that was trained.
        """
        return self._call("predict", state.params, state.rest, mixing, images)


def _abstract_rates() -> Rates:
    return Rates(*(abstract(()) for _ in Rates._fields))


def _predict(network: Any, params: Tree, rest: dict[str, Tree], mixing: Array, images: Array) -> Array:
    noise = Noise(np.float32(0), np.uint32(0))
    logits, _, _ = apply_train(network, {"params": params, **rest}, (images,), noise, mixing=mixing)
    return logits.astype(jnp.float32)
