"""Forward and backward passes of a network for scores, without a compilation for every architecture.

A graph of modules (`network.nodes`, as `search_spaces.graph.Graph`) is run node by node: each node's programs
are compiled once for all networks that have an equal node at equal shapes. Any other network is one piece, a
program of its own. Both have the same values.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal

from nas.cpu.edges import add
from nas.cpu.function import plain
from nas.nn.call import keywords
from nas.nn.count import macs_of_jaxpr
from nas.nn.graph import Graph
from nas.proxies import watching
from nas.training.network import Extra, Noise, apply_evaluate, apply_train, initialise, outline

Tree = Any
Variables = Mapping[str, Tree]

SILENT = Noise(np.float32(0), np.uint32(0))  # nothing is dropped where a score is taken


class Mode(NamedTuple):
    """How a network is run.

    ``train``: normalised by the batch. ``linear``: without normalisations and activations. ``watch``, what is
    returned beside the output: "" nothing, "rectifiers" their outputs, "map" the last feature map,
    "variances" those of the batch that running statistics took in; "gates" takes a factor for each example
    and channel of each layer's output instead.
    """

    train: bool = True
    linear: bool = False
    watch: str = ""


TRAINING = Mode()


class Size(NamedTuple):
    """Parameters, and multiply-adds of one image."""

    params: int
    macs_per_image: int


# ------------------------------------------------------------------------------------------------- the pieces


class Program:
    """``function`` compiled for arguments shaped like ``args``.

    Results that are arguments, or each other, are handed on: XLA would copy them. A function that computes
    nothing compiles nothing.
    """

    def __init__(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        self._structure = jax.tree.structure(out)
        places: dict[Any, int] = {var: i for i, var in enumerate(closed.jaxpr.invars)}
        made: list[Any] = []
        self._places: list[int] = []  # in the arguments followed by what is computed
        for var in closed.jaxpr.outvars:
            if isinstance(var, Literal) or var not in places:
                place = len(closed.jaxpr.invars) + len(made)
                made.append(var)
                if not isinstance(var, Literal):
                    places[var] = place
            else:
                place = places[var]
            self._places.append(place)
        self._compute = jax.jit(watching.evaluation(closed, made)) if made else None

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if self._compute is not None:
            leaves += self._compute(*leaves)
        return jax.tree.unflatten(self._structure, [leaves[i] for i in self._places])


class Shapes(NamedTuple):
    """A piece by its shapes, for one image."""

    variables: dict[str, Tree]
    output: tuple[int, ...]  # without the batch
    reads: tuple[bool, ...]  # of each input, whether the output depends on it
    size: Size
    draw: Callable[[Array], Variables]  # variables of a key, nothing compiled


class Unit:
    """A module at given shapes of its inputs (without the batch) and its programs; equal ones are one object."""

    def __init__(self, module: Any, inputs: tuple[tuple[int, ...], ...]) -> None:
        self.module, self.inputs = module, inputs
        self._known: dict[Any, Any] = {}
        self.stream = zlib.crc32(repr((module, inputs)).encode())

    @functools.cached_property
    def shapes(self) -> Shapes:
        images = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in self.inputs]

        def start(key: Array, *images: Array) -> tuple[Array, Variables]:
            output, made = self.module.init_with_output(key, *images, **keywords(self.module, train=False))
            return output, {name: tree for name, tree in made.items() if name not in Extra._fields}

        key = jax.eval_shape(lambda: jax.random.key(0))
        with plain():
            closed, (output, variables) = jax.make_jaxpr(start, return_shape=True)(key, *images)
        params = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
        size = Size(params, macs_of_jaxpr(closed.jaxpr))
        outputs, drawn = closed.jaxpr.outvars[:1], closed.jaxpr.outvars[1:]
        evaluate = watching.evaluation(closed, drawn, eagerly=True)
        nothing = [None] * len(images)  # which no variable depends on

        def draw(key: Array) -> Variables:
            leaves = [np.asarray(leaf) for leaf in evaluate(key, *nothing)]
            return jax.tree.unflatten(jax.tree.structure(variables), jax.device_put(leaves))

        reads = watching.reads(closed.jaxpr, outputs)[1:]
        return Shapes(variables, output.shape[1:], tuple(reads), size, draw)

    def known(self, key: Any, find: Callable[[], Any]) -> Any:
        """``find()``, called once for each ``key``."""
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def program(self, key: Any, make: Callable[[], Callable[..., Any]], args: Sequence[Any]) -> Program:
        """The `Program` of ``make()`` for ``args``, made once for each ``key`` and shape of the piece's inputs."""
        return self.known(key, lambda: Program(make(), args))


