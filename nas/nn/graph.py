"""Networks as data: a directed graph of Flax modules.

A `Graph` is an ordinary Flax module (`init`, `apply`, parameter counts, tabulate). Its nodes are a tuple of hashable
values, so that the engine can also run it node by node: training-free scores compile equal nodes at equal shapes once
for all networks, and a supernet's many equal nodes are traced once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.cpu.edges import Unnormalised, fork, mixture
from nas.errors import InputError
from nas.nn import layers
from nas.nn.blocks import Blocks, find_blocks, scan
from nas.nn.call import NOISE, keywords
from nas.nn.layout import Open
from nas.nn.noise import node_seed
from nas.nn.recompute import recomputed


@dataclasses.dataclass(frozen=True)
class Node:
    """A module and where its inputs come from: 0 is the image, i the output of the i-th node (from 1)."""

    name: str
    module: nn.Module
    inputs: tuple[int, ...]


class Mix(nn.Module):
    """The weighted sum of its inputs [B, H, W, C], which are the candidates of open choices, normalised or yet to be.

    ``positions`` are those of each input in the vector ``weights`` that the supernet is called with
    (Liu et al. 2019, equation 2, over all edges that meet at a node at once).
    """

    positions: tuple[int, ...]

    @nn.compact
    def __call__(self, *maps: Array | Unnormalised, weights: Array) -> Array:
        return mixture(weights, maps, self.positions, eps=layers.EPSILON)


class First(nn.Module):
    """The first of its inputs: the others are what a cell computes and does not use."""

    @nn.compact
    def __call__(self, x: Array, *unused: Array) -> Array:
        return x


class Sampled(nn.Module):
    """The first of ``part`` equal parts of the channels: those that candidates see (Xu et al. 2020)."""

    part: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[-1] % self.part:
            raise InputError(f"partial_channels: {self.part} does not divide the {x.shape[-1]} channels")
        return x[..., : x.shape[-1] // self.part]


class Bypassing(nn.Module):
    """The other channels, where the candidates have ``stride`` by 2x2 maxima."""

    part: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rest = x[..., x.shape[-1] // self.part :]
        return layers.max_pool(rest, 2, self.stride) if self.stride > 1 else rest


class Shuffled(nn.Module):
    """Sampled and other channels in turns, so that the next candidates see others than these did."""

    part: int

    @nn.compact
    def __call__(self, sampled: Array, rest: Array) -> Array:
        joined = jnp.concatenate((sampled, rest), -1)
        *leading, channels = joined.shape
        apart = joined.reshape(*leading, self.part, channels // self.part)
        return jnp.swapaxes(apart, -1, -2).reshape(joined.shape)


class Graph(nn.Module):
    """Applies ``nodes`` in order; the last one's output is the network's.

    A node is any Flax module. It is called as ``module(*inputs)`` with what its call names of the mode (``train``, or
    Flax's ``use_running_average`` and ``deterministic``) and of ``rates``: traced numbers that do not change the
    program (``dropout``, ``drop_path``, and the ``seed`` of their masks).

    ``auxiliary`` names nodes that are further classifiers, with the weights of their cross-entropies in the
    loss: they and what only they need exist in training alone (see `nas.training.network.Extra`).

    Three ways to run it change neither values nor variables. ``scan_blocks``: equal consecutive blocks of nodes are
    one `jax.lax.scan` over their variables, and compiled once. Of a supernet, ``batched``: equal nodes on one input
    run as one, side by side in its channels, where their module has a `side_by_side`; ``remat``: of a node with
    parameters no more than its output is kept for the gradient, which computes the rest again.
    """

    nodes: tuple[Node, ...]
    auxiliary: tuple[tuple[str, float], ...] = ()
    batched: bool = False
    remat: bool = False
    scan_blocks: bool = False

    if TYPE_CHECKING:  # Flax makes one of the fields, which the checker does not see

        def __hash__(self) -> int: ...

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, **rates: Any) -> Array:
        initial = self.is_initializing()
        used = range(len(self.nodes)) if train or initial else self.needed
        hidden = not initial and not self.is_mutable_collection("intermediates")
        shared = self.mixing_size and hidden
        variables = self.variables if hidden and (shared or self.scan_blocks) else {}
        batches = self._batches(used, variables) if shared and self.batched else {}
        heads = dict(self.auxiliary)
        apart = {k for batch in batches.values() for k in batch}
        apart |= {k for k, node in enumerate(self.nodes) if k not in used or node.name in heads}
        runs = self._blocks(apart, variables, train) if hidden and self.scan_blocks else {}
        led = {k for batch in batches.values() for k in batch[1:]}
        led |= {k for run in runs.values() for k in range(run.start, run.end)}
        alone = [k for k in used if k not in led]
        readers = collections.Counter(i for k in alone for i in self.nodes[k].inputs)
        readers.update(i for run in runs.values() for i in run.read)
        mixers = sum(isinstance(self.nodes[k].module, Mix) for k in alone)
        if self.mixing_size and initial and "mixing" not in rates:
            rates["mixing"] = jnp.asarray(np.ones(self.mixing_size, np.float32))
        mixing = list(fork(rates["mixing"], mixers)) if mixers else []
        values: list[tuple[Array, ...]] = []  # of each value, a copy for each reader still to come

        def keep(value: Array) -> None:
            # Forked, the readers' gradients are summed by one kernel rather than by code XLA has to generate.
            values.append(fork(value, max(1, readers[len(values)])))

        def take(i: int) -> Array:
            value, *rest = values[i]
            values[i] = tuple(rest) or (value,)
            return value

        came: dict[int, Any] = {}  # outputs of nodes that ran with an earlier one
        keep(x)
        for position, node in enumerate(self.nodes):
            if position not in used:
                values.append(())
                continue
            if run := runs.get(position):
                found = self._run_blocks(run, [take(i) for i in run.read], variables, train, rates)
                if found is not None:
                    came |= found
                elif rest := run.later():
                    runs[rest.start] = rest
            if position in came:
                keep(came.pop(position))
                continue
            given = self._given(node, position, train, rates)
            if isinstance(node.module, Mix):
                given["weights"] = mixing.pop() if mixing else rates["mixing"]
            inputs = tuple(take(i) for i in node.inputs)
            if position in batches:
                found = self._run_batch(batches[position], variables["params"], inputs, given)
                came |= zip(batches[position], found, strict=True)
                keep(came.pop(position))
            elif shared:
                own = {name: tree[node.name] for name, tree in variables.items() if node.name in tree}
                keep(self._run(node, own, inputs, given))
            else:
                keep(node.module.clone(parent=self, name=node.name)(*inputs, **given))
            if train and node.name in heads:
                self.sow("auxiliary", f"{node.name}_logits", (heads[node.name], take(-1)))
        return take(-1)

    def _given(self, node: Node, position: int, train: bool, rates: dict[str, Any]) -> dict[str, Any]:
        """The keywords to call the node at ``position`` with, but for a `Mix`'s weights."""
        given = keywords(node.module, train=train, **{n: rates[n] for n in NOISE if n in rates})
        if "seed" in given:
            given["seed"] = node_seed(given["seed"], position)
        return given

    def _blocks(self, apart: set[int], variables: Mapping[str, Any], train: bool) -> dict[int, Blocks]:
        """Equal consecutive blocks by the position of their first node; the nodes ``apart`` are none's."""

        def key(position: int, node: Node) -> Any:
            mode = keywords(node.module, train=train)
            draws = mode.get("deterministic") is False and self.has_rng("dropout")
            if position in apart or draws or hasattr(node.module, "nnx_class"):
                return position
            own = {name: tree[node.name] for name, tree in variables.items() if node.name in tree}
            leaves, structure = jax.tree.flatten(own)
            return node.module, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

        keys = [key(position, node) for position, node in enumerate(self.nodes)]
        return {run.start: run for run in find_blocks(keys, [node.inputs for node in self.nodes])}

    def _run_blocks(
        self, run: Blocks, values: list[Any], variables: Mapping[str, Any], train: bool, rates: dict[str, Any]
    ) -> dict[int, Any] | None:
        """The outputs of the nodes of equal blocks by position, None where nobody reads one; None: `scan` cannot."""
        first = self.nodes[run.start : run.start + run.period]
        sown = ("losses", "auxiliary")  # what modules may make that they have not

        def block(known: dict[int, Any], own: Any) -> tuple[dict[int, Any], list[Any]]:
            made: dict[int, Any] = {}
            changes = []
            for k, (node, (tree, seed)) in enumerate(zip(first, own, strict=True)):
                given = self._given(node, run.start + k, train, rates)
                if "seed" in given:
                    given["seed"] = seed
                if isinstance(node.module, Mix):
                    given["weights"] = rates["mixing"]
                mutable = tuple(
                    name for name in dict.fromkeys((*tree, *sown)) if self.is_mutable_collection(name)
                )
                mode, numbers = _static(given)
                inputs = tuple((known | made)[i - run.start] for i in node.inputs)
                program = _program(node.module, mode, mutable, self.remat and "params" in tree)
                made[k + 1], updated = program(tree, inputs, numbers, {})
                changes.append(updated)
            return made, changes

        def owned(position: int) -> Any:
            name = self.nodes[position].name
            seed = node_seed(rates["seed"], position) if "seed" in rates else np.uint32(0)
            return {c: tree[name] for c, tree in variables.items() if name in tree}, seed

        starts = range(run.start, run.end, run.period)
        each = [[owned(k) for k in range(start, start + run.period)] for start in starts]
        done = scan(block, run, values, each)
        if done is None:
            return None
        left, changes = done
        for place, start in enumerate(starts):
            for k, updated in enumerate(changes):
                for name, tree in updated.items():
                    own = jax.tree.map(lambda leaf, place=place: leaf[place], tree)
                    self.put_variable(name, self.nodes[start + k].name, own)
        places = run.left
        return {k: left[places[k + 1]] if k + 1 in places else None for k in range(run.start, run.end)}

    def _run(
        self, node: Node, own: dict[str, Any], inputs: tuple[Array, ...], given: dict[str, Any]
    ) -> Array:
        """The output of a node with its ``own`` variables; what it changes is put among this module's.

        Equal nodes on equal shapes are traced, differentiated and lowered once. In a supernet most nodes have
        many equals, and Python would take longer over them than XLA.
        """
        mutable = tuple(name for name in own if self.is_mutable_collection(name))
        again = self.remat and "params" in own
        mode, numbers = _static(given)
        # A module that is told whether it is `deterministic` draws from Flax's stream "dropout".
        draws = given.get("deterministic") is False and self.has_rng("dropout")
        keys = {"dropout": self.make_rng("dropout")} if draws else {}
        value, updated = _program(node.module, mode, mutable, again)(own, inputs, numbers, keys)
        for name, tree in updated.items():
            self.put_variable(name, node.name, tree)
        return value

    def _batches(self, used: Iterable[int], variables: Mapping[str, Any]) -> dict[int, list[int]]:
        """Positions of nodes that can run as one, the first of which leads: two or more each, by the first."""
        found: dict[Any, list[int]] = {}
        for position in sorted(used):
            node = self.nodes[position]
            names = {name for name, tree in variables.items() if node.name in tree}
            if getattr(node.module, "side_by_side", None) and names == {"params"}:
                found.setdefault((node.module, node.inputs), []).append(position)
        return {batch[0]: batch for batch in found.values() if len(batch) > 1}

    def _run_batch(
        self, batch: list[int], params: Any, inputs: tuple[Array, ...], given: dict[str, Any]
    ) -> Sequence[Any]:
        """The outputs of the nodes ``batch``, whose variables stand side by side in one of them."""
        trees = [params[self.nodes[k].name] for k in batch]
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, -1), *trees)
        module: Any = self.nodes[batch[0]].module
        mode, numbers = _static(given)
        program = _program(module.side_by_side(len(batch)), mode, (), self.remat)
        value, _ = program({"params": joined}, inputs, numbers, {})
        leaves, tree = jax.tree.flatten(value)
        apart = zip(*(jnp.split(leaf, len(batch), -1) for leaf in leaves), strict=True)
        return [tree.unflatten(parts) for parts in apart]

    @property
    def mixing_size(self) -> int:
        """The least length of the vector ``mixing`` with which the network is called; 0: it takes none."""
        return 1 + max(
            (max(node.module.positions) for node in self.nodes if isinstance(node.module, Mix)), default=-1
        )

    @property
    def needed(self) -> frozenset[int]:
        """Positions of the nodes that the output needs: all but the auxiliary classifiers' own."""
        found: set[int] = set()
        open_ends = [len(self.nodes)]
        while open_ends:
            k = open_ends.pop()
            if k and k - 1 not in found:
                found.add(k - 1)
                open_ends += self.nodes[k - 1].inputs
        return frozenset(found)


