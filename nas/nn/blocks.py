"""Equal consecutive blocks of a network's nodes: what a `jax.lax.scan` carries out and compiles once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from nas.nn.repeats import repeats

Tree = Any
LONGEST = 256  # nodes of a block


class Blocks(NamedTuple):
    """``times`` equal blocks of ``period`` nodes each, from the node at position ``start``.

    ``carried`` says what a block reads or hands on of what was before it: 0 is the value just before its first node,
    1 the one before that, ….
    """

    start: int
    period: int
    times: int
    carried: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.period * self.times

    @property
    def read(self) -> list[int]:
        """The numbers of the values that the first block is given."""
        return [self.start - back for back in self.carried]

    @property
    def left(self) -> dict[int, int]:
        """What stays of the last block: the number of a value, and its place among those ``carried``."""
        numbers = {self.end - back: place for place, back in enumerate(self.carried)}
        return {number: place for number, place in numbers.items() if number > self.start}

    def later(self) -> Blocks | None:
        """These without the first, where two are left."""
        return self._replace(start=self.start + self.period, times=self.times - 1) if self.times > 2 else None


def find_blocks(keys: Sequence[Hashable], inputs: Sequence[Sequence[int]]) -> list[Blocks]:
    """The runs of equal blocks among nodes.

    Two nodes are alike when they have equal ``keys`` and read what stands equally far back. ``inputs`` are numbers of
    values: i is the output of the i-th node, from 1; that of the last node is the network's.
    """
    relative = [
        (key, tuple(k - i for i in read)) for k, (key, read) in enumerate(zip(keys, inputs, strict=True))
    ]
    found = []
    for start, period, times, _ in repeats(relative, inputs, LONGEST):
        if times < 2:
            continue
        carried = {start - i for read in inputs[start : start + period] for i in read if i <= start}
        while more := {back - period for back in carried if back >= period} - carried:
            carried |= more
        run = Blocks(start, period, times, tuple(sorted(carried)))
        outside = {len(keys), *(i for k, read in enumerate(inputs) if not start <= k < run.end for i in read)}
        if {i for i in outside if start < i <= run.end} <= set(run.left):
            found.append(run)
    return found


def scan(
    block: Callable[[dict[int, Tree], Tree], tuple[dict[int, Tree], Tree]],
    run: Blocks,
    values: Sequence[Tree],
    each: Sequence[Tree],
) -> tuple[tuple[Tree, ...], Tree] | None:
    """The values left by the last block of ``run`` and, stacked, what every ``block`` returns beside its values.

    ``block`` is given the values it reads by their number, counted from that just before its first node, and what its
    own block has of ``each``; it returns the values of its nodes by their number. ``values`` are what the first block
    is given. None where blocks cannot be one program: a value changes its shape from block to block, or a module draws
    from one of Flax's streams, whose keys go by the names of modules.
    """

    def body(carry: tuple[Tree, ...], own: Tree) -> tuple[tuple[Tree, ...], Tree]:
        known = {-back: value for back, value in zip(run.carried, carry, strict=True)}
        made, beside = block(known, own)
        known |= made
        return tuple(known[run.period - back] for back in run.carried), beside

    def shapes(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    try:
        after, _ = jax.eval_shape(body, tuple(values), each[0])
    except InvalidRngError:
        return None
    if shapes(after) != shapes(tuple(values)):
        return None
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    # A scan keeps what its gradient needs of every step: products, sums and what was carried, as a rule in half
    # precision; the rest, in float32, is computed again, which XLA does as part of what reads it.
    body = jax.checkpoint(body, prevent_cse=False, policy=_kept)
    return jax.lax.scan(body, tuple(values), each)


def _kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general") or primitive.name.startswith("reduce")
