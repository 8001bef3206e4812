"""Checkpoints of one trial with Orbax: everything needed to go on bit for bit, written beside training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = Any


class Checkpoints:
    """The newest checkpoint of a trial, in ``folder``/<epoch>.

    Leaves are joined into one vector a dtype: Orbax's cost is by array, and a network has a hundred small
    ones (0.1 s against 0.03 s a save). Saving goes on in the background while the next epoch trains; a
    checkpoint appears under its name only when it is complete, then the one before it is deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._orbax = ocp.StandardCheckpointer()
        self._last: int | None = None

    def save(self, epoch: int, state: Tree, meta: dict[str, Any]) -> None:
        """Start writing ``state`` and ``meta`` (plain JSON values) as the checkpoint after ``epoch``."""
        self.wait()
        groups: dict[str, list[np.ndarray]] = {}
        for leaf in jax.tree.leaves(state):
            host = np.asarray(leaf)
            groups.setdefault(host.dtype.name, []).append(host.reshape(-1))
        tree = {name: np.concatenate(parts).view(np.uint8) for name, parts in groups.items()}
        tree["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        self._orbax.save(self.folder / str(epoch), tree, force=True)
        self._last = epoch

    def wait(self) -> None:
        """Return when nothing is being written any more, and only the newest checkpoint is left."""
        self._orbax.wait_until_finished()
        if self._last is not None:
            for epoch in self.epochs():
                if epoch != self._last:
                    shutil.rmtree(self.folder / str(epoch), ignore_errors=True)

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def epochs(self) -> list[int]:
        """The complete checkpoints present, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def restore(self, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        """``(epoch, state, meta)`` of the newest readable checkpoint shaped ``like``, or None.

        One that is damaged or of another network is passed over: its trial trains again from the start,
        which gives the same numbers.
        """
        self.wait()
        leaves, structure = jax.tree.flatten(like)
        for epoch in reversed(self.epochs()):
            try:
                tree = self._orbax.restore(self.folder / str(epoch))
                meta = json.loads(np.asarray(tree.pop("meta")).tobytes())
                vectors = {name: np.asarray(v).view(name) for name, v in tree.items()}
                taken = dict.fromkeys(vectors, 0)
                restored = []
                for leaf in leaves:
                    name = np.dtype(leaf.dtype).name
                    start, size = taken[name], int(np.prod(leaf.shape))
                    restored.append(vectors[name][start : start + size].reshape(leaf.shape))
                    taken[name] += size
                if any(taken[name] != vector.size for name, vector in vectors.items()):
                    continue
            except (OSError, ValueError, KeyError, TypeError):
                continue
            return epoch, jax.tree.unflatten(structure, restored), meta
        return None