def run_as(network: Any, ways: Mapping[str, bool]) -> Any:
    """``network`` run in those ways of `Graph`'s that are True. Raises InputError where it is none."""
    chosen = {name: True for name, wanted in ways.items() if wanted}
    for name in chosen:
        if not hasattr(network, name):
            raise InputError(f"{name}: needs a Graph, not {type(network).__name__}")
    return network.clone(**chosen) if chosen else network


Mode = tuple[tuple[str, bool], ...]


def _static(given: dict[str, Any]) -> tuple[Mode, dict[str, Any]]:
    """A node's keywords: those of its mode, and those that are traced."""
    mode = tuple((name, value) for name, value in given.items() if isinstance(value, bool))
    return mode, {name: value for name, value in given.items() if not isinstance(value, bool)}


@functools.lru_cache(maxsize=4096)
def _program(module: nn.Module, mode: Mode, mutable: tuple[str, ...], remat: bool) -> Callable[..., Any]:
    """``(variables, inputs, numbers, keys) -> output, updated collections`` of a node, jitted."""

    def call(
        variables: dict[str, Any], inputs: tuple[Array, ...], numbers: dict[str, Any], keys: dict[str, Array]
    ) -> Any:
        return module.apply(variables, *inputs, rngs=keys, mutable=list(mutable), **dict(mode), **numbers)

    return jax.jit(recomputed(call) if remat else call)


