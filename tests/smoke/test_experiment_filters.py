"""experiments/filter_gallery.py: what is drawn is what the filters give."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

from nas.data import load
from nas.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("filter_gallery")


@pytest.mark.slow
def test_from_a_shell(tmp_path):
    script = ROOT / "experiments" / "filter_gallery.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "run"), "--image", "mnist5k:7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    path = tmp_path / "run" / "gallery.png"
    assert ended.stdout.split() == [str(path), str(path.with_name("result.json"))]
    drawn = np.asarray(Image.open(path).convert("L"))
    assert min(drawn.shape) > 500
    assert drawn.std() > 30


@pytest.mark.parametrize("source", ["china", "flower", "mnist5k:3"])
def test_what_is_drawn_is_scipys_cross_correlation(gallery, source):
    image = gallery.read(source, None, 60)
    assert image.std() > 0.1
    assert max(image.shape) <= 60
    responses = gallery.responses(image)
    figure = gallery.draw(image, responses)
    pictures = [
        np.asarray(axes.images[0].get_array()).reshape(*axes.images[0].get_size(), -1) for axes in figure.axes
    ]
    np.testing.assert_array_equal(pictures[0], image)
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes[1:]]
    assert titles == ["edges 1", "edges 2", "edges 3", "sharpen", "box blur", "Gaussian blur"]
    for picture, title in zip(pictures[1:], titles, strict=True):
        expected = np.stack(
            [correlate2d(channel, WEIGHTS[title], "valid") for channel in np.moveaxis(image, 2, 0)], -1
        )
        np.testing.assert_allclose(responses[title], expected, atol=1e-5)
        np.testing.assert_allclose(picture, np.clip(expected, 0, 1), atol=1e-5)


WEIGHTS = {
    "edges 1": np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1]]),
    "edges 2": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
    "edges 3": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "box blur": np.full((3, 3), 1 / 9),
    "Gaussian blur": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
}


def test_flat_areas_go_black_or_stay(gallery):
    """The claim: edge detectors' weights sum to 0, the others' to 1."""
    for name, response in gallery.responses(np.full((5, 6, 3), 0.6, np.float32)).items():
        assert response.shape == (3, 4, 3)
        np.testing.assert_allclose(response, 0.0 if name.startswith("edges") else 0.6, atol=1e-6)


def test_images_come_from_files_and_data_sets(gallery, tmp_path):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(gallery.read(str(tmp_path / "a.png"), None, 100) * 255, pixels)
    image = gallery.read("mnist5k:3", None, 100)
    np.testing.assert_allclose(image * 255, load("mnist5k").train.images[3], atol=1e-4)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.png", "none of china, flower, a file, or DATASET:INDEX"),
        ("mnist5k:99999", "mnist5k has training images 0.."),
        ("{folder}/bad.png", "cannot be read"),
        ("{folder}/tiny.png", "is 2x9, smaller than a 3x3 filter"),
    ],
)
def test_bad_input_is_one_line(gallery, tmp_path, source, says):
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (9, 2)).save(tmp_path / "tiny.png")
    with pytest.raises(InputError) as error:
        gallery.main(gallery.Config(out=tmp_path / "run", image=source.format(folder=tmp_path)))
    assert str(error.value).startswith("image: ")
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_results_is_left_alone(gallery, tmp_path):
    (tmp_path / "gallery.png").write_text("mine")
    with pytest.raises(InputError, match="is not empty; go on with --resume or choose another --out"):
        gallery.main(gallery.Config(out=tmp_path))
    assert (tmp_path / "gallery.png").read_text() == "mine"
