"""The TPU slices of a running Ray: several hosts whose chips are wired together, which a trial can have as a whole."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import ray

NAME, NUMBER = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id"
"""Labels that Ray, or KubeRay, gives a node: the slice that it belongs to, and its number among the hosts of it."""


class Slice(NamedTuple):
    """``head``: the resource that its first host alone has, once, such as TPU-v5litepod-16-head. ``hosts``: ids of the
    nodes, in the order of their numbers. ``chips``, ``cpus``: of each host."""

    head: str
    hosts: tuple[str, ...]
    chips: int
    cpus: int

    @property
    def all_chips(self) -> int:
        return self.chips * len(self.hosts)


def slices() -> list[Slice]:
    """Those of several hosts whose first host is there; others may be missing."""
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in ray.nodes():
        if node["Alive"] and NAME in node.get("Labels", {}):
            of[node["Labels"][NAME]].append(node)
    found = []
    for nodes in of.values():
        nodes.sort(key=lambda node: int(node["Labels"].get(NUMBER, 0)))
        heads = [name for name in nodes[0]["Resources"] if name.startswith("TPU-") and name.endswith("-head")]
        if heads and len(nodes) > 1:
            chips, cpus = (
                int(min(node["Resources"].get(kind, 0) for node in nodes)) for kind in ("TPU", "CPU")
            )
            found.append(Slice(heads[0], tuple(node["NodeID"] for node in nodes), chips, cpus))
    return found
