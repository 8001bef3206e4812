"""What classic 3x3 filters make of a photograph: python experiments/filter_gallery.py --image flower

Three edge detectors, sharpening, a box blur and a Gaussian blur, slid over each colour channel by the
convolution that the networks use, in one figure: gallery.png. `responses` has the numbers behind it; drawing
cuts them off at black and white, 0 and 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from _experiment import Claim, ExperimentConfig, Interval, Number, exactly, leave_result, result_folder, run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_sample_image

from nas.data import load
from nas.errors import InputError
from nas.nn.layers import conv2d
from nas.report.plots import save

CLAIM = Claim(
    experiment="filter_gallery",
    paper="no paper: the filters of the lecture, as in textbooks of image processing",
    where="the gallery of filters",
    says="weights that sum to 0 leave edges alone and make flat areas black; those that sum to 1 keep flat areas",
    hardware_hours="none",
    past="gallery.png as described, from `python experiments/filter_gallery.py`: 5 s of one CPU core",
    numbers=(
        Number(
            "edges_flat",
            "largest output of the edge filters on a flat image of 1",
            0.0,
            6,
            comparable=("cpu", "paper"),
        ),
        Number(
            "blur_flat",
            "smallest output of the box blur on a flat image of 1",
            1.0,
            6,
            comparable=("cpu", "paper"),
        ),
    ),
)


class Filter(NamedTuple):
    """3x3 weights: ``rows`` over ``whole``."""

    rows: tuple[tuple[int, int, int], ...]
    whole: int = 1

    @property
    def weights(self) -> np.ndarray:
        return np.array(self.rows, np.float32) / self.whole

    def written(self) -> str:
        """Three lines of text."""
        lines = [" ".join(f"{number:2}" for number in row) for row in self.rows]
        if self.whole > 1:
            lines[1] += f"  / {self.whole}"
        return "\n".join(line.ljust(len(lines[1])) for line in lines)


FILTERS = {
    "edges 1": Filter(((1, 0, -1), (0, 0, 0), (-1, 0, 1))),
    "edges 2": Filter(((0, 1, 0), (1, -4, 1), (0, 1, 0))),
    "edges 3": Filter(((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))),
    "sharpen": Filter(((0, -1, 0), (-1, 5, -1), (0, -1, 0))),
    "box blur": Filter(((1, 1, 1), (1, 1, 1), (1, 1, 1)), 9),
    "Gaussian blur": Filter(((1, 2, 1), (2, 4, 2), (1, 2, 1)), 16),
}
PHOTOGRAPHS = ("china", "flower")  # that scikit-learn brings along
SCALES = {"smoke": 160, "cpu": 320, "paper": 640}  # pixels of the image's longer side, at most


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Draw what classic filters make of an image in gallery.png; the scale is how large the image is."""

    image: str = "china"
    """china or flower (photographs), an image file, or DATASET:INDEX, such as cifar10:7, of training images"""


def main(config: Config) -> None:
    out = result_folder(config, "filter_gallery")
    image = read(config.image, config.data_dir, SCALES[config.scale])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{out}: is not a folder") from None
    save(draw(image, responses(image)), out / "gallery.png")
    print(out / "gallery.png")
    leave_result(out, CLAIM, config.scale, numbers(), seeds=1, resumed=config.resume)


def numbers() -> dict[str, Interval]:
    """What the filters make of a flat image of 1."""
    flat = responses(np.ones((8, 8, 1), np.float32))
    edges = max(float(np.abs(of).max()) for name, of in flat.items() if name.startswith("edges"))
    return {"edges_flat": exactly(edges), "blur_flat": exactly(float(flat["box blur"].min()))}


def read(source: str, data_dir: str | None, longest: int) -> np.ndarray:
    """The image [H, W, C], C = 1 or 3, from 0 to 1, scaled down where a side is above ``longest`` pixels.

    Raises InputError where there is none.
    """
    name, colon, index = source.rpartition(":")
    if source in PHOTOGRAPHS:
        image = Image.fromarray(load_sample_image(f"{source}.jpg"))
    elif Path(source).is_file():
        try:
            image = Image.open(source).convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputError(f"image: {source} cannot be read ({error})") from None
    elif colon and index.isdecimal():
        images = load(name, data_dir=data_dir).train.images
        if int(index) >= len(images):
            raise InputError(f"image: {name} has training images 0..{len(images) - 1}, no {index}")
        pixels = np.asarray(images[int(index)])
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    else:
        known = ", ".join(PHOTOGRAPHS)
        raise InputError(f"image: {source} is none of {known}, a file, or DATASET:INDEX such as mnist5k:0")
    image.thumbnail((longest, longest))
    pixels = np.asarray(image, np.float32) / 255
    if min(pixels.shape[:2]) < 3:
        raise InputError(f"image: {source} is {image.height}x{image.width}, smaller than a 3x3 filter")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def responses(image: np.ndarray) -> dict[str, np.ndarray]:
    """Each filter's output [H - 2, W - 2, C] on each channel of ``image`` [H, W, C]; no padding."""
    channels = image.shape[2]
    found = {}
    for name, each in FILTERS.items():
        kernel = np.repeat(each.weights[:, :, None, None], channels, axis=3)
        y = conv2d(jnp.asarray(image)[None], jnp.asarray(kernel), "VALID", groups=channels)
        found[name] = np.asarray(y[0])
    return found


def draw(image: np.ndarray, filtered: Mapping[str, np.ndarray]) -> Figure:
    """The image and each filter's output, with the filter below its name."""
    height = 2 * (0.8 + 3.0 * image.shape[0] / image.shape[1])
    figure = Figure(figsize=(12.0, height), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    show(figure.add_subplot(grid[:, 0]), image, "image")
    for i, (name, output) in enumerate(filtered.items()):
        axes = figure.add_subplot(grid[i // 3, 1 + i % 3])
        show(axes, output, f"{name}\n{FILTERS[name].written()}")
    return figure


def show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(np.clip(pixels, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8, family="monospace")
    axes.axis("off")


if __name__ == "__main__":
    run(main)
