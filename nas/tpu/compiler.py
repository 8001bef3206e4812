"""The TPU compiler, which runs without a TPU: what a program costs on chips that nobody has at hand.

The compiler is the library of the package ``libtpu``. Where it is installed beside JAX, JAX looks for a chip in every
process; so it lies in a folder of its own, and only a process that `compiled_elsewhere` starts knows of it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from nas.cpu.function import plain
from nas.errors import InputError
from nas.tpu.chips import Chip, chip_of
from nas.training.programs import timed

VERSION = "0.0.42.1"  # of libtpu, for jax 0.10.2
_MARK = (
    "NAS_TPU_COMPILER_DIR"  # of a process that has the compiler; as a folder's it is part of no program's key
)
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux, the only system that the compiler runs on
_WITHOUT_A_CHIP = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip that two processes could want
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def compiled_elsewhere(script: str, place: Path | None) -> bool:
    """False in a process that has the TPU compiler; else runs ``script``, this one, again in one; True.

    The other has the same options, and what it prints is printed. ``place``: libtpu.so, a folder with the package
    libtpu, or an environment (its folder or its Python). Without it: ``NAS_LIBTPU_DIR`` names one, this environment
    has it, or ``~/.cache/nas/libtpu`` does. However this process ends, the other ends too. Raises InputError where
    there is none, and with the line of the other process where that fails.
    """
    if os.environ.get(_MARK):
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        return False
    environment = os.environ | compiler_environment(place)
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, script, *sys.argv[1:]]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        ) as other:
            assert other.stdout is not None
            try:
                for line in other.stdout:
                    print(line, end="", flush=True)
            except BaseException:  # Ctrl-C, which the compiler does not answer to
                other.kill()
                raise
        said.seek(0)
        lines = said.read().strip().splitlines()
    if other.returncode:
        last = lines[-1] if lines else f"it ended with {other.returncode}"
        raise InputError(last.removeprefix("error: ") if other.returncode == 2 else f"TPU compiler: {last}")
    return True


def compiler_environment(place: Path | None) -> dict[str, str]:
    """What a process that has the compiler starts with; ``place`` as in `compiled_elsewhere`. Raises InputError."""
    library = str(_library(place))
    return _WITHOUT_A_CHIP | {"TPU_LIBRARY_PATH": library, _MARK: library}


def _library(place: Path | None) -> Path:
    default = Path.home() / ".cache" / "nas" / "libtpu"
    if place is None and "NAS_LIBTPU_DIR" in os.environ:
        place = Path(os.environ["NAS_LIBTPU_DIR"])
    places = [default if place is None else place]
    if place is None and (here := importlib.util.find_spec("libtpu")) and here.origin:
        places = [Path(here.origin).parent]
    for one in places:
        folder = one.parent.parent if one.name.startswith("python") else one
        for pattern in ("libtpu.so", "libtpu/libtpu.so", "lib/python3*/site-packages/libtpu/libtpu.so"):
            if found := sorted(folder.glob(pattern)):
                return found[0].absolute()
        if one.is_file() and one.suffix == ".so":
            return one.absolute()
    install = f"pip install --no-deps --target {place or default} libtpu=={VERSION}"
    where = "not in this environment" if place is None else f"not in {place}"
    raise InputError(f"libtpu: {where}; install the TPU compiler with: {install}")


class Slice(NamedTuple):
    """The devices of a topology, none of which exist."""

    name: str
    chip: Chip
    chips: int
    mesh: Mesh  # of all devices, axis "data"

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def flops_per_second(self) -> float:
        """Of one device, which is a chip or one of its cores."""
        return self.chip.flops_per_second * self.chips / self.devices

    @property
    def bytes_per_second(self) -> float:
        return self.chip.bytes_per_second * self.chips / self.devices

    @property
    def memory_bytes(self) -> int:
        return self.chip.memory_bytes * self.chips // self.devices


def slice_of(topology: str) -> Slice:
    """The slice called ``topology``, such as v5e:2x2, v5e:1x1 or v4:2x2x1. Raises InputError."""
    chip, layout = chip_of(topology), topology.partition(":")[2]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", layout):
        raise InputError(f"tpu: {topology!r} is not CHIP:LAYOUT, such as v5e:2x2 or v4:2x2x1")
    sizes = [int(size) for size in layout.split("x")]
    # The chips of a host: two by two, or fewer where the slice is smaller.
    bounds = [min(size, 2) for size in (*sizes, 1)[:2]] + [1]
    try:
        found = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", chips_per_host_bounds=bounds
        ).devices
    except Exception as error:  # what the library raises has no class of its own
        raise InputError(f"tpu: {topology}: {str(error).strip().splitlines()[0]}") from None
    return Slice(topology, chip, math.prod(sizes), Mesh(np.array(found), ("data",)))


class Cost(NamedTuple):
    """One compiled program on one device, by the compiler's own counts. Seconds are of this machine."""

    compile_seconds: float
    flops: float
    bytes_accessed: float
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    code_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.argument_bytes + self.output_bytes + self.temp_bytes + self.code_bytes - self.alias_bytes

    def seconds(self, on: Slice) -> float:
        """The roofline: the longer of all arithmetic and all memory traffic, each at its peak.

        A bound from below: chips wait for one another and no program reaches its peaks.
        """
        return max(self.flops / on.flops_per_second, self.bytes_accessed / on.bytes_per_second)

    def bound(self, on: Slice) -> str:
        """Which of the two is longer."""
        memory = self.bytes_accessed / on.bytes_per_second > self.flops / on.flops_per_second
        return "memory" if memory else "arithmetic"


