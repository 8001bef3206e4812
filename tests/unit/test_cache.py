"""The cache is its user's alone, and a stored program is found by what it is made of."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import sys
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from nas.cache import cache_folder, is_safe
from nas.cpu import native
from nas.data import load
from nas.errors import InputError
from nas.training import programs, stored
from search_spaces import chain

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    native.native_status()  # built in the cache of all tests
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def given_away(path, monkeypatch):
    """As if another user owned ``path``."""
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        owner = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)


def test_it_is_created_for_its_user_alone(cache):
    before = os.umask(0o002)
    try:
        kernels = native._cache_folder()  # which does without the rest of nas
        folder = cache_folder("programs")
    finally:
        os.umask(before)
    assert folder == cache / "programs"
    assert [path.stat().st_mode & 0o777 for path in (cache, kernels, folder)] == [0o700, 0o700, 0o700]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_others_can_write_to_is_refused(cache, mode, inner):
    folder = cache_folder("programs")
    (folder if inner else cache).chmod(mode)
    with pytest.raises(InputError, match=rf"cache: .*writable by others \(mode {mode:04o}\).*NAS_CACHE_DIR"):
        cache_folder("programs")
    (folder if inner else cache).chmod(0o755)  # which others may read
    cache_folder("programs")


def test_a_folder_of_another_user_is_refused(cache, monkeypatch):
    cache_folder("programs")
    given_away(cache, monkeypatch)
    with pytest.raises(InputError, match=r"belongs to the user \w+"):
        cache_folder("programs")


@pytest.fixture
def no_compilation_cache():
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_compilation_cache")
def test_all_that_reads_the_cache_refuses_it(cache):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(InputError, match="writable by others"):
        stored.use_compilation_cache()
    with pytest.raises(InputError, match="writable by others"):
        stored.stored("f", (), Layer(3), lowered)
    with pytest.raises(OSError, match="can be written by others"):
        native._cache_folder()  # kernels are then built for this process alone
    with pytest.raises(InputError, match="writable by others"):
        load("digits")


class Layer(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


def lowered(name):
    def f(x):
        return x + 1

    f.__name__ = name
    return jax.jit(f).lower(jnp.zeros(3))


class Ran:
    """Pickled, what leaves a trace when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("whose", ["others' mode", "another's"])
def test_a_program_that_others_can_have_written_is_not_loaded(cache, tmp_path, monkeypatch, whose):
    path = cache_folder("programs") / str(stored._key("f", (), Layer(3), lowered))
    path.write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    if whose == "another's":
        if os.getuid():
            pytest.skip("only root can give a file away and keep its folder")
        given_away(path, monkeypatch)
    else:
        path.chmod(0o666)
    assert not is_safe(path)
    program = stored.stored("f", (), Layer(3), lowered)
    assert program(jnp.zeros(3)).tolist() == [1, 1, 1]
    assert not (tmp_path / "ran").exists()
    path.unlink()
    path.write_bytes(pickle.dumps(Ran(tmp_path / "ran")))
    path.chmod(0o600)
    stored.stored("f", (), Layer(3), lowered)
    assert (tmp_path / "ran").exists()  # so the test would see it


@pytest.fixture
def key_of(monkeypatch, tmp_path):
    """Writes modules, imports them anew, and gives the key of ``my_network.Mine(act)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def key(act=None, **texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        sys.modules.pop("my_network", None)
        stored._sources.cache_clear()
        return stored._key("f", (), importlib.import_module("my_network").Mine(act), lowered)

    yield key
    for name in ("helping", "my_network"):
        sys.modules.pop(name, None)


NETWORK = "import flax.linen as nn\nimport helping\nclass Mine(nn.Module):\n    act: object = None\n"


def test_a_program_is_found_by_what_it_is_made_of(key_of, monkeypatch):
    first = key_of(helping="WIDTH = 3\n", my_network=NETWORK)
    assert first is not None
    assert key_of() == first
    second = key_of(helping="WIDTH = 4\n")
    assert second not in (None, first)
    assert key_of(helping="WIDTH = 3\n") == first
    for patch in (
        lambda patched: patched.setattr(flax, "__version__", "0.0"),
        lambda patched: patched.setenv("NAS_NATIVE", "maybe"),
        lambda patched: patched.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
    ):
        with monkeypatch.context() as patched:
            patch(patched)
            assert key_of() not in (None, first)
    monkeypatch.setenv("NAS_BENCH_DIR", "elsewhere")
    assert key_of() == first


def test_functions_are_told_apart(key_of):
    def times(width):
        return lambda x: x * width

    functions = (nn.relu, nn.silu, nn.gelu, times(2), times(3), lambda x: x + 2, lambda x: x + 3)
    functions += (functools.partial(nn.elu, alpha=1), functools.partial(nn.elu, alpha=2))
    functions += (
        nn.initializers.he_normal(),
        nn.initializers.lecun_normal(),
        nn.BatchNorm,
        nn.Dense(3),
        nn.Dense(4),
    )
    keys = [key_of(function, helping="", my_network=NETWORK) for function in functions]
    assert None not in keys
    assert len(set(keys)) == len(functions)
    assert key_of(times(2)) == keys[3]
    assert key_of(object()) is None  # it has an address alone


def test_a_stored_program_survives_a_change_to_what_draws_it(monkeypatch):
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(str(path)) or read_bytes(path))
    stored._sources.cache_clear()
    assert stored._sources(frozenset({programs.__name__, chain.__name__}))
    names = {path.partition(f"{ROOT}{os.sep}")[2] for path in read}
    assert {"nas/training/programs.py", "nas/training/optimiser.py", "nas/cpu/native.py"} <= names
    assert "search_spaces/chain.py" in names
    others = ("nas/record", "nas/report", "nas/run", "nas/strategies", "nas/data", "search_spaces/resnet")
    assert not [name for name in names if name.startswith(others)]