class Term(NamedTuple):
    """One summand of a node: a value, and where its weight is in the vector ``mixing`` (None: it has none).

    ``bypass``: it is made of the channels that the candidates of ``part`` do not see.
    """

    value: int
    position: int | None = None
    part: int = 1
    bypass: bool = False


class Builder:
    """Collects nodes: ``h = b.add("conv_1", Conv(16), h)``; ``b.graph()`` is the network."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._shared: dict[tuple[nn.Module, tuple[int, ...]], int] = {}

    def add(self, name: str, module: nn.Module, *inputs: int) -> int:
        """Append a node fed by the values numbered ``inputs``; returns the number of its output."""
        self.nodes.append(Node(name, module, inputs))
        return len(self.nodes)

    def once(self, name: str, module: nn.Module, *inputs: int) -> int:
        """The node of a module without parameters on these inputs, made when first asked for."""
        key = (module, inputs)
        if key not in self._shared:
            self._shared[key] = self.add(name, module, *inputs)
        return self._shared[key]

    def choose(
        self,
        choice: Any,
        make: Callable[[Any, int, int], int | None],
        source: int,
        *,
        name: str,
        stride: int = 1,
    ) -> list[Term]:
        """What the operation ``choice`` on the value ``source`` adds to a node: give them all to `mix`.

        ``make(value, x, part)`` adds the operation that ``value`` stands for on the value x, with one
        ``part``th of the features it has otherwise, and returns its output: None for nothing. An `Open` choice
        brings all its candidates; with ``part`` above 1 they see so much of the channels, and the others go
        by, ``stride`` pixels apart; ``name``, of ``source``, names the nodes that take them.
        """
        if not isinstance(choice, Open):
            made = make(choice, source, 1)
            return [] if made is None else [Term(made)]
        part, x = choice.partial_channels, source
        if part > 1:
            x = self.once(f"{name}_sampled", Sampled(part), source)
        terms = [
            Term(made, choice.first + k, part)
            for k, value in enumerate(choice.values)
            if (made := make(value, x, part)) is not None
        ]
        if part > 1:
            rest = self.once(f"{name}_bypass", Bypassing(part, stride), source)
            terms.append(Term(rest, choice.edge, part, bypass=True))
        return terms

    def mix(self, name: str, terms: Sequence[Term]) -> int:
        """The node that is the sum of ``terms``, weighted where their choices are open."""
        fixed = [term.value for term in terms if term.position is None]
        seen = [term for term in terms if term.position is not None and not term.bypass]
        bypassing = [term for term in terms if term.bypass]
        if seen:
            suffix = "_mix" if fixed or bypassing else ""
            mixed = self._weighted(f"{name}{suffix}", seen)
            if bypassing:
                rest = self._weighted(f"{name}_rest", bypassing)
                suffix = "_shuffle" if fixed else ""
                mixed = self.add(f"{name}{suffix}", Shuffled(bypassing[0].part), mixed, rest)
            fixed.append(mixed)
        return fixed[0] if len(fixed) == 1 else self.add(name, layers.Sum(), *fixed)

    def _weighted(self, name: str, terms: Sequence[Term]) -> int:
        positions = tuple(term.position for term in terms if term.position is not None)
        return self.add(name, Mix(positions), *(term.value for term in terms))

    def graph(self, auxiliary: Mapping[str, float] | None = None) -> Graph:
        """The network; ``auxiliary`` as in `Graph`. ValueError for a name that is no node's."""
        weights = tuple((auxiliary or {}).items())
        if unknown := {name for name, _ in weights} - {node.name for node in self.nodes}:
            raise ValueError(f"auxiliary: {sorted(unknown)} are not nodes")
        return Graph(tuple(self.nodes), weights)
