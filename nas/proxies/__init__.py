"""Training-free scores: what an untrained network's values, gradients and kernel say of it.

    network = space.build(arch, 10)
    variables = initial_variables(network, (32, 32, 3), seed=0)
    probe = Probe(network, variables, (32, 32, 3), batches)
    PROXIES["snip"].score(probe)                      # one score
    scores(probe, ["snip", "naswot", "params"])       # several: {name: value}, passes shared

A score is a pure function of a `Probe`: network (any Flax module called as ``network(x, train=…)``), variables, and
batches. It is a finite number, or an infinity where its docstring says so, always on the bad side; what is not a
number, or undefined for a network, raises `ScoreError`. ``sign`` 1: higher is better; -1: lower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from nas.errors import one_of
from nas.proxies import gradients, kernels, patterns
from nas.proxies.batches import batch, batches_of
from nas.proxies.passes import initial_variables
from nas.proxies.probe import Probe
from nas.proxies.votes import majority, mean_rank
from nas.proxies.watching import ScoreError

__all__ = [
    "BASELINES",
    "PROXIES",
    "Probe",
    "Proxy",
    "ScoreError",
    "batch",
    "batches_of",
    "initial_variables",
    "majority",
    "mean_rank",
    "scores",
    "signs",
]


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A score, whether more of it is better (1) or less (-1), and how many batches it needs."""

    score: Callable[[Probe], float]
    sign: int
    batches: int


def params(probe: Probe) -> float:
    """Trainable parameters."""
    return float(probe.cut.size.params)


def flops(probe: Probe) -> float:
    """Multiply-adds of an image's forward pass."""
    return float(probe.cut.size.macs_per_image)


PROXIES: dict[str, Proxy] = {
    "params": Proxy(params, 1, 0),
    "flops": Proxy(flops, 1, 0),
    "grad_norm": Proxy(gradients.grad_norm, 1, 1),
    "snip": Proxy(gradients.snip, 1, 1),
    "grasp": Proxy(gradients.grasp, 1, 1),
    "plain": Proxy(gradients.plain, 1, 1),
    "l2_norm": Proxy(gradients.l2_norm, 1, 0),
    "fisher": Proxy(gradients.fisher, 1, 1),
    "fisher_code": Proxy(gradients.fisher_code, 1, 1),
    "synflow": Proxy(gradients.synflow, 1, 0),
    "jacobian_covariance": Proxy(gradients.jacobian_covariance, 1, 1),
    "epe_nas": Proxy(gradients.epe_nas, 1, 1),
    "naswot": Proxy(patterns.naswot, 1, 1),
    "swap": Proxy(patterns.swap, 1, 1),
    "linear_regions": Proxy(patterns.linear_regions, 1, 1),
    "ntk_condition": Proxy(kernels.ntk_condition, -1, 1),
    "knas": Proxy(kernels.knas, 1, 1),
    "knas_code": Proxy(kernels.knas_code, 1, kernels.KNAS_BATCHES),
    "zen": Proxy(patterns.zen, 1, 0),
    "zico": Proxy(gradients.zico, 1, 2),
}
BASELINES = ("params", "flops")
"""What every score is to be shown beside."""


def signs(names: Iterable[str] = PROXIES) -> dict[str, int]:
    return {name: PROXIES[name].sign for name in names}


def scores(probe: Probe, names: Iterable[str]) -> dict[str, float]:
    """Several scores of one network. InputError for an unknown name; ScoreError as the scores raise it."""
    found = {}
    for name in names:
        if name not in PROXIES:
            raise one_of("score", name, PROXIES)
        found[name] = PROXIES[name].score(probe)
    return found