class TooLarge(Exception):
    """A program that no device of the slice holds; ``used_bytes`` is what it would need."""

    def __init__(self, used_bytes: float) -> None:
        super().__init__(f"needs {used_bytes / 2**30:.2f} GiB")
        self.used_bytes = used_bytes


def cost(lower: Callable[[], jax.stages.Lowered]) -> Cost:
    """Compile what ``lower`` lowers; raises TooLarge where memory would not hold it. Tracing is not timed."""
    with plain():  # the native kernels are the CPU's
        lowered = lower()
    compiled, seconds = timed(lambda: _compiled(lowered))
    found, planned = compiled.cost_analysis(), compiled.memory_analysis()
    return Cost(
        compile_seconds=seconds,
        flops=found["flops"],
        bytes_accessed=found["bytes accessed"],
        argument_bytes=planned.argument_size_in_bytes,
        output_bytes=planned.output_size_in_bytes,
        alias_bytes=planned.alias_size_in_bytes,
        temp_bytes=planned.temp_size_in_bytes,
        code_bytes=planned.generated_code_size_in_bytes,
    )


_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM")


def _compiled(lowered: jax.stages.Lowered) -> Any:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = used_bytes(str(error))
        if used is None:
            raise
        raise TooLarge(used) from None


def used_bytes(error: str) -> float | None:
    """What a program would have needed, by the compiler's message; None where it says something else."""
    used = _USED.search(error)
    if used is None:
        return None
    number, unit = used[1] or used[3], used[2] or used[4] or " "
    return float(number) * 1024 ** " KMGT".index(unit)


def largest_batch(lower: Callable[[int], jax.stages.Lowered], fixed_bytes: int, batch: int, on: Slice) -> int:
    """The largest batch found that fits where ``batch`` does not; 0: none. Every one tried is compiled.

    What does not grow with the batch (``fixed_bytes``) and what a failed program would have used say where to look.
    """
    least = on.devices
    while batch > least:
        try:
            cost(lambda batch=batch: lower(batch))
        except TooLarge as error:
            room = (on.memory_bytes - fixed_bytes) / max(error.used_bytes - fixed_bytes, 1)
            smaller = int(batch * min(room, 0.95)) // least * least
            batch = max(least, 1 << (smaller.bit_length() - 1) if smaller else least)
        else:
            return batch
    return 0


def total(parts: Sequence[Cost]) -> Cost:
    """Several programs one after another: sums, and the memory of the one that needs most."""
    largest = max(parts, key=lambda part: part.memory_bytes)
    return largest._replace(
        compile_seconds=sum(part.compile_seconds for part in parts),
        flops=sum(part.flops for part in parts),
        bytes_accessed=sum(part.bytes_accessed for part in parts),
    )
