"""TPUs without a TPU: published figures, the roofline, where the compiler is looked for; what it says where it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from nas.errors import InputError
from nas.run.roofline import RooflineSetup
from nas.tpu import compiler
from nas.tpu.chips import CHIPS
from nas.tpu.compiler import Cost, Slice, TooLarge, largest_batch, slice_of
from search_spaces import SPACES

ROOT = Path(__file__).parents[2]
V5E = Slice("v5e:2x2", CHIPS["v5e"], 4, Mesh(np.array(jax.devices()[:1] * 4), ("data",)))


def cost(flops: float, moved: float) -> Cost:
    return Cost(1.0, flops, moved, 100, 50, 40, 7, 3)


def test_the_roofline_is_the_longer_of_arithmetic_and_memory():
    one_second_each = cost(197e12, 819e9)
    assert one_second_each.seconds(V5E) == pytest.approx(1)
    assert cost(2 * 197e12, 819e9).seconds(V5E) == pytest.approx(2)
    assert cost(2 * 197e12, 819e9).bound(V5E) == "arithmetic"
    assert cost(197e12, 3 * 819e9).seconds(V5E) == pytest.approx(3)
    assert cost(197e12, 3 * 819e9).bound(V5E) == "memory"
    assert one_second_each.memory_bytes == 100 + 50 - 40 + 7 + 3


def test_a_device_that_is_half_a_chip_has_half_of_it():
    """Chips of v4 have two cores, which the compiler lists as devices."""
    on = Slice("v4:1x1x1", CHIPS["v4"], 1, Mesh(np.array(jax.devices()[:1] * 2), ("data",)))
    assert (on.flops_per_second, on.bytes_per_second, on.memory_bytes) == (137.5e12, 614e9, 2**34)


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v9:2x2", "'v9' is not one of v2, v3"),
        ("v5e", "is not CHIP:LAYOUT"),
        ("v5e:2xx", "is not CHIP:LAYOUT"),
    ],
)
def test_a_topology_that_is_none_is_one_line(topology: str, says: str):
    with pytest.raises(InputError, match=says):
        slice_of(topology)


@pytest.mark.parametrize("inside", ["libtpu", "lib/python3.11/site-packages/libtpu"])
def test_the_compiler_is_found_in_a_folder_and_in_an_environment(tmp_path: Path, inside: str):
    library = tmp_path / inside / "libtpu.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "bin").mkdir()
    assert compiler._library(tmp_path) == library
    assert compiler._library(library) == library
    if inside != "libtpu":
        assert compiler._library(tmp_path / "bin" / "python3") == library


def test_without_the_compiler_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NAS_LIBTPU_DIR", raising=False)
    with pytest.raises(InputError, match=r"pip install --no-deps --target \S+ libtpu=="):
        compiler.compiled_elsewhere("describe.py", tmp_path)


COMPILES = """
import os, signal, sys, time
from pathlib import Path
from nas.tpu.compiler import compiled_elsewhere
for ended in (signal.SIGINT, signal.SIGTERM):
    signal.signal(ended, signal.SIG_IGN if "NAS_TPU_COMPILER_DIR" in os.environ else signal.default_int_handler)
if not compiled_elsewhere(__file__, Path(__file__).with_name("libtpu.so")):
    print(os.getpid(), flush=True)
    time.sleep(300)
"""


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGTERM, signal.SIGKILL)]


@pytest.mark.parametrize("how", [signal.SIGINT, *SLOW])
@pytest.mark.slow
def test_the_compiling_process_ends_with_the_one_that_waits_for_it(tmp_path: Path, how: signal.Signals):
    """It is deaf to signals, as the compiler is."""
    (tmp_path / "libtpu.so").touch()
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stdout is not None
        compiling = Path("/proc") / waiting.stdout.readline().strip()
        assert compiling.exists()
        waiting.send_signal(how)
        waiting.wait(30)
    limit = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while "\nState:\tZ" not in (compiling / "status").read_text():
            assert time.monotonic() < limit, "it compiles on"
            time.sleep(0.05)


def test_the_largest_batch_is_one_that_was_compiled(monkeypatch: pytest.MonkeyPatch):
    """Of a program of 1 GiB and 0.3 GiB an image, on 16 GiB."""
    tried = []

    def compiled(lower: Any) -> None:
        size = lower()
        tried.append(size)
        if (used := 2**30 * (1 + 0.3 * size)) > V5E.memory_bytes:
            raise TooLarge(used)

    monkeypatch.setattr(compiler, "cost", compiled)
    assert largest_batch(lambda size: size, 2**30, 256, V5E) == 32  # type: ignore[arg-type,return-value]
    assert tried == [256, 32]


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "Ran out of memory in memory space hbm. Used 20.99G of 15.75G hbm. Exceeded hbm capacity by 5.24G.",
            20.99,
        ),
        ("total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).", 0.5),
        ("INTERNAL: something else of 15.75G hbm", None),
    ],
)
def test_the_compilers_messages_say_what_a_program_would_need(message: str, gib: float | None):
    """As the compiler words them."""
    assert compiler.used_bytes(message) == (None if gib is None else pytest.approx(gib * 2**30))


# ------------------------------------------------------------------------------------- with the compiler itself


def describe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "describe.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.skipif("NAS_LIBTPU_DIR" not in os.environ, reason="NAS_LIBTPU_DIR names no TPU compiler")
def test_describe_compiles_for_chips_that_are_not_there():
    done = describe("lenet5_dense", "--tpu", "v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["tpu"]
    assert said["fits"]
    # 416,520 multiply-adds an image, twice as many FLOPs, three passes, 16 of 64 images a chip; and what is no product.
    assert said["flops"] == pytest.approx(6 * 416_520 * 16, rel=0.1)
    seconds = max(said["flops"] / 197e12, said["bytes_accessed"] / 819e9)
    assert said["roofline_images_per_second"] == pytest.approx(64 / seconds)
    assert said["compile_seconds"] > 0.5


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v5e:2x2", "latency_tpu: 'v5e:2x2' is not one chip, such as v5e:1x1"),
        ("v9:1x1", "tpu: 'v9' is not one of v2, "),
    ],
)
def test_a_chip_that_no_roofline_can_be_of_is_one_line(topology: str, says: str):
    with pytest.raises(InputError, match=f"^{re.escape(says)}"):
        RooflineSetup(SPACES["mlp"], topology, 1)


def test_a_roofline_without_the_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NAS_LIBTPU_DIR", "/nowhere")
    with pytest.raises(
        InputError, match=r"^libtpu: not in /nowhere; install the TPU compiler with: pip install "
    ):
        RooflineSetup(SPACES["mlp"], "v5e:1x1", 1)


@pytest.mark.slow
@pytest.mark.skipif("NAS_LIBTPU_DIR" not in os.environ, reason="NAS_LIBTPU_DIR names no TPU compiler")
def test_a_network_of_more_channels_moves_more_bytes():
    """Of a batch of 64, each image read once in 16 bits, at least."""
    space = SPACES["chain"].searched(fix=["depth=1"])
    ask = RooflineSetup(space, "v5e:1x1", 64)((32, 32, 3), 10)
    arch = space.sample(0)
    small, large = (ask(arch.set(width_1=width)) for width in (8, 64))
    assert 64 * 32 * 32 * 3 * 2 < small["tpu_bytes"] < large["tpu_bytes"]
    assert 0 < small["tpu_roofline_ms"] <= large["tpu_roofline_ms"] < 1
