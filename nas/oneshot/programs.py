"""The bilevel step compiled: the whole step as one program, or a program for each derivative.

A second-order step calls one of its derivatives three times, and XLA's compile time on CPU grows faster than a
program: there the derivatives are compiled one by one. On accelerators the step is one program.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nas.cpu import compiled
from nas.errors import one_of
from nas.oneshot.bilevel import (
    ORDERS,
    Derivatives,
    Metrics,
    Point,
    Problem,
    Rates,
    State,
    architecture_mixing,
    architecture_optimiser,
    architecture_update,
    derivatives,
    difference_step,
    search_step,
    shifted,
    unrolled,
    weights_mixing,
    weights_optimiser,
    weights_update,
)
from nas.oneshot.relaxation import initial
from nas.oneshot.steps import SearchSteps, search_steps
from nas.training.batches import Data
from nas.training.network import Noise, Tree, abstract, abstract_noise, apply_train, initialise, outline
from nas.training.optimiser import initial_state
from nas.training.programs import Batch, Shape, copied, data_mesh, named, on_mesh, paced, place
from nas.training.stored import stored

PROGRAMS = ("auto", "step", "derivative")

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

    Data-parallel over ``mesh``, by default the shape's devices.
    ``one_program``: what is one XLA program, a whole ``step`` or each ``derivative``; ``auto``: derivatives on CPU.
    Both give the same values.
    """

    def __init__(
        self,
        network: Any,
        problem: Problem,
        shape: Shape,
        one_program: str = "auto",
        mesh: Mesh | None = None,
    ) -> None:
        if problem.order not in ORDERS:
            raise one_of("order", problem.order, ORDERS)
        if one_program not in PROGRAMS:
            raise one_of("one_program", one_program, PROGRAMS)
        if one_program == "auto":
            one_program = "derivative" if jax.default_backend() == "cpu" else "step"
        self.network, self.problem, self.shape, self.one_program = network, problem, shape, one_program
        self.mesh = mesh or data_mesh(shape.devices)
        self._programs: dict[str, Any] = {}

    def init(self, seed: int) -> State:
        variables = initialise(self.network, seed, self.shape.image_shape, self.shape.dtype)
        params = variables.pop("params")
        alphas = initial(self.problem.layout, jax.random.key(seed), self.problem.alpha_scale)
        state = State(
            params,
            variables,
            initial_state(weights_optimiser(Rates()), params),
            alphas,
            initial_state(architecture_optimiser(Rates()), alphas),
        )
        return place(copied(state), self.mesh)

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

    def prepare(self, seed: int, further: Sequence[str] = (), *, step: bool = True) -> State:
        """`compile` and `init` at once: the latter is Python's work, the former XLA's."""
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            drawn = thread.submit(self.init, seed)
            self.compile(further, step=step)
            return drawn.result()

    def compile(self, further: Sequence[str] = (), *, step: bool = True) -> None:
        """Compile all that `predict` calls and, unless not ``step``, `step`; two programs at a time.

        ``further``: derivatives that are called beside them (`nas.oneshot.monitor.hessian_vector` calls some).
        """
        needed = (*self.needed(), *self._small()) if self.one_program == "derivative" else ("search_step",)
        self._compile(list(dict.fromkeys(["predict", *(needed if step else ()), *further])))

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
            return compiled(function.lower(*arguments))
        key = (self.shape, self.problem.layout.size)

        def lower(called: str) -> jax.stages.Lowered:
            function, arguments = self.traced(name, called)
            return function.lower(*arguments)

        return stored(name, key, self.network, lower)

    def traced(self, what: str, name: str) -> tuple[Any, tuple[Any, ...]]:
        """The program ``what``, jitted under ``name``, and shapes of what it is called with."""
        function, arguments = self._of_alphas(what) or self._of_weights(what)
        arguments = on_mesh(arguments, self.mesh)
        return jax.jit(named(name, function), donate_argnums=_DONATED.get(what, ())), arguments

    def _of_alphas(self, what: str) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """A function that knows no weights, whose shapes take longer to find out than this to compile."""
        alphas, seed, rates = abstract((self.problem.layout.size,)), abstract((), "uint32"), _abstract_rates()
        opt_state = jax.eval_shape(architecture_optimiser(Rates()).init, alphas)
        found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "architecture_mixing": (architecture_mixing, (alphas, seed, rates)),
            "weights_mixing": (weights_mixing, (alphas, seed, rates)),
            "architecture_update": (architecture_update, (alphas, opt_state, alphas, seed, rates)),
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
            "weights_update": (weights_update, at.params, self._abstract_state().opt_state, at.params, rates),
            "unrolled": (unrolled, at.params, at.params, self._abstract_state().opt_state, rates),
            "difference_step": (difference_step, at.params),
            "shifted": (shifted, at.params, at.params, abstract(())),
        }[what]
        return function, tuple(arguments)

    def _abstract_batch(self, size: int) -> Batch:
        images = abstract((size, *self.shape.image_shape), self.shape.dtype)
        batch = Batch(images, abstract((size, self.shape.num_classes)), abstract((size,), "int32"))
        return on_mesh(batch, self.mesh)

    def _abstract_point(self) -> Point:
        variables = dict(outline(self.network, self.shape.image_shape).variables)
        params = variables.pop("params")
        mixing = abstract((self.problem.layout.size,))
        batch = self._abstract_batch(self.shape.batch_size)
        return Point(params, mixing, variables, batch, abstract_noise())

    def _abstract_state(self) -> State:
        at = self._abstract_point()
        opt_state = jax.eval_shape(weights_optimiser(Rates()).init, at.params)
        alpha_opt_state = jax.eval_shape(architecture_optimiser(Rates()).init, at.mixing)
        return State(at.params, at.rest, opt_state, at.mixing, alpha_opt_state)

    def derivatives(self) -> Derivatives:
        """`Derivatives`, each compiled when it is first called."""
        return Derivatives(*(functools.partial(self._call, name) for name in Derivatives._fields))

    def _call(self, name: str, *arguments: Any) -> Any:
        self._compile([name])
        return paced(self._programs[name](*arguments), self.mesh)

    def step(
        self, state: State, train: Batch, valid: Batch, rates: Rates, seed: np.uint32, *, learn: bool = True
    ) -> tuple[State, Metrics]:
        """`search_step`, without a step of the architecture unless ``learn``; ``state`` is consumed."""
        rates = _numbers(rates)
        if self.one_program == "step":
            name = "search_step" if learn else "weights_step"
            self._compile([name])
            return paced(self._programs[name](state, train, valid, rates, np.uint32(seed)), self.mesh)
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

    def steps(
        self,
        state: State,
        sums: Array,
        data: Data,
        steps: SearchSteps,
        rates: Rates,
        count: int,
        *,
        learn: bool = True,
    ) -> tuple[State, Array]:
        """``count`` times `step` as one program: `search_steps`; ``state`` is consumed."""
        program = self.compile_steps(state, sums, data, steps, rates, learn=learn)
        return paced(program(state, sums, data, steps, _numbers(rates), np.int32(count)), self.mesh)

    def compile_steps(
        self, state: State, sums: Array, data: Data, steps: SearchSteps, rates: Rates, *, learn: bool = True
    ) -> Any:
        """The program of `steps` for arguments of these shapes, compiled once; nothing is consumed."""
        name = "search_steps" if learn else "weights_steps"
        if name not in self._programs:
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)),
                (state, sums, data, steps, _numbers(rates), np.int32(0)),
            )
            self._programs[name] = compiled(self.lower_steps(shapes, name, learn=learn))
        return self._programs[name]

    def lower_steps(self, arguments: Any, name: str, *, learn: bool = True) -> jax.stages.Lowered:
        """`search_steps` for abstract ``arguments`` of `steps`."""
        function = functools.partial(
            search_steps, self._stepping(learn), derivatives(self.network), self.shape, self.mesh
        )
        return jax.jit(named(name, function), donate_argnums=0).lower(*on_mesh(arguments, self.mesh))

    def _run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `nas.oneshot.bilevel`, compiled for this search's problem."""

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


def _numbers(rates: Rates) -> Rates:
    return Rates(*(np.asarray(rate, np.float32) for rate in rates))


def _abstract_rates() -> Rates:
    return Rates(*(abstract(()) for _ in Rates._fields))


def _predict(network: Any, params: Tree, rest: dict[str, Tree], mixing: Array, images: Array) -> Array:
    noise = Noise(np.float32(0), np.uint32(0))
    logits, _, _ = apply_train(network, {"params": params, **rest}, (images,), noise, mixing=mixing)
    return logits.astype(jnp.float32)
