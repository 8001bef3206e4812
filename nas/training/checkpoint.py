"""Checkpoints of one trial with Orbax: everything needed to go on bit for bit, written beside training.

After every epoch, and in the middle of one where it takes long or the process is asked to end (`nas.ending`).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nas import ending
from nas.training.processes import agreed, from_first, is_writer

Tree = Any


class Checkpoints:
    """The newest checkpoint of a trial, in ``folder``/<epoch>, or <epoch>.<steps> with the next epoch under way.

    Leaves are joined into one vector a dtype: Orbax's cost is by array, and a network has a hundred small
    ones (0.1 s against 0.03 s a save). Saving goes on in the background while the next epoch trains; a
    checkpoint appears under its name only when it is complete, then the one before it is deleted.

    ``minutes`` is how old the newest one may become before `due` asks for another.
    """

    def __init__(self, folder: Path, minutes: float = math.inf) -> None:
        self.folder = folder.absolute()
        self._orbax = _checkpointer()
        self._last: str | None = None
        self._seconds, self._saved_at = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        """Whether to `keep` the epoch under way now: the last checkpoint is old, or this process shall end."""
        return time.monotonic() - self._saved_at >= self._seconds or ending.asked()

    def keep(self, epoch: int, state: Tree, meta: dict[str, Any], steps: int) -> None:
        """`save` with the epoch after ``epoch`` under way, ``steps`` of it done; ``meta`` knows the rest of it.

        Raises `Terminated`, once that is written, where this process shall end.
        """
        self.save(epoch, state, meta, steps)
        if ending.asked():
            self.wait()
            ending.end()

    def save(self, epoch: int, state: Tree, meta: dict[str, Any], steps: int | None = None) -> None:
        """Start writing ``state`` and ``meta`` (plain JSON values) as the checkpoint after ``epoch``.

        Of several processes the first one does.
        """
        if not is_writer():
            return
        self.wait()
        self._saved_at = time.monotonic()
        groups: dict[str, list[np.ndarray]] = {}
        for leaf in jax.tree.leaves(state):
            host = np.asarray(leaf)
            groups.setdefault(host.dtype.name, []).append(host.reshape(-1))
        tree = {name: np.concatenate(parts).view(np.uint8) for name, parts in groups.items()}
        tree["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        self._last = str(epoch) if steps is None else f"{epoch}.{steps}"
        self._orbax.save(self.folder / self._last, tree, force=True)

    def wait(self) -> None:
        """Return when nothing is being written any more, and only the newest checkpoint is left."""
        self._orbax.wait_until_finished()
        complete = [path for _, path in self._complete()]
        if self._last in {path.name for path in complete}:  # else it could not be written
            for path in complete:
                if path.name != self._last:
                    shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def epochs(self) -> list[int]:
        """The epochs done in the complete checkpoints present, oldest first."""
        return agreed([epoch for (epoch, _), _ in self._complete()])

    @property
    def under_way(self) -> bool:
        """Whether the newest checkpoint has a part of an epoch."""
        return any("." in path.name for _, path in self._complete()[-1:])

    def _complete(self) -> list[tuple[tuple[int, int], Path]]:
        """Epochs and steps done, and the checkpoint."""
        if not self.folder.is_dir():
            return []
        names = [(path.name.partition("."), path) for path in self.folder.iterdir()]
        return sorted(
            ((int(epoch), int(steps or 0)), path)
            for (epoch, _, steps), path in names
            if epoch.isdecimal() and (steps or "0").isdecimal()
        )

    def restore(self, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        """``(epoch, state, meta)`` of the newest readable checkpoint shaped ``like``, or None.

        One that is damaged or of another network is passed over: its trial trains again from the start,
        which gives the same numbers. All processes have what the first one reads.
        """
        if jax.process_count() == 1:
            return self._restore(like)
        found = self._restore(like) if is_writer() else None
        head = b"" if found is None else json.dumps([found[0], found[2]]).encode()
        head = from_first(head)
        if not head:
            return None
        leaves, structure = jax.tree.flatten(like)
        read = jax.tree.leaves(found[1]) if found else []
        content, start, values = (
            from_first(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in read)),
            0,
            [],
        )
        for leaf in leaves:
            dtype, count = np.dtype(leaf.dtype), int(np.prod(leaf.shape))
            values.append(np.frombuffer(content, dtype, count, start).reshape(leaf.shape))
            start += count * dtype.itemsize
        epoch, meta = json.loads(head)
        return epoch, jax.tree.unflatten(structure, values), meta

    def _restore(self, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        self.wait()
        leaves, structure = jax.tree.flatten(like)
        for (epoch, _), path in reversed(self._complete()):
            try:
                tree = self._orbax.restore(path)
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


def _checkpointer() -> ocp.StandardCheckpointer:
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    # Of several processes the first alone has checkpoints: Orbax is not to wait for the others.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)
