"""TPU slices by name, and what Google Cloud and Kubernetes call them; nothing here runs anything."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from nas.errors import InputError, one_of


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names of one generation of chips. ``cores``: what its accelerator types count a chip as."""

    accelerator: str
    cores: int
    runtime: str
    gke: str
    machine: str
    """of GKE, with the number of chips for {chips}"""
    most: int
    """chips of one host"""


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{chips}t", 4),
    "v5e": Generation(
        "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-{chips}t", 8
    ),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{chips}t", 4),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{chips}t", 8),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one generation that are wired together, such as v5e:2x2."""

    generation: Generation
    topology: str
    chips: int

    @property
    def hosts(self) -> int:
        """Machines; one has all chips, or four where there are several."""
        return 1 if self.chips <= self.generation.most else self.chips // 4

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def accelerator_type(self) -> str:
        """As ``gcloud compute tpus`` has it: v5litepod-4."""
        return f"{self.generation.accelerator}-{self.chips * self.generation.cores}"

    @property
    def machine(self) -> str:
        """As GKE has a host: ct5lp-hightpu-4t."""
        return self.generation.machine.format(chips=self.chips_per_host)


def slice_of(text: str) -> Slice:
    """``v5e:2x2`` as a `Slice`. Raises InputError."""
    name, _, topology = text.partition(":")
    if name not in GENERATIONS:
        raise one_of("topology", name, GENERATIONS)
    generation = GENERATIONS[name]
    dimensions = 3 if generation.cores == 2 else 2
    if not re.fullmatch(r"\d{1,2}" + r"x\d{1,2}" * (dimensions - 1), topology):
        raise InputError(
            f"topology: {text}: {name} has {dimensions} dimensions, such as {'x'.join('2' * dimensions)}"
        )
    chips = math.prod(map(int, topology.split("x")))
    if chips not in (1, 4, 8) and (chips < 16 or chips % 4):
        raise InputError(
            f"topology: {text}: {chips} chips are no slice; 1, 4, 8 or a multiple of 4 from 16 on"
        )
    return Slice(generation, topology, chips)


def ray_job(
    name: str, of: Slice, *, slices: int, spot: bool, image: str, command: str, ray_version: str
) -> dict[str, Any]:
    """KubeRay's RayJob that runs ``command`` beside the head, which has no trial, with ``slices`` of TPUs.

    A pod that is taken away has 15 s on spot machines: its hook lets the workers write their checkpoints first. The
    cluster is gone when the command ends.
    """
    chips = str(of.chips_per_host)
    node = {
        "cloud.google.com/gke-tpu-accelerator": of.generation.gke,
        "cloud.google.com/gke-tpu-topology": of.topology,
    }
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": 15 if spot else 30, "nodeSelector": node}
    if spot:
        node["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    last_words = "pkill -TERM -f '[r]ay::'; sleep 10; ray stop"  # not of itself
    worker = {
        "name": "ray-worker",
        "image": image,
        "resources": {name: {"google.com/tpu": chips} for name in ("limits", "requests")},
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", last_words]}}},
    }
    size = {"cpu": "4", "memory": "16G"}
    head = {
        "name": "ray-head",
        "image": image,
        "env": [{"name": "JAX_PLATFORMS", "value": "cpu"}],
        "ports": [
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
        ],
        "resources": {"limits": size, "requests": size},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "rayClusterSpec": {
                "rayVersion": ray_version,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": {"spec": {"containers": [head]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "tpu",
                        "replicas": slices,
                        "minReplicas": 0,
                        "maxReplicas": slices,
                        "numOfHosts": of.hosts,
                        "rayStartParams": {},
                        "template": {"spec": pod | {"containers": [worker]}},
                    }
                ],
            },
        },
    }
