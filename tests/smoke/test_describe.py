"""scripts/describe.py as it is started: one object, one picture, one line for what is wrong, soon."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "describe.py"


@pytest.fixture
def describe(script):
    """``describe("resnet20", "--static")`` -> exit code, standard output, standard error; in this process."""
    return functools.partial(script, "describe")


PROGRAM = """
import runpy, sys
sys.argv = [{script!r}, "resnet152", "--static", "--json"]
sys.path.insert(0, {folder!r})
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = ("torch", "orbax", "ray", "matplotlib", "pandas", "scipy", "optuna", "tensorflow")
    print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.slow
def test_a_network_of_60_million_parameters_is_described_at_once_and_by_one_object():
    """Under 5 s on an idle machine: here, processor seconds, which other work does not change much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(script=str(SCRIPT), folder=str(SCRIPT.parent))],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "JAX_PLATFORMS": "cpu"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime - before.ru_utime < 5
    assert done.stderr.strip() == "[]"
    said = json.loads(done.stdout)
    expected = {"name": "resnet152", "params": 60_192_808, "input_shape": [224, 224, 3], "num_classes": 1000}
    assert said | expected == said
    assert said["macs"] == sum(layer["macs"] for layer in said["layers"])
    assert said["params"] == sum(layer["params"] for layer in said["layers"])
    assert said["static"] is True
    assert not [name for name in said if name.endswith("_seconds")]


@pytest.mark.slow
def test_what_is_measured_is_in_the_object_too(describe):
    code, out, err = describe(
        "lenet5_dense", "--json", "--batch", "4", "--classes", "7", "--input", "28x28x1"
    )
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["num_classes"], said["batch_size"], said["input_shape"]) == (7, 4, [28, 28, 1])
    assert said["activation_bytes_per_batch"] == 4 * said["activation_bytes_per_image"]
    assert said["train_peak_bytes"] > 2 * said["params_bytes"]
    for name in ("forward_batch_1", "forward_batch", "train_step", "forward_compile", "train_compile"):
        assert said[f"{name}_seconds"] > 0


def test_the_report_has_a_table_that_folds(describe):
    code, out, _ = describe("resnet56", "--static")
    assert code == 0
    assert "853,018" in out
    assert "conv_1_1_1  × 9" in out
    assert f"{9 * 2304:,}" in out
    assert "estimated" in out
    code, full, _ = describe("resnet56", "--static", "--full")
    assert "×" not in full
    assert "conv_1_9_2" in full


def test_an_architecture_of_a_space_at_cifars_shape(describe):
    from search_spaces import SPACES

    arch = SPACES["chain"].to_string(SPACES["chain"].sample(3))
    code, out, _ = describe(f"chain:{arch}", "--static", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["input_shape"], said["num_classes"], said["space"]) == ([32, 32, 3], 10, "chain")


def test_a_run_at_the_shape_of_its_data(describe, tmp_path):
    from nas.record import Record
    from nas.trial import Measurement, Trial
    from search_spaces import SPACES

    arch = SPACES["chain"].sample(3)
    with Record.create(
        tmp_path / "run", {"space": "chain", "dataset": "digits", "split_seed": 0}, env={}
    ) as record:
        record.start(Trial(0, arch, 1, 0))
        record.measure(0, Measurement(1, 0.5, 1.0, 0.5, 1.0))
        record.end(0, "completed")
    code, out, _ = describe("run", "--static", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["input_shape"], said["num_classes"]) == ([8, 8, 1], 10)
    assert said["architecture"] == dict(arch)
    code, out, err = describe("run", "--static", "--space", "own.py")
    assert (code, out) == (2, "")
    assert err == "error: space: is for a run whose space is a file; that of run is chain\n"


OWN = """
import flax.linen as nn
from nas.space import Categorical, SearchSpace
class Mixing(nn.Module):
    @nn.compact
    def __call__(self, x):
        mix = self.param("mix", nn.initializers.ones, (4, 10))
        return nn.Conv(4, (3, 3))(x).mean((1, 2)) @ mix
class Asserting(nn.Module):
    @nn.compact
    def __call__(self, x):
        assert x.shape[1] == 64, "only of 64 pixels"
        return nn.Dense(10)(x.mean((1, 2)))
def build(arch, num_classes):
    return (Mixing, Asserting)[arch["a"]]()
