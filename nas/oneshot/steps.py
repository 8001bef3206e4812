"""Several steps of a search as one program, over images that lie on the device (see `nas.training.steps`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nas.oneshot.bilevel import Derivatives, Metrics, Problem, Rates, State, search_step
from nas.oneshot.relaxation import Levels
from nas.training.batches import Data, make_batch
from nas.training.programs import Shape


class SearchSteps(NamedTuple):
    """What K steps take beside the images: rows of `augment.draw` with their index, for weights and architecture."""

    train: dict[str, Any]
    valid: dict[str, Any]
    seeds: Any  # uint32 [K]
    levels: Levels  # of float32 [K]
    alphas: Any | None = None
    """float32 [K, layout.size]: the architectures drawn, where none are learned"""

    def part(self, first: int, size: int) -> SearchSteps:
        """``size`` of them, from ``first`` on; where they end before, the last again, not to be counted."""
        rows = np.minimum(np.arange(first, first + size), len(self.seeds) - 1)
        return jax.tree.map(lambda values: np.asarray(values)[rows], self)


def search_steps(
    problem: Problem,
    of: Derivatives,
    shape: Shape,
    mesh: Mesh | None,
    state: State,
    sums: Array,
    data: Data,
    steps: SearchSteps,
    rates: Rates,
    count: ArrayLike,
) -> tuple[State, Array]:
    """The first ``count`` of K steps, one after another: the new state, and ``sums`` with theirs."""

    def batch(plan: dict[str, Any], k: Array) -> Any:
        chosen = {name: values[k] for name, values in plan.items()}
        zero = np.float32(0)
        return make_batch(data, chosen, zero, num_classes=shape.num_classes, dtype=shape.dtype, mesh=mesh)

    def step(k: Array, carried: tuple[State, Array]) -> tuple[State, Array]:
        state, sums = carried
        if steps.alphas is not None:
            state = state._replace(alphas=steps.alphas[k])
        now = rates._replace(**{name: of[k] for name, of in steps.levels._asdict().items()})
        state, metrics = search_step(
            problem, of, state, batch(steps.train, k), batch(steps.valid, k), now, steps.seeds[k]
        )
        return state, tally(sums, metrics, jnp.float32(shape.batch_size))

    return jax.lax.fori_loop(0, count, step, (state, sums))


@jax.jit
def tally(sums: Array, metrics: Metrics, count: Array) -> Array:
    """``sums`` float32 [3] (of losses, correct, images) plus those of a training batch."""
    return sums + jnp.stack([metrics.train_loss * count, metrics.train_correct.astype(jnp.float32), count])