def seen_by(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What tells arrays apart for a program."""
    return tuple([(x.shape, x.dtype) for x in inputs])


@functools.lru_cache(maxsize=4096)
def unit_of(module: Any, inputs: tuple[tuple[int, ...], ...]) -> Unit:
    return Unit(module, inputs)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A unit's place in a network: value 0 is the image, value i the i-th piece's output."""

    name: str | None  # of its share of the variables; None: all of them
    unit: Unit
    inputs: tuple[int, ...]

    def share(self, variables: Variables) -> dict[str, Tree]:
        if self.name is None:
            return dict(variables)
        return {collection: tree[self.name] for collection, tree in variables.items() if self.name in tree}


class Cut(NamedTuple):
    """A network as pieces; ``live`` are the positions of those that its output depends on."""

    pieces: tuple[Piece, ...]
    live: frozenset[int]
    size: Size  # as `nas.objectives.train.size_of` counts


def cut(network: Any, image_shape: Sequence[int], *, whole: bool = False) -> Cut:
    """The network cut at its nodes, or as one piece where it has none, or ``whole``.

    Nodes that only auxiliary classifiers need are left out.
    """
    image_shape = tuple(image_shape)
    if whole or not isinstance(network, Graph):
        found = outline(network, image_shape)
        piece = Piece(None, unit_of(network, (image_shape,)), (0,))
        return Cut((piece,), frozenset((0,)), Size(found.params, found.macs_per_image))
    needed = network.needed
    number, shapes, pieces = {0: 0}, [image_shape], []
    for k, node in enumerate(network.nodes):
        if k in needed:
            inputs = tuple(number[i] for i in node.inputs)
            unit = unit_of(node.module, tuple(shapes[i] for i in inputs))
            pieces.append(Piece(node.name, unit, inputs))
            shapes.append(unit.shapes.output)
            number[k + 1] = len(pieces)
    sizes = [piece.unit.shapes.size for piece in pieces]
    size = Size(sum(one.params for one in sizes), sum(one.macs_per_image for one in sizes))
    return Cut(tuple(pieces), _live(pieces), size)


def _live(pieces: Sequence[Piece]) -> frozenset[int]:
    found: set[int] = set()
    ends = [len(pieces)]
    while ends:
        k = ends.pop() - 1
        if k >= 0 and k not in found:
            found.add(k)
            ends += itertools.compress(pieces[k].inputs, pieces[k].unit.shapes.reads)
    return frozenset(found)


def initial_variables(network: Any, image_shape: Sequence[int], seed: int) -> dict[str, Tree]:
    """Variables drawn from ``seed`` by the network's own initialisers.

    The k-th node with a given module and shapes gets the same draws in every network: what scores of two
    networks differ by is then less a matter of chance, and nothing is drawn twice.
    """
    pieces = cut(network, image_shape).pieces
    if pieces[0].name is None:
        return initialise(network, seed, tuple(image_shape), "float32")
    variables: dict[str, Tree] = {"params": {}}
    seen: dict[Unit, int] = {}
    for piece in pieces:
        if piece.unit.shapes.variables:
            occurrence = seen[piece.unit] = seen.get(piece.unit, -1) + 1
            for collection, tree in _drawn(piece.unit, seed, occurrence).items():
                variables.setdefault(collection, {})[piece.name] = tree
    return variables


@functools.lru_cache(maxsize=2048)
def _drawn(unit: Unit, seed: int, occurrence: int) -> Variables:
    return unit.shapes.draw(jax.random.fold_in(jax.random.fold_in(_key(seed), unit.stream), occurrence))


@functools.lru_cache(maxsize=16)
def _key(seed: int) -> Array:
    return jax.random.key(seed)


def forget() -> None:
    """Let go of every compiled piece and of the draws, as in a new process."""
    unit_of.cache_clear()
    _drawn.cache_clear()


# -------------------------------------------------------------------------------------------- their functions


def function_of(unit: Unit, mode: Mode) -> Callable[..., tuple[Array, list[Any]]]:
    """``f(params, rest, inputs, gates) -> output, what mode.watch asks for``."""

    def run(params: Tree, rest: Variables, inputs: Sequence[Array]) -> Array:
        variables = {"params": params, **rest} if params else dict(rest)
        if mode.train:
            return apply_train(unit.module, variables, inputs, SILENT)[0]
        return apply_evaluate(unit.module, variables, inputs)

    if mode.linear:
        run = watching.without_nonlinearity(run)
    if mode.watch == "rectifiers":
        seen = watching.see_rectifiers(run)
        return lambda params, rest, inputs, gates: seen(params, rest, inputs)
    if mode.watch == "map":
        seen = watching.see_map(run)
        return lambda params, rest, inputs, gates: seen(params, rest, inputs)
    if mode.watch == "gates":
        gated = watching.with_gates(run)
        return lambda params, rest, inputs, gates: (gated(gates, params, rest, inputs), [])
    if mode.watch == "variances":
        return lambda params, rest, inputs, gates: _with_variances(unit, params, rest, inputs)
    return lambda params, rest, inputs, gates: (run(params, rest, inputs), [])


def _with_variances(
    unit: Unit, params: Tree, rest: Variables, inputs: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """The output, and the batch's variances [C] out of the running ones' update, an exponential average."""
    running = rest.get("batch_stats", {})
    others = {name: tree for name, tree in rest.items() if name != "batch_stats"}

    def update(running: Tree) -> tuple[Tree, Array]:
        variables = {"params": params, "batch_stats": running, **others}
        output, updated, _ = apply_train(unit.module, variables, inputs, SILENT)
        return updated.get("batch_stats", {}), output

    new, decay, output = jax.jvp(update, (running,), (jax.tree.map(jnp.ones_like, running),), has_aux=True)
    batch = jax.tree.map(lambda new, old, kept: (new - kept * old) / (1 - kept), new, running, decay)
    return output, [leaf for path, leaf in jax.tree.leaves_with_path(batch) if leaf_name(path) == "var"]


def leaf_name(path: Sequence[Any]) -> str:
    """What a leaf of variables is called: kernel, bias, scale, mean, var, …"""
    return str(getattr(path[-1], "key", path[-1]))


def differentiable(unit: Unit, mode: Mode, moving: tuple[bool, ...]) -> Callable[..., Any]:
    """``f(rest, inputs, params, some inputs, gates)``, to be differentiated in the last three."""
    function = function_of(unit, mode)

    def run(rest: Variables, inputs: Sequence[Any], params: Tree, some: Sequence[Array], gates: Any) -> Any:
        given = iter(some)
        merged = [next(given) if moves else x for x, moves in zip(inputs, moving, strict=True)]
        return function(params, rest, merged, gates)

    return run


def _forward_to_differentiate(unit: Unit, mode: Mode, moving: tuple[bool, ...]) -> Callable[..., Any]:
    run = differentiable(unit, mode, moving)

    def forward(
        params: Tree, rest: Variables, fixed: Sequence[Any], some: Sequence[Array], gates: Any
    ) -> Any:
        output, vjp, seen = jax.vjp(functools.partial(run, rest, fixed), params, some, gates, has_aux=True)
        return output, seen, vjp

    return forward


# ------------------------------------------------------------------------------------------------------ passes


class Step(NamedTuple):
    """A piece that was run to be differentiated: what `pull` needs."""

    piece: Piece
    sources: tuple[int, ...]  # the values that it has a gradient for
    key: Any
    vjp: Any


def step(
    piece: Piece,
    mode: Mode,
    params: Tree,
    rest: Variables,
    inputs: Sequence[Any],
    moves: Sequence[bool],
    gates: Sequence[Any] = (),
) -> tuple[Step, Array, list[Any]]:
    """Run a piece, those ``inputs`` that ``moves`` says being differentiated: also the output and what was watched."""
    moving = tuple([a and b for a, b in zip(moves, piece.unit.shapes.reads, strict=True)])
    key = (mode, moving, seen_by(inputs))
    make = functools.partial(_forward_to_differentiate, piece.unit, mode, moving)
    fixed = [None if moves else x for x, moves in zip(inputs, moving, strict=True)]
    args = (params, rest, fixed, list(itertools.compress(inputs, moving)), list(gates))
    output, seen, vjp = piece.unit.program(("differentiate", key), make, args)(*args)
    return Step(piece, tuple(itertools.compress(piece.inputs, moving)), key, vjp), output, seen


def pull(step: Step, cotangent: Any) -> tuple[Tree, list[Array], list[Array]]:
    """Gradients by the step's parameters, by its ``sources`` and by its gates."""
    args = (step.vjp, cotangent)
    return step.piece.unit.program(("pull", step.key), lambda: _pull, args)(*args)


def _pull(vjp: Any, cotangent: Array) -> Any:
    return vjp(cotangent)


@jax.jit
def _add(a: Array, b: Array) -> Array:
    return add(a, b)


def _sum(parts: Sequence[Array]) -> Array:
    return functools.reduce(_add, parts)


@dataclasses.dataclass(frozen=True)
class Forward:
    """A forward pass: its output, what was watched (piece by piece), and what `backward` needs."""

    output: Array
    watched: list[list[Any]]
    values: list[Array]  # the image, and the output of each piece
    steps: list[Step | None]


def forward(
    network: Cut,
    variables: Variables,
    images: Any,
    mode: Mode = TRAINING,
    *,
    differentiate: bool = False,
    images_too: bool = False,
) -> Forward:
    """Run ``network`` on ``images`` [B, H, W, C].

    To ``differentiate`` it keeps what `backward` needs, also for the gradient by the images if asked.
    """
    values: list[Array] = [images]
    moves = [images_too]  # of each value, whether it depends on what is differentiated
    watched: list[list[Any]] = []
    steps: list[Step | None] = []
    for k, piece in enumerate(network.pieces):
        own = piece.share(variables)
        params, rest = own.pop("params", {}), own
        inputs = [values[i] for i in piece.inputs]
        gates = _gates(piece.unit, mode, len(images)) if mode.watch == "gates" else []
        moved = [moves[i] for i in piece.inputs]
        moves.append(differentiate and k in network.live and bool(params or gates or any(moved)))
        if moves[-1]:
            taken, output, seen = step(piece, mode, params, rest, inputs, moved, gates)
        else:
            make = functools.partial(function_of, piece.unit, mode)
            args = (params, rest, inputs, gates)
            program = piece.unit.program(("forward", mode, seen_by(inputs)), make, args)
            taken, (output, seen) = None, program(*args)
        steps.append(taken)
        values.append(output)
        watched.append(seen)
    return Forward(values[-1], watched, values, steps)


def layers(unit: Unit, mode: Mode = TRAINING) -> list[watching.Layer]:
    """A piece's convolutions and matrix products, in the order of its gates."""

    def find() -> list[watching.Layer]:
        run = function_of(unit, mode._replace(watch=""))
        images = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in unit.inputs]
        variables = dict(unit.shapes.variables)
        params = variables.pop("params", {})
        return watching.layers(lambda p, r, x: run(p, r, x, [])[0], params, variables, images)

    return unit.known(("layers", mode._replace(watch="")), find)


def _gates(unit: Unit, mode: Mode, batch: int) -> list[np.ndarray]:
    return [np.ones((batch, layer.channels), np.float32) for layer in layers(unit, mode)]


class Backward(NamedTuple):
    """Gradients of one backward pass.

    ``params``: shaped like the variables' "params"; pieces that the output does not depend on are left out.
    ``images``: by the images, or None. ``gates``: by the gates, piece by piece.
    """

    params: dict[str, Tree]
    images: Array | None
    gates: list[list[Array]]


def backward(passed: Forward, cotangent: Any) -> Backward:
    """Pull ``cotangent``, shaped like the output, back through a differentiated forward pass."""
    waiting: dict[int, list[Array]] = {len(passed.steps): [cotangent]}
    found: list[Tree] = [{}] * len(passed.steps)
    gates: list[list[Array]] = [[]] * len(passed.steps)
    for k in range(len(passed.steps), 0, -1):
        taken, parts = passed.steps[k - 1], waiting.pop(k, None)
        if taken is not None and parts is not None:
            found[k - 1], some, gates[k - 1] = pull(taken, _sum(parts))
            for i, part in zip(taken.sources, some, strict=True):
                waiting.setdefault(i, []).append(part)
    params: dict[str, Tree] = {}
    for taken, own in zip(passed.steps, found, strict=True):
        if taken is not None and own:
            params |= own if taken.piece.name is None else {taken.piece.name: own}
    return Backward(params, _sum(waiting[0]) if 0 in waiting else None, gates)
