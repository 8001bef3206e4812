"""Streamed batches: what an image becomes, and that a batch depends on seed and step alone."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nas.data import streaming
from nas.data.streaming import (
    FolderImages,
    Stream,
    TfdsImages,
    evaluation_batches,
    top_k_accuracy,
    train_stream,
)
from nas.data.streaming_pixels import (
    Augmentation,
    adjusted,
    centre_view,
    random_box,
    ten_views,
    train_view,
)
from nas.errors import InputError
from nas.training import augment

SMALL = Augmentation(size=16, colour=0.4)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Uint8 [height, width, 3], smooth, so that a JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(values: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 13 and 8 images, of varying size, JPEG and PNG."""
    root = tmp_path_factory.mktemp("flowers")
    for number in range(21):
        name = root / ("rose" if number < 13 else "tulip") / f"{number:02d}.{'jpg' if number % 2 else 'png'}"
        name.parent.mkdir(exist_ok=True)
        name.write_bytes(encoded(pixels(40 + number, 60 - number, number), "JPEG" if number % 2 else "PNG"))
    return root


def stream(folder: Path, **settings: int) -> Stream:
    return train_stream(FolderImages(folder), 6, augmentation=SMALL, **{"threads": 2, **settings})  # pyright: ignore[reportArgumentType]


def take(batches: Stream, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        (x["image"] == y["image"]).all() and (x["label"] == y["label"]).all()
        for x, y in zip(a, b, strict=True)
    )


def test_batches_depend_on_seed_and_step_alone(folder: Path) -> None:
    first = take(stream(folder), 8)
    assert first[0]["image"].shape == (6, 16, 16, 3)
    assert (first[0]["image"].dtype, first[0]["label"].dtype) == (np.uint8, np.int32)
    assert same(first, take(stream(folder, threads=1), 8))
    assert not same(first, take(stream(folder, seed=1), 8))
    assert not same(first[:1], first[1:2])


def test_a_position_is_small_text_and_leads_to_the_same_batches(folder: Path) -> None:
    whole = take(stream(folder), 9)
    begun = stream(folder)
    take(begun, 5)  # in the middle of the second pass
    kept = json.dumps(begun.position())
    assert len(kept) < 100
    again = stream(folder)
    take(again, 1)
    again.go_to(json.loads(kept))
    assert same(take(again, 4), whole[5:])
    assert again.position()["step"] == 9
    assert same(take(begun, 4), whole[5:])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 7}, {"images": 20}, {"step": -1}, {"step": "2"}]
)
def test_a_position_of_another_stream_is_refused(folder: Path, change: dict[str, int]) -> None:
    batches = stream(folder)
    with pytest.raises(InputError, match=f"^stream: {next(iter(change))}"):
        batches.go_to(batches.position() | change)


def test_a_pass_has_every_image_once_and_the_next_one_another_order(folder: Path) -> None:
    source = FolderImages(folder)
    seen: list[int] = []
    read = source.read
    source.read = lambda number: seen.append(number) or read(number)
    batches = train_stream(source, 7, augmentation=SMALL, threads=1)
    take(batches, 6)
    assert sorted(seen[:21]) == sorted(seen[21:42]) == list(range(21))
    assert seen[:21] != seen[21:42]


def test_the_same_image_looks_different_in_the_next_pass(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encoded(pixels(40, 40)))
    batches = take(train_stream(FolderImages(tmp_path), 2, augmentation=SMALL), 3)
    views = {image.tobytes() for batch in batches for image in batch["image"]}
    assert len(views) == 6


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(folder: Path, processes: int) -> None:
    alone = take(stream(folder), 4)
    shares = [take(stream(folder, process=p, processes=processes), 4) for p in range(processes)]
    for step, batch in enumerate(alone):
        for p in range(processes):
            assert (shares[p][step]["image"] == batch["image"][p::processes]).all()
            assert (shares[p][step]["label"] == batch["label"][p::processes]).all()


