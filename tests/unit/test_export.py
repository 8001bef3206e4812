"""Networks written as StableHLO and ONNX: loaded again, they are the same functions."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax import lax

from nas.errors import InputError
from nas.export.network import Checked, Weighted, exported, stablehlo, trained, untrained
from nas.export.onnx import to_onnx
from nas.objectives.latency import Latency
from search_spaces import SPACES
from search_spaces.mbconv import NAMED

SMALL = SPACES["mbconv"].searched(fix=["depth=1", "se=True", "activation=hard_swish", "resolution=12"])
LOAD = """
import sys, jax, numpy as np
from jax import export
call = export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
np.save(sys.argv[3], np.asarray(call(np.load(sys.argv[2]))))
assert "nas" not in sys.modules
"""


@pytest.fixture
def weighted() -> Weighted:
    return untrained(SMALL, SMALL.sample(0), (16, 16, 3), 7, 0)


@pytest.fixture(autouse=True)
def _quick_latency(monkeypatch):
    monkeypatch.setattr(
        "nas.export.network.steady", lambda call, repetitions: (call(), Latency(1, 1, 1, 0))[1]
    )


@pytest.mark.slow
def test_stablehlo_runs_where_nothing_of_this_project_is(tmp_path, weighted):
    """In another process, on batches of any size."""
    call = stablehlo(weighted, tmp_path / "network.stablehlo", 1)
    content = bytearray((tmp_path / "network.stablehlo").read_bytes())
    read = jax_export.deserialize(content)
    assert read.platforms == ("cpu", "cuda", "tpu")
    assert "@nas_" not in read.mlir_module()  # the native kernels of nas.cpu
    images = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(lambda x: weighted(x))(images))
    np.testing.assert_allclose(call(images), expected, atol=1e-5)
    np.save(tmp_path / "images.npy", images[:2])
    files = [tmp_path / name for name in ("network.stablehlo", "images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, *files], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected[:2], atol=1e-5)


FAMILIES = [*SPACES, "mobilenetv3_small"]
QUICK = ("chain", "lenet", "resnet", "minichain", "cuda_convnet", "mlp")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
@pytest.mark.some(3)
def test_onnx_is_the_same_function_in_every_family(tmp_path, name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    if name in NAMED:
        space, arch = SPACES["mbconv"], NAMED[name].arch
    else:
        space = SPACES[name].searched()
        arch = space.sample(3)
    checked = exported(untrained(space, arch, (20, 20, 3), 10, 0), "onnx", tmp_path / name, batch_size=2)
    assert checked.agrees
    assert checked.path == tmp_path / f"{name}.onnx"


def test_onnx_operations_one_by_one():
    """Against JAX: those that a network seldom has, with odd shapes."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((3, 2, 2, 6)).astype(np.float32))
    x = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    functions = {
        "grouped": lambda a: lax.conv_general_dilated(
            a, w, (2, 1), ((1, 0), (0, 2)), rhs_dilation=(1, 2), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        "dot": lambda a: lax.dot_general(a, a, (((1, 3), (1, 3)), ((0,), (0,)))),
        "pool": lambda a: lax.reduce_window(a, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"),
        "max": lambda a: lax.reduce_window(a, -jnp.inf, lax.max, (1, 2, 3, 1), (1, 1, 2, 1), "SAME"),
        "shapes": lambda a: jnp.concatenate([a[:, ::2, 1:4], jnp.flip(a, (1, 2))[:, :3, :3]], -1).swapaxes(1, 3),
        "elements": lambda a: jnp.where(a > 0, jnp.log1p(abs(a)), jnp.expm1(a) ** 3) + jnp.clip(a, -1, 1) * (a != 0),
        "sums": lambda a: jnp.pad(a.sum((1, 2)), ((0, 0), (1, 2)), constant_values=2) - a.max((1, 2, 3))[:, None],
        "twice": lambda a: jax.jit(jax.nn.gelu)(jax.jit(jax.nn.gelu)(a)) + lax.rsqrt(1 + jnp.square(a)),
    }  # fmt: skip
    for name, function in functions.items():
        model = to_onnx(function, x.shape, name)
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": x})[0]
        np.testing.assert_allclose(found, np.asarray(function(x)), rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_cannot_be_written_is_one_line(tmp_path, weighted, monkeypatch):
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match="there is no translation of JAX's operation sort"):
        to_onnx(lambda x: jnp.sort(x, 1), (1, 4, 4, 1), "sorted")
    with pytest.raises(InputError, match="format: 'tflite' is not one of stablehlo, onnx"):
        exported(weighted, "tflite", tmp_path / "network")
    with pytest.raises(InputError, match="batch_size: 0 is below 1"):
        exported(weighted, "onnx", tmp_path / "network", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"export: cannot write .*/file/network\.stablehlo"):
        exported(weighted, "stablehlo", tmp_path / "file" / "network")
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=r"pip install -r requirements-export\.txt"):
                exported(weighted, "onnx", tmp_path / "network")


def test_other_logits_do_not_agree(tmp_path):
    latency = Latency(1, 1, 1, 0)
    assert Checked(tmp_path, "", 9e-5, 0.5, latency).agrees
    assert not Checked(tmp_path, "", 2e-4, 0.5, latency).agrees
    assert Checked(tmp_path, "", 2e-4, 5.0, latency).agrees
    assert not Checked(tmp_path, "", float("nan"), 0.5, latency).agrees


@pytest.mark.slow
def test_a_training_is_exported_with_its_weights(tmp_path):
    """From the command line: what is written tests as well as the run's record says; a search says what to do."""

    def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"scripts/{script}.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    options = ["--dataset", "digits", "--epochs", "1"]
    run, search = str(tmp_path / "run"), str(tmp_path / "search")
    assert not call("train", "--arch", "minichain:" + SPACES["minichain"].to_string(SPACES["minichain"].sample(0)),
                    *options, "--out", run).returncode  # fmt: skip
    done = call("export", run, "--format", "stablehlo")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert "trained for 1 epochs from seed 0" in about["weights"]
    from nas.data import load_test
    from nas.record import read_run

    found = read_run(run)
    weighted = trained(SPACES["minichain"], found)
    test = load_test("digits")
    images = (test.images / 255 - np.array(about["mean"])) / np.array(about["std"])
    read = jax_export.deserialize(bytearray((tmp_path / "run" / "export" / "network.stablehlo").read_bytes()))
    logits = np.asarray(read.call(images.astype(np.float32)))
    accuracy = (logits.argmax(-1) == test.labels).mean()
    assert accuracy == pytest.approx(found.finals[0].test_accuracy, abs=1e-6)
    assert weighted.num_classes == 10
    call("search", "--space", "minichain", *options, "--trials", "1", "--engine", "local", "--out", search)
    failed = call("export", search)
    assert failed.returncode == 2
    assert "keeps no weights; train its best: python scripts/train.py --arch" in failed.stderr
