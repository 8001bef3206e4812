"""Batches from data on the devices, and what is counted over them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nas.data import Split
from nas.data.encoded import Encoded
from nas.errors import InputError
from nas.training import augment, own_augment
from nas.training.programs import Batch, count_correct, data_mesh, spread


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """Images that stay on the host, memory-mapped: ``parts`` uint8 [n_i, H, W, C], one behind the other."""

    parts: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(map(len, self.parts)), *self.parts[0].shape[1:]

    def take(self, index: np.ndarray) -> np.ndarray:
        """Uint8 [len(index), H, W, C]."""
        taken = np.empty((len(index), *self.shape[1:]), np.uint8)
        first = 0
        for part in self.parts:
            here = (first <= index) & (index < first + len(part))
            taken[here] = part[index[here] - first]
            first += len(part)
        return taken


class Data(NamedTuple):
    """One split on the devices, with what turns its pixels into inputs."""

    images: Any  # uint8 [n, H, W, C], or `Streamed`, or `Encoded`
    labels: Array  # int32 [n]
    mean: Array  # float32 [C]
    std: Array  # float32 [C]
    covariance: np.ndarray | None = None  # [C, C] of the training pixels, for the augmentation pca


def on_device(split: Split, mean: np.ndarray, std: np.ndarray, devices: int = 1) -> Data:
    """``split`` where training reads it, whole on each device; on CPU the memory map itself if it can be."""
    if isinstance(split.images, Encoded):
        raise InputError("dataset: with resize images stay in their files; this needs them decoded")
    mesh = data_mesh(devices)
    if mesh is not None and jax.process_count() > 1:
        return _shared(split, mean, std, mesh)
    where = NamedSharding(mesh, PartitionSpec()) if mesh else None
    values = (split.images, split.labels, np.asarray(mean), np.asarray(std))
    return Data(*(jax.device_put(value, where, may_alias=True) for value in values))


def streamed(split: Split, mean: np.ndarray, std: np.ndarray) -> Data:
    """``split`` where it is; `fetched` brings what a batch needs to the device."""
    labels, mean, std = (np.asarray(of) for of in (split.labels, mean, std))
    images = split.images if isinstance(split.images, Encoded) else Streamed((split.images,))
    return Data(images, labels, mean, std)  # pyright: ignore[reportArgumentType]


def fetched(data: Data, plan: dict[str, Any]) -> tuple[Data, dict[str, Any]]:
    """Both for the device: of streamed ``data`` the images that ``plan`` names alone, and a plan that names those."""
    if not isinstance(data.images, Streamed | Encoded):
        return data, plan
    index = np.asarray(plan["index"])
    return _only(data, plan, index, data.images.take(index.ravel()))


def _only(
    data: Data, plan: dict[str, Any], index: np.ndarray, images: np.ndarray
) -> tuple[Data, dict[str, Any]]:
    """``data`` with nothing but the ``images`` at ``index``, and the plan of these."""
    rest = {name: of for name, of in plan.items() if name != "view"}
    labels = np.asarray(data.labels)[index.ravel()]
    own = np.arange(index.size, dtype=np.int32).reshape(index.shape)
    return data._replace(images=images, labels=labels), {**rest, "index": own}


def blank(data: Data) -> Data:
    """``data`` with black images where they would have to be decoded: for shapes."""
    if not isinstance(data.images, Encoded):
        return data
    return data._replace(images=Streamed((np.broadcast_to(np.uint8(0), data.images.shape),)))


def ahead(
    data: Data, plan: dict[str, np.ndarray], first: int, size: int
) -> Iterator[tuple[Data, dict[str, Any]]]:
    """`fetched`, for every ``size`` steps of ``plan`` from step ``first`` on; where they end before, the last again.

    Images in their files are read and decoded ahead of the steps that want them.
    """
    count = len(plan["index"])
    pixels = iter(())
    if isinstance(data.images, Encoded):
        seeds = plan["view"][first:] if "view" in plan else None
        pixels = data.images.batches(plan["index"][first:], seeds)
    for start in range(first, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        now = {name: values[rows] for name, values in plan.items()}
        if not isinstance(data.images, Encoded):
            yield fetched(data, now)
            continue
        some = list(itertools.islice(pixels, min(size, count - start)))
        some += some[-1:] * (size - len(some))
        yield _only(data, now, now["index"], np.concatenate(some))


def in_order(
    data: Data, size: int, views: Sequence[dict[str, np.ndarray]]
) -> Iterator[tuple[int, list[tuple[Data, dict[str, Any]]]]]:
    """All images, ``size`` at a time: how many of them count, and for each of the ``views`` what `make_batch` takes.

    The last ones are filled up. Ten views of images in their files are those of `nas.data.streaming_pixels.ten_views`.
    """
    count = len(data.labels)
    index = np.arange(-(-count // size) * size, dtype=np.int32)
    index = np.where(index < count, index, 0).reshape(-1, size)
    pixels = iter(())
    if isinstance(data.images, Encoded):
        pixels = data.images.batches(index, ten=bool(views))
    for k, chosen in enumerate(index):
        plan: dict[str, Any] = {"index": chosen}
        if isinstance(data.images, Encoded):
            of = next(pixels)
            seen = [_only(data, plan, chosen, one) for one in (np.moveaxis(of, 1, 0) if views else (of,))]
        else:
            seen = [fetched(data, plan | view) for view in views or ({},)]
        yield min(size, count - k * size), seen


def _shared(split: Split, mean: np.ndarray, std: np.ndarray, mesh: Mesh) -> Data:
    """``split`` over the devices of all processes, each of which reads its share of the images alone."""
    count, whole = len(split.labels), PartitionSpec()
    share = -(-count // mesh.size)
    shape = (share * mesh.size, *split.images.shape[1:])

    def images(index: Any) -> np.ndarray:
        first = index[0].start or 0
        own = split.images[first : first + share]
        return np.pad(own, ((0, share - len(own)), *[(0, 0)] * (own.ndim - 1)))  # beyond the last: never read

    placed = jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec("data")), images)
    labels, mean, std = (np.asarray(of) for of in (split.labels, mean, std))
    return Data(placed, *(spread(of, mesh, whole) for of in (labels, mean, std)), covariance=None)


@functools.partial(jax.jit, static_argnames=("num_classes", "dtype", "mesh"))
def make_batch(
    data: Data,
    plan: dict[str, Array],
    smoothing: Array | float,
    *,
    num_classes: int,
    dtype: str,
    mesh: Any = None,
) -> Batch:
    """The batch that ``plan`` (one step of `augment.draw`, and ``index`` int32 [B]) describes.

    Targets are one-hot, smoothed by Szegedy et al. 2016 (``smoothing`` spread over all classes).
    """
    given = (data.images, plan["index"], data.mean, data.std)
    if "shift" in plan:
        images = augment.gather_augmented(*given, plan["shift"], plan["flip"], plan["cutout"])
    else:
        images = augment.gather_images(*given)
    if "colour" in plan:
        images = augment.adjust_colour(images, plan["colour"], data.mean, data.std)
    if "offset" in plan:
        images = images + (plan["offset"] / data.std)[:, None, None, :]
    images = own_augment.apply(images, plan, data.mean, data.std)
    labels, target = augment.gather_targets(data.labels, plan["index"], num_classes, smoothing)
    if "mix" in plan:
        images, target = (plan["mix"] * a + (1 - plan["mix"]) * a[::-1] for a in (images, target))
        labels = jnp.where(plan["mix"] < 0.5, labels[::-1], labels)  # of the image that is most to be seen
    batch = Batch(images.astype(dtype), target, labels)
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))


@jax.jit
def tally(sums: Array, loss: Array, logits: Array, labels: Array) -> Array:
    """``sums`` float32 [3] (of losses, correct, images) plus those of a training batch."""
    count = jnp.float32(len(labels))
    return sums + jnp.stack([loss * count, count_correct(logits, labels), count])


@jax.jit
def tally_padded(sums: Array, logits: Array, batch: Batch, count: Array) -> Array:
    """``sums`` plus those of an evaluation batch of which the first ``count`` images count."""
    real = jnp.arange(len(batch.labels)) < count
    losses = optax.softmax_cross_entropy(logits, batch.target)
    correct = count_correct(logits, jnp.where(real, batch.labels, -1))
    return sums + jnp.stack([jnp.sum(jnp.where(real, losses, 0)), correct, count.astype(jnp.float32)])


@jax.jit
def count_top5(logits: Array, labels: Array, count: Array) -> Array:
    """How many of the first ``count`` labels are among the five largest of their row of ``logits``."""
    _, best = jax.lax.top_k(logits, 5)
    right = (best == labels[:, None]).any(axis=-1) & (jnp.arange(len(labels)) < count)
    return right.sum(dtype=jnp.float32)


@jax.jit
def mean_probabilities(logits: list[Array]) -> Array:
    """Logits [B, classes] whose softmax is the mean of the softmaxes of ``logits``."""
    return jax.nn.logsumexp(jax.nn.log_softmax(jnp.stack(logits)), axis=0)


class Averages(NamedTuple):
    loss: float
    accuracy: float
    top5_accuracy: float = math.nan


def averages(sums: Array | np.ndarray) -> Averages:
    loss, correct, count = np.asarray(sums, np.float64).tolist()
    return Averages(loss / count, correct / count)