def test_after_a_kill_the_stream_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """A process kept its position after each batch, and was killed by -9 in the middle of a pass."""
    program = (
        "import json, pathlib, sys, time\n"
        "from nas.data.streaming import *\n"
        "batches = train_stream(FolderImages(sys.argv[1]), 6, augmentation=Augmentation(size=16, colour=0.4))\n"
        "for batch in batches:\n"
        "    print(json.dumps([batches.position(), batch['image'].sum().item()]), flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    assert worker.stdout is not None
    seen = [json.loads(worker.stdout.readline()) for _ in range(5)]
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    whole = take(stream(folder), 8)
    assert [total for _, total in seen] == [batch["image"].sum().item() for batch in whole[:5]]
    after = stream(folder)
    after.go_to(seen[-1][0])
    assert same(take(after, 3), whole[5:])


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_image_once_in_order(folder: Path, processes: int) -> None:
    source = FolderImages(folder)
    shares = [
        list(evaluation_batches(source, 8, resize=20, crop=16, process=p, processes=processes))
        for p in range(processes)
    ]
    assert {len(share) for share in shares} == {3}
    labels = np.stack([np.stack([batch["label"] for batch in share]) for share in shares], axis=-1).ravel()
    assert labels.tolist() == [0] * 13 + [1] * 8 + [-1] * 3
    images = np.stack([np.stack([batch["image"] for batch in share]) for share in shares], axis=2)
    images = images.reshape(24, 16, 16, 3)
    assert (images[20] == centre_view(source.read(20)[0], 3, 20, 16)).all()
    (views, *_) = evaluation_batches(source, 8, resize=20, crop=16, views=10)
    assert views["image"].shape == (8, 10, 16, 16, 3)
    # Scaled first and cut then, or in one step: what lies beyond the cut shows at the edges alone.
    inner = np.s_[:, 2:-2, 2:-2]
    assert abs(views["image"][:, 4][inner].astype(int) - images[:8][inner]).max() <= 2


def test_centre_view_of_an_image_of_that_size_is_its_middle() -> None:
    values = pixels(32, 48)
    assert (centre_view(encoded(values), 3, 32, 24) == values[4:28, 12:36]).all()


def test_ten_views_are_corners_centre_and_their_mirrors() -> None:
    values = pixels(20, 20)
    views = ten_views(encoded(values), 3, 20, 16)
    for view, (top, left) in zip(views, [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)], strict=False):
        assert (view == values[top : top + 16, left : left + 16]).all()
    assert (views[5:] == views[:5, :, ::-1]).all()


