"""What is published of each TPU chip: peaks and memory, for rooflines (Williams et al. 2009) and for what fits."""

from __future__ import annotations

import dataclasses

from nas.errors import one_of


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's published figures, from its page below https://cloud.google.com/tpu/docs/."""

    page: str
    flops_per_second: float  # peak in bfloat16
    memory_bytes: int  # HBM
    bytes_per_second: float  # of HBM

    @property
    def source(self) -> str:
        return f"https://cloud.google.com/tpu/docs/{self.page}"


GB = 10**9
CHIPS: dict[str, Chip] = {
    "v2": Chip("v2", 45e12, 16 * 2**30, 700 * GB),
    "v3": Chip("v3", 123e12, 32 * 2**30, 900 * GB),
    "v4": Chip("v4", 275e12, 32 * 2**30, 1228 * GB),
    "v5e": Chip("v5e", 197e12, 16 * 2**30, 819 * GB),
    "v5p": Chip("v5p", 459e12, 95 * 2**30, 2765 * GB),
    "v6e": Chip("v6e", 918e12, 32 * 2**30, 1640 * GB),
    "tpu7x": Chip("tpu7x", 2307e12, 192 * 2**30, 7380 * GB),
}
"""By the name that stands before the colon of a topology."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as ``v5e:2x2``. Raises InputError."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise one_of("tpu", name, CHIPS)
    return CHIPS[name]