SPACE = SearchSpace(name="own", choices={"a": Categorical((0, 1))}, conditions={}, build=build)
"""


def test_the_layers_of_the_object_sum_to_the_whole(describe):
    Path("own.py").write_text(OWN)
    code, out, err = describe("own.py:a=0", "--static", "--json", "--input", "8x8x3")
    assert (code, err) == (0, "")
    said = json.loads(out)
    rows = [(layer["name"], layer["params"], layer["macs"]) for layer in said["layers"]]
    assert rows == [("Conv_0", 9 * 3 * 4 + 4, 64 * 9 * 3 * 4), ("(outside of these)", 4 * 10, 4 * 10)]
    assert (said["params"], said["macs"]) == (sum(row[1] for row in rows), sum(row[2] for row in rows))
    code, out, err = describe("own.py:a=0", "--static", "--input", "8x8x3")
    assert (code, err) == (0, "")
    assert [line.split()[-2:] for line in out.splitlines() if line.startswith("(outside")] == [["40", "40"]]


def test_what_a_network_of_ones_own_raises_is_one_line(describe):
    Path("own.py").write_text(OWN)
    code, out, err = describe("own.py:a=1", "--static", "--input", "8x8x3")
    assert (code, out) == (2, "")
    assert err == "error: input 8x8x3: the network does not take it: AssertionError: only of 64 pixels\n"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_drawing_beside_the_object(describe, ending):
    code, out, _ = describe("lenet5", "--static", "--json", "--draw", f"net.{ending}")
    assert code == 0
    json.loads(out)
    assert Path(f"net.{ending}").stat().st_size > 5000


WRONG = {
    "unknown name": (("resnet21",), "arch: resnet21 is neither a named network"),
    "shape text": (("lenet5", "--input", "32x32"), "input: '32x32' is not HEIGHTxWIDTHxCHANNELS"),
    "an empty shape": (("lenet5", "--input", "0x32x3"), "input: '0x32x3'"),
    "no classes": (("lenet5", "--classes", "0"), "classes: 0 is below 1"),
    "no batch": (("lenet5", "--batch", "0"), "batch: 0 is below 1"),
    "dtype": (("lenet5", "--dtype", "float8"), "dtype: 'float8' is not one of"),
    "unknown ending": (("lenet5", "--draw", "net.gif"), "'.gif' is not one of .png, .svg, .pdf"),
    "no ending": (("lenet5", "--draw", "net"), "'' is not one of .png, .svg, .pdf"),
    "no such folder": (("lenet5", "--draw", "none/net.png"), "no folder none"),
    "more than memory": (("resnet152", "--batch", "1000000"), "are free; a smaller --batch, or --static"),
    "not an architecture": (("chain:depth=9", "--static"), "depth=9"),
    "a space without networks": (("bare.py:a=1", "--static"), "space bare: has no networks to build"),
    "libtpu alone": (("lenet5", "--libtpu", "x"), "libtpu: is for --tpu"),
    "static for a TPU": (
        ("lenet5", "--static", "--tpu", "v5e:2x2"),
        "static: compiles nothing, and --tpu compiles",
    ),
    "dtype of no measurement": (
        ("lenet5", "--static", "--dtype", "bfloat16"),
        "dtype: is of what is measured",
    ),
    "every layer of no table": (("lenet5", "--static", "--json", "--full"), "full: is for the table"),
    "a drawing of a supernet": (
        ("darts", "--tpu", "v5e:2x2", "--draw", "net.png"),
        "draw: with --tpu darts is a space's supernet, which is not drawn",
    ),
    "cells of a supernet": (
        ("darts", "--tpu", "v5e:2x2", "--draw-cells", "net.png"),
        "draw-cells: with --tpu darts",
    ),
    "layers of a supernet": (("darts", "--tpu", "v5e:2x2", "--full"), "full: with --tpu darts"),
    "a file of a supernet": (("darts", "--tpu", "v5e:2x2", "--space", "small.py"), "space: with --tpu darts"),
    "a file of no run": (
        ("lenet5", "--static", "--space", "small.py"),
        "space: is for the folder of a run, which lenet5 is not",
    ),
    "an image that vanishes": (("small.py:a=1", "--input", "3x3x1", "--static"), "input 3x3x1"),
}
BARE = """
from nas.space import Categorical, SearchSpace
SPACE = SearchSpace(name="bare", choices={"a": Categorical((1, 2))}, conditions={}, build=None)
"""
SMALL = """
from nas.space import Categorical, SearchSpace
from nas.nn.graph import Builder
from nas.nn.layers import Dense, CellAverage, conv
def build(arch, num_classes):
    b = Builder()
    b.add("logits", Dense(num_classes), b.add("average", CellAverage(1), b.add("conv", conv(4, 5, padding=0), 0)))
    return b.graph()
SPACE = SearchSpace(name="small", choices={"a": Categorical((1, 2))}, conditions={}, build=build)
"""


@pytest.mark.parametrize("case", WRONG)
def test_one_line(describe, case):
    Path("bare.py").write_text(BARE)
    Path("small.py").write_text(SMALL)
    arguments, says = WRONG[case]
    code, out, err = describe(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert says in err
    assert not list(Path().glob("net*"))


def test_cells_are_drawn_where_there_are_some(describe, tmp_path):
    code, out, err = describe("nasbench201_best", "--static", "--json", "--draw-cells", "cells.png")
    assert (code, err) == (0, "")
    assert json.loads(out)["params"] == 1_073_466
    assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = describe("lenet5", "--static", "--draw-cells", "cells.png")
    assert (code, err) == (2, "error: draw-cells: the networks of lenet are not made of cells\n")
    code, _, err = describe("nasbench201_best", "--static", "--draw-cells", "cells.gif")
    assert (code, err) == (
        2,
        "error: draw-cells: cells.gif: its ending: '.gif' is not one of .png, .svg, .pdf\n",
    )