def test_a_crop_is_the_scaled_box() -> None:
    """The same box, cut by numpy and scaled by Pillow, mirrored or not."""
    values = pixels(40, 50)
    augmentation = Augmentation(size=16)
    mirrored = set()
    for seed in range(10):
        left, top, right, bottom = random_box(
            50, 40, augmentation.area, augmentation.ratio, np.random.default_rng(seed)
        )
        part = Image.fromarray(values[int(top) : int(bottom), int(left) : int(right)])
        wanted = np.asarray(part.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        view = train_view(encoded(values), 3, augmentation, np.random.default_rng(seed)).astype(int)
        # Cut first, the edges see nothing beyond the cut; inside they are equal to rounding.
        plain, flipped = (abs(view - of)[2:-2, 2:-2].max() for of in (wanted, wanted[:, ::-1]))
        assert min(plain, flipped) <= 2 < max(plain, flipped)
        mirrored.add(bool(flipped < plain))
    assert mirrored == {True, False}


def test_boxes_have_the_areas_and_shapes_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, (0.08, 1), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert (boxes <= [400, 300, 400, 300]).all()
    area, ratio = width * height / 120_000, width / height
    assert 0.075 < area.min() < 0.09
    assert area.max() > 0.9
    assert 0.73 < ratio.min() < 0.76
    assert 1.3 < ratio.max() < 1.36
    small = np.array([random_box(400, 300, (0.1, 0.3), (0.5, 2), rng) for _ in range(2000)])
    shape = np.log((small[:, 2] - small[:, 0]) / (small[:, 3] - small[:, 1]))
    assert abs(shape.mean()) < 0.03
    assert shape.std() == pytest.approx(2 * np.log(2) / 12**0.5, rel=0.05)  # of a uniform draw
    assert random_box(1000, 10, (0.9, 1), (3 / 4, 4 / 3), rng) == (493, 0, 506, 10)


def test_a_jpeg_decoded_at_a_part_of_its_size_looks_the_same() -> None:
    file = encoded(pixels(600, 800), "JPEG")
    small = centre_view(file, 3, 64, 56).astype(int)
    whole = centre_view(encoded(np.asarray(Image.open(io.BytesIO(file)))), 3, 64, 56).astype(int)
    assert abs(small - whole).mean() < 1.5
    assert (small != whole).any()


def test_an_image_that_lies_on_its_side_is_set_upright() -> None:
    values = pixels(40, 24)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    Image.fromarray(np.rot90(values)).save(file, "JPEG", quality=100, subsampling=0, exif=exif)
    upright = centre_view(file.getvalue(), 3, 24, 24).astype(int)
    assert abs(upright - values[8:32]).mean() < 2


def test_colour_and_lighting_are_those_of_the_device() -> None:
    """`augment.adjust_colour` in float32, which has no matrix, plus the lighting of Krizhevsky et al. 2012."""
    values = pixels(20, 30) // 2 + 60  # far from black and white: nothing is clipped
    factors, offset = np.array([1.1, 0.8, 1.3]), np.array([0.02, -0.03, 0.01])
    zero, one = jnp.zeros(3), jnp.ones(3)
    wanted = augment.adjust_colour(jnp.asarray(values[None] / 255.0), jnp.asarray(factors[None]), zero, one)[
        0
    ]
    found = adjusted(values, factors, offset)
    assert abs(found - 255 * (np.asarray(wanted) + offset)).max() < 0.51
    grey = values[..., :1]
    assert abs(adjusted(grey, np.array([1.0, 1.0, 0.3]), np.zeros(1)).astype(int) - grey).max() == 0
    assert adjusted(values, np.array([9.0, 1, 1]), np.zeros(3)).max() == 255


def test_lighting_adds_multiples_of_the_principal_components() -> None:
    """The covariance of what is added to many images is that of 0.1 l_i p_i, l_i the eigenvalues: [4.1]."""
    covariance = np.array([[0.07, 0.05, 0.04], [0.05, 0.06, 0.05], [0.04, 0.05, 0.08]])
    augmentation = Augmentation(
        size=8,
        area=(1, 1),
        ratio=(1, 1),
        flip=False,
        components=10 * augment.principal_components(covariance),
    )
    file = encoded(np.full((8, 8, 3), 128, np.uint8))
    rng = np.random.default_rng(0)
    added = np.array([train_view(file, 3, augmentation, rng)[0, 0] / 255 - 128 / 255 for _ in range(3000)])
    wanted = 100 * 0.01 * covariance @ covariance  # sum of (0.1 l_i)^2 p_i p_i^T, ten times as large
    assert abs(np.cov(added.T) - wanted).max() < 0.05 * wanted.max()


def test_tfds_records_are_streamed() -> None:
    data = next(
        (
            path
            for path in (os.environ.get("TFDS_DATA_DIR"), Path(__file__).parents[3] / "shared/data/tfds")
            if path and Path(path, "cifar10").is_dir()
        ),
        None,
    )
    if data is None:
        pytest.skip("no prepared cifar10")
    source = TfdsImages("cifar10", "test", data)
    assert (len(source), source.num_classes, source.channels) == (10_000, 10, 3)
    batches = train_stream(source, 8, augmentation=SMALL)
    first = take(batches, 2)
    batches.go_to(batches.position() | {"step": 1})
    assert same(take(batches, 1), first[1:])
    found = streaming.statistics(source, images=500, size=32)
    assert abs(found["mean"] - [0.494, 0.485, 0.450]).max() < 0.03  # of the whole split
    with pytest.raises(InputError, match=r"split: 'tset' is not one of train, test .did you mean test"):
        TfdsImages("cifar10", "tset", data)


def test_a_damaged_image_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(encoded(pixels(30, 30), "JPEG")[:300])
    with pytest.raises(InputError, match=r"^dataset: .*1\.jpg is damaged \("):
        next(train_stream(FolderImages(tmp_path), 2, augmentation=SMALL))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"processes": 4, "process": 0}, "batch_size: 6 is not a multiple of the 4 processes"),
        ({"processes": 2, "process": 2}, "process: 2 is not from 0 to 1"),
        ({"seed": -1}, "stream: seed -1 is not from 0 to 4294967295"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, settings: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        stream(folder, **settings)


def test_top_k_accuracy_counts_labels_among_the_largest() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 20)), rng.integers(0, 20, 200)
    for k in (1, 5, 20):
        ranks = [sum(value > row[label] for value in row) for row, label in zip(logits, labels, strict=True)]
        assert top_k_accuracy(logits, labels, k) == pytest.approx(np.mean([rank < k for rank in ranks]))
    assert top_k_accuracy(np.zeros((1, 6)), np.array([5])) == 0  # of equals the lower class comes first
    assert top_k_accuracy(np.zeros((2, 6)), np.array([4, -1])) == 1
    assert top_k_accuracy(np.full((1, 6), np.nan), np.array([0])) == 0
    with pytest.raises(InputError, match="k: 5 is not from 1 to the 3 classes"):
        top_k_accuracy(np.zeros((1, 3)), np.array([0]))


@pytest.mark.slow
def test_the_benchmark_makes_its_files_and_measures(tmp_path: Path) -> None:
    data = os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[3] / "shared/data/tfds"
    if not all(Path(data, name).is_dir() for name in ("cifar10", "mnist")):
        pytest.skip("no prepared cifar10 and mnist")
    script = Path(__file__).parents[2] / "scripts" / "bench_input.py"
    options = [
        "--images",
        "40",
        "--batch",
        "8",
        "--seconds",
        "0.2",
        "--rounds",
        "1",
        "--folder",
        str(tmp_path),
    ]
    command = [sys.executable, str(script), *options, "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "40 files of 400 x 300" in done.stdout
    assert "images/s" in done.stdout
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert len(files) == 40
    assert len({file.parent for file in files}) == 20
    with Image.open(files[0]) as image:
        assert image.size == (400, 300)
