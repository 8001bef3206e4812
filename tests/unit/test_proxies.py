"""Scores of three hand-made networks against plain float64 arithmetic with explicit Jacobians and Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

from nas import proxies
from nas.errors import InputError
from nas.nn.graph import Builder
from nas.nn.layers import CellAverage, Dense, NormAct, conv
from nas.objectives.train import build, size_of
from nas.proxies import PROXIES, Probe, ScoreError, gradients, kernels, patterns
from nas.training.programs import Batch
from search_spaces import nasbench201
from search_spaces.nasbench201 import First, ReluConvNorm

BATCH, IMAGE, CLASSES = 4, (5, 6, 2), 3


class Trace:
    """What a forward pass by hand leaves behind; ``gates`` multiply, ``added[k]`` is added to layers' outputs."""

    def __init__(self, added: Mapping[int, Any] | None = None, linear: bool = False) -> None:
        self.added, self.linear = added or {}, linear
        self.rectified: list[np.ndarray] = []
        self.layers: list[np.ndarray] = []
        self.kernels: list[tuple[int, ...]] = []
        self.variances: list[np.ndarray] = []
        self.map: Any = None

    def layer(self, y):
        y = y + self.added.get(len(self.layers), 0)
        self.layers.append(y)
        return self._seen(y)

    def relu(self, x):
        if self.linear:
            return x
        y = np.where(x.real > 0, x, 0)
        self.rectified.append(y)
        return self._seen(y)

    def conv(self, x, kernel, bias=0.0):
        rows, columns, _, _ = kernel.shape
        padded = np.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
        height, width = x.shape[1:3]
        y = 0
        for i in range(rows):
            for j in range(columns):
                y = y + padded[:, i : i + height, j : j + width] @ kernel[i, j]
        self.kernels.append(kernel.shape)
        return self.layer(y) + bias

    def norm(self, x, p):
        if self.linear:
            return x
        mean = x.mean((0, 1, 2))
        variance = ((x - mean) ** 2).mean((0, 1, 2))
        self.variances.append(variance)
        return self._seen((x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"])

    def dense(self, x, p):
        self.kernels.append(p["kernel"].shape)
        return self.layer(x @ p["kernel"]) + p["bias"]

    def _seen(self, y):
        if y.ndim == 4:
            self.map = y
        return y


class Plain(nn.Module):
    """An ordinary Flax module without normalisation."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(3, (3, 3), name="a")(x))
        x = nn.relu(nn.Conv(4, (3, 3), name="b")(x))
        return nn.Dense(CLASSES, name="c")(x.mean((1, 2)))


def plain(p, x, t: Trace):
    x = t.relu(t.conv(x, p["a"]["kernel"], p["a"]["bias"]))
    x = t.relu(t.conv(x, p["b"]["kernel"], p["b"]["bias"]))
    return t.dense(x.mean((1, 2)), p["c"])


class Normalised(nn.Module):
    """An ordinary Flax module with its own batch normalisation and a hidden dense layer."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, name="a")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="n")(x))
        x = nn.relu(nn.Dense(5, name="b")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="c")(x)


def normalised(p, x, t: Trace):
    x = t.relu(t.norm(t.conv(x, p["a"]["kernel"]), p["n"]))
    x = t.relu(t.dense(x.reshape(len(x), -1), p["b"]))
    return t.dense(x, p["c"])


def graph():
    """Fused kernels, a shortcut, a branch that nothing comes of."""
    b = Builder()
    x = b.add("stem", conv(3, padding=1), 0)
    x = b.add("norm", NormAct("batch", "relu"), x)
    unused = b.add("unused", ReluConvNorm(3, 1), x)
    y = b.add("inner", ReluConvNorm(3, 3), x, x)
    y = b.add("first", First(), y, unused)
    y = b.add("last", NormAct("batch", "relu"), y, x)
    b.add("logits", Dense(CLASSES), b.add("average", CellAverage(1), y))
    return b.graph()


def graph_by_hand(p, x, t: Trace):
    def inner(x, p):
        return t.norm(t.conv(t.relu(x), p["conv"]["kernel"]), p["norm"])

    x = t.relu(t.norm(t.conv(x, p["stem"]["kernel"]), p["norm"]))
    inner(x, p["unused"])
    y = inner(x, p["inner"]) + x
    y = t.relu(t.norm(y, p["last"]) + x)
    return t.dense(y.mean((1, 2)), p["logits"])


class Case(NamedTuple):
    network: Any
    by_hand: Callable[..., Any]
    variables: dict[str, Any]
    batches: list[Batch]

    def probe(self, **options: Any) -> Probe:
        return Probe(self.network, self.variables, IMAGE, self.batches, **options)


def case_of(network: Any, by_hand: Any, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    variables = proxies.initial_variables(network, IMAGE, seed)

    def shifted(path, leaf):  # so that biases and scales are not neutral
        return np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), np.float32)

    variables["params"] = jax.tree.map_with_path(shifted, variables["params"])
    batches = []
    for _ in range(3):
        images = rng.standard_normal((BATCH, *IMAGE), np.float32)
        labels = rng.integers(0, CLASSES, BATCH)
        batches.append(proxies.batch(images, np.eye(CLASSES, dtype=np.float32)[labels], labels))
    return Case(network, by_hand, variables, batches)


NAMES = ("plain", "normalised", "graph")


@pytest.fixture(scope="module", params=NAMES)
def case(request) -> Case:
    made = {
        "plain": (Plain(), plain),
        "normalised": (Normalised(), normalised),
        "graph": (graph(), graph_by_hand),
    }
    return case_of(*made[request.param])


STEP = 1e-30  # of complex steps: f(x + i h) = f(x) + i h f'(x), without cancellation


class Reference:
    """The same network in numpy and float64; derivatives by complex steps, a forward pass for each number."""

    def __init__(self, case: Case) -> None:
        self.by_hand = case.by_hand
        leaves, self.structure = jax.tree.flatten(case.variables["params"])
        self.shapes = [leaf.shape for leaf in leaves]
        self.flat = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)
        self.is_weight = np.concatenate([np.full(leaf.size, leaf.ndim >= 2) for leaf in leaves])
        self.batches = [(np.asarray(b.images, np.float64), np.asarray(b.target)) for b in case.batches]

    def layers(self, flat) -> list[np.ndarray]:
        """A flat vector of parameters cut into the weights of each layer."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = np.split(flat, ends[:-1])
        return [part for part, shape in zip(parts, self.shapes, strict=True) if len(shape) >= 2]

    def run(self, flat=None, images=None, **options):
        flat = self.flat if flat is None else flat
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = np.split(flat, ends[:-1])
        params = jax.tree.unflatten(
            self.structure, [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        )
        trace = Trace(**options)
        return self.by_hand(params, self.batches[0][0] if images is None else images, trace), trace

    def loss(self, flat=None, k=0, **options):
        images, target = self.batches[k]
        logits = self.run(flat, images, **options)[0]
        logits = logits - logits.real.max(1, keepdims=True)
        return -(target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()

    def gradient(self, k=0, flat=None):
        return derivative(lambda flat: self.loss(flat, k), self.flat if flat is None else flat)

    def jacobian(self):
        """[B, P]: the gradient of each example's summed outputs by all parameters."""
        return derivative(lambda flat: self.run(flat)[0].sum(1), self.flat).T


def derivative(function: Callable[[np.ndarray], Any], at: np.ndarray) -> np.ndarray:
    """[at.size, …]: of ``function`` by each number of ``at``."""
    rows = []
    for i in range(at.size):
        moved = at.astype(complex)
        moved.flat[i] += 1j * STEP
        rows.append(np.imag(function(moved)) / STEP)
    return np.array(rows)


def _grad_norm(r: Reference):
    return sum(np.linalg.norm(g) for g in r.layers(r.gradient()))


def _snip(r: Reference):
    return np.abs(r.flat * r.gradient())[r.is_weight].sum()


def _grasp(r: Reference):
    along = r.gradient() * r.is_weight
    h = 1e-5 / np.linalg.norm(along)
    product = (r.gradient(flat=r.flat + h * along) - r.gradient(flat=r.flat - h * along)) / (2 * h)
    return -(r.flat * product)[r.is_weight].sum()


def _plain(r: Reference):
    return (r.flat * r.gradient())[r.is_weight].sum()


def _l2_norm(r: Reference):
    return sum(np.linalg.norm(layer) for layer in r.layers(r.flat))


def _saliencies(r: Reference) -> list[np.ndarray]:
    """Of each layer in the order in which they run: [channels]."""
    found = []
    for k, layer in enumerate(r.run()[1].layers):
        gradient = derivative(lambda added, k=k: r.loss(added={k: added}), np.zeros(layer.shape))
        per_pixel = (layer * gradient.reshape(layer.shape)).reshape(BATCH, -1, layer.shape[-1])
        found.append((per_pixel.sum(1) ** 2).mean(0) / 2)
    return found


def _fisher(r: Reference):
    return sum(of.sum() for of in _saliencies(r))


def _fisher_code(r: Reference):
    """The authors' way: an array of each kernel's shape, filled with its channel's saliency, summed."""
    shapes = r.run()[1].kernels
    return sum(np.broadcast_to(of, shape).sum() for of, shape in zip(_saliencies(r), shapes, strict=True))


def _synflow(r: Reference):
    flat = np.where(r.is_weight, np.abs(r.flat), 0)
    ones = np.ones((1, *IMAGE))
    found = derivative(lambda flat: r.run(flat, ones, linear=True)[0].sum(), flat)
    return math.log((flat * found).sum())


def _image_gradients(r: Reference):
    return derivative(lambda images: r.run(None, images)[0].sum(), r.batches[0][0]).reshape(BATCH, -1)


def _epe_nas(r: Reference, many: bool = False):
    found, labels = _image_gradients(r), r.batches[0][1].argmax(1)
    sums = []
    for c in sorted(set(labels.tolist())):
        rows = np.atleast_2d(np.corrcoef(found[labels == c]))
        sums.append(np.sum(np.log(np.abs(rows) + 1e-5)) / (len(rows) if many else 1))
    if many:
        return sum(abs(a - b) for a in sums for b in sums) / len(sums)
    return sum(map(abs, sums))


def _jacobian_covariance(r: Reference):
    found = _image_gradients(r)
    values = np.linalg.eigvals(np.corrcoef(found)).real
    return -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))


def _naswot(r: Reference):
    on = np.concatenate([(x > 0).reshape(BATCH, -1) for x in r.run()[1].rectified], 1).astype(float)
    return np.log(np.linalg.det(on @ on.T + (1 - on) @ (1 - on).T))


def _swap(r: Reference):
    on = np.concatenate([(x > 0).reshape(BATCH, -1) for x in r.run()[1].rectified], 1)
    return len({tuple(column) for column in on.T})


def _linear_regions(r: Reference):
    rows = []
    for images, _ in r.batches:
        seen = r.run(None, images)[1].rectified
        rows.append(np.concatenate([(x > 0).reshape(BATCH, -1) for x in seen], 1))
    return len(np.unique(np.concatenate(rows), axis=0))


def _ntk_condition(r: Reference):
    values = np.linalg.svd(r.jacobian(), compute_uv=False)
    return (values[0] / values[-1]) ** 2


def _knas(r: Reference):
    jacobian = r.jacobian()
    return np.mean([[a @ b for a in jacobian] for b in jacobian])


def _zico(r: Reference):
    batches = [r.layers(r.gradient(k)) for k in range(len(r.batches))]
    total = 0.0
    for layer in zip(*batches, strict=True):
        g = np.stack([one.ravel() for one in layer])
        keep = g.std(0) > 0
        if keep.any():
            total += math.log((np.abs(g).mean(0)[keep] / g.std(0)[keep]).sum())
    return total


EXPECTED = {
    "grad_norm": _grad_norm,
    "snip": _snip,
    "grasp": _grasp,
    "plain": _plain,
    "l2_norm": _l2_norm,
    "fisher": _fisher,
    "fisher_code": _fisher_code,
    "epe_nas": _epe_nas,
    "synflow": _synflow,
    "jacobian_covariance": _jacobian_covariance,
    "naswot": _naswot,
    "swap": _swap,
    "linear_regions": _linear_regions,
    "ntk_condition": _ntk_condition,
    "knas": _knas,
    "zico": _zico,
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.some(14)
def test_scores_equal_explicit_arithmetic(case: Case, name: str):
    assert PROXIES[name].score(case.probe()) == pytest.approx(
        float(EXPECTED[name](Reference(case))), rel=1e-3
    )


def test_every_score_is_checked_against_arithmetic():
    others = {"zen", "knas_code"}  # below
    assert set(PROXIES) == {*EXPECTED, *others, *proxies.BASELINES}


def test_epe_nas_of_many_classes(case: Case, monkeypatch):
    monkeypatch.setattr(gradients, "MANY_CLASSES", CLASSES - 1)
    expected = _epe_nas(Reference(case), many=True)
    assert expected > 0
    assert PROXIES["epe_nas"].score(case.probe()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_swap_counts_patterns_over_more_examples_than_a_byte():
    """12 images: of every rectifier, which of them it is on."""
    network = build(SPACE, SPACE.from_string(TEXT), 10)
    subject = Probe(network, proxies.initial_variables(network, SHAPE, 0), SHAPE, batches_of(1, size=12))
    on = np.concatenate([(x > 0).reshape(12, -1) for x in subject.rectified()], 1)
    assert patterns.swap(subject) == len(np.unique(on, axis=1).T)


def test_swap_is_regularised_by_the_size(case: Case):
    subject = case.probe()
    size, swap = subject.cut.size.params / 1000, patterns.swap(subject)
    found = patterns.swap_regularised(subject, mu=2.0, sigma=3.0)
    assert math.exp(found) == pytest.approx(swap * math.exp(-((size - 2) ** 2) / 3))
    with pytest.raises(InputError, match="sigma=0"):
        patterns.swap_regularised(subject, mu=2.0, sigma=0)


# ------------------------------------------------------------------------------------- kernels, maps, batches


def test_the_kernel_is_the_gram_matrix_of_an_explicit_jacobian(case: Case):
    jacobian = Reference(case).jacobian()
    expected = jacobian @ jacobian.T
    for max_bytes in (1 << 29, 1):  # all layers at a time, one at a time
        found = kernels.ntk(case.probe(), max_bytes=max_bytes)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_zen_equals_the_formula(case: Case):
    if case.network.__class__ is Plain:
        pytest.skip("has no batch normalisation; its map is checked by the others")
    reference, found = Reference(case), []
    for k in range(patterns.ZEN_REPEATS):
        rng = np.random.default_rng((7, k))
        x, e = rng.standard_normal((2, 16, *IMAGE), np.float32).astype(np.float64)
        drawn = patterns.zen_variables(case.variables, rng)["params"]
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(drawn)]).astype(np.float64)
        _, here = reference.run(flat, x)
        _, there = reference.run(flat, x + 0.01 * e)
        moved = np.abs(here.map - there.map).sum((1, 2, 3)).mean()
        found.append(math.log(moved) + sum(math.log(math.sqrt(v.mean())) for v in here.variances))
    assert patterns.zen(case.probe(seed=7)) == pytest.approx(np.mean(found), rel=1e-3)


def test_knas_of_the_authors_code(case: Case):
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(50):
        target = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH)]
        batches.append(
            proxies.batch(rng.standard_normal((BATCH, *IMAGE), np.float32), target, target.argmax(1))
        )
    subject = Probe(case.network, case.variables, IMAGE, batches)
    # What the code keeps: the first entries of each large parameter, its axes as PyTorch has them.
    kept: dict[str, list[np.ndarray]] = {}
    for k in range(50):
        for path, leaf in jax.tree.leaves_with_path(subject.gradient(k).params):
            if leaf.size >= 50:
                order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
                values = np.transpose(np.asarray(leaf), order).ravel()[:100].astype(np.float64)
                kept.setdefault(jax.tree_util.keystr(path), []).append(values)
    assert 0 < len(kept) <= 11
    total = 0.0
    for grads in kept.values():
        for i in range(50):
            first = np.array([grads[k][i] for k in range(25)])
            second = np.array([grads[k][i] for k in range(25, 50)])
            total += np.dot(first - first.mean(), second - second.mean()) / 2500
    assert kernels.knas_code(subject) == pytest.approx(total, rel=1e-6)


# ------------------------------------------------------------------------------------------ whole and in pieces

SPACE = nasbench201.nasbench201_space(channels=4, cells=1)
SHAPE = (8, 8, 3)
TEXT = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"


def batches_of(count: int, shape=SHAPE, size=8) -> list[Batch]:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        labels = rng.integers(0, 10, size)
        made.append(
            proxies.batch(
                rng.standard_normal((size, *shape), np.float32), np.eye(10, dtype=np.float32)[labels], labels
            )
        )
    return made


def probe_of(text: str, count: int = 2, **options: Any) -> Probe:
    network = build(SPACE, SPACE.from_string(text), 10)
    variables = proxies.initial_variables(network, SHAPE, 0)
    return Probe(network, variables, SHAPE, batches_of(count), **options)


@pytest.mark.slow
def test_a_network_in_pieces_and_whole_scores_the_same():
    names = [name for name in PROXIES if name not in ("knas_code", "grasp")]
    pieces = proxies.scores(probe_of(TEXT), names)
    whole = proxies.scores(probe_of(TEXT, whole=True), names)
    assert pieces == pytest.approx(whole, rel=2e-3)
    assert all(math.isfinite(value) for value in pieces.values())


@pytest.mark.slow
def test_a_second_network_of_known_pieces_compiles_nothing():
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    names = ("snip", "naswot", "synflow", "knas", "ntk_condition")
    proxies.scores(probe_of(TEXT), names)
    compiled.clear()
    other = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"
    found = proxies.scores(probe_of(other), names)
    assert compiled == []
    assert found != proxies.scores(probe_of(TEXT), names)


def test_sizes_are_the_objectives():
    found = proxies.scores(probe_of(TEXT), proxies.BASELINES)
    size = size_of(build(SPACE, SPACE.from_string(TEXT), 10), SHAPE)
    assert found == {"params": size.params, "flops": size.macs_per_image}


def test_initial_variables_are_the_networks_own():
    network = build(SPACE, SPACE.from_string(TEXT), 10)
    found = proxies.initial_variables(network, SHAPE, 0)
    expected = jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), np.zeros((1, *SHAPE), np.float32)))
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, dict(expected))
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(found["params"]) if leaf.ndim == 4]
    scaled = np.concatenate([(k * math.sqrt(math.prod(k.shape[:3]) / 2)).ravel() for k in kernels])
    assert scaled.std() == pytest.approx(1, abs=0.03)
    values = [k.ravel()[0] for k in kernels]
    assert len(set(values)) == len(values)  # equal nodes of one network are drawn apart
    again = proxies.initial_variables(network, SHAPE, 0)
    other = proxies.initial_variables(network, SHAPE, 1)
    first = found["params"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(first, again["params"]["conv_0"]["kernel"])
    assert np.abs(first - other["params"]["conv_0"]["kernel"]).max() > 0.1


# ------------------------------------------------------------------------------------------- no silent nonsense

NOTHING = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.slow
def test_a_network_without_paths_is_worst_and_never_nan():
    names = [name for name in PROXIES if name not in ("knas_code", "grasp", "fisher", "fisher_code")]
    found = proxies.scores(probe_of(NOTHING), names)
    assert not any(math.isnan(value) for value in found.values())
    worst = {name for name, value in found.items() if math.isinf(value)}
    assert worst >= {"synflow", "jacobian_covariance", "epe_nas", "naswot", "ntk_condition", "zen"}
    assert all(found[name] * PROXIES[name].sign < 0 for name in worst)
    assert found["linear_regions"] == 1


@pytest.mark.slow
def test_layers_behind_nothing_do_not_make_a_zen_score_infinite():
    """Node 2 is zero, so the normalisation on its edge to node 3 never varies; the cell's input gets through."""
    text = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    assert math.isfinite(proxies.scores(probe_of(text, 0), ["zen"])["zen"])


class Smooth(nn.Module):
    """No rectifier, no map, and not linear without its activation."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(10)(nn.LayerNorm()(jnp.sin(nn.Dense(4)(x.reshape(len(x), -1)))))


@pytest.mark.parametrize(
    ("name", "count", "says"),
    [
        ("naswot", 1, "rectifiers: the network has none"),
        ("zen", 0, "zen: the network has no feature map"),
        ("snip", 0, "batches: 1 are needed, 0 given"),
        ("zico", 1, "zico: needs at least 2 batches, 1 given"),
        ("knas_code", 2, "knas_code: needs 50 batches, 2 given"),
        ("synflow", 0, "synflow: .* is not linear"),
    ],
)
def test_what_has_no_score_says_why(name, count, says):
    network = Smooth()
    variables = proxies.initial_variables(network, SHAPE, 0)
    with pytest.raises(ScoreError, match=says):
        PROXIES[name].score(Probe(network, variables, SHAPE, batches_of(count)))


def test_what_is_not_a_number_is_no_score():
    """What overflows is none either: infinite it would be the best of all."""
    subject = probe_of(TEXT)
    subject.variables["params"]["conv_0"]["kernel"] *= np.nan
    for name in ("grad_norm", "snip", "ntk_condition", "knas", "jacobian_covariance", "epe_nas"):
        with pytest.raises(ScoreError, match=r"is nan|not finite"):
            PROXIES[name].score(subject)
    large = probe_of(TEXT)
    large.variables["params"]["conv_0"]["kernel"] = np.full_like(
        large.variables["params"]["conv_0"]["kernel"], np.inf
    )
    with pytest.raises(ScoreError, match="l2_norm: is inf"):
        PROXIES["l2_norm"].score(large)


def test_an_unknown_score_is_named():
    with pytest.raises(InputError, match="score: 'snap' is not one of params, flops"):
        proxies.scores(probe_of(TEXT), ["snap"])


class Looped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = jax.lax.scan(lambda carry, _: (nn.relu(carry), None), x, None, length=2)[0]
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_rectifier_in_a_loop_is_refused_not_missed():
    variables = proxies.initial_variables(Looped(), SHAPE, 0)
    with pytest.raises(ScoreError, match="inside a scan"):
        PROXIES["naswot"].score(Probe(Looped(), variables, SHAPE, batches_of(1)))


# -------------------------------------------------------------------------------------------------------- votes


def test_votes():
    scores = {"snip": [1.0, 2.0, 3.0, math.inf], "ntk_condition": [math.inf, 5.0, 7.0, 6.0]}
    signs = proxies.signs(scores)
    assert signs == {"snip": 1, "ntk_condition": -1}
    np.testing.assert_array_equal(proxies.mean_rank(scores, signs), [1, 3, 2.5, 3.5])
    scores["flops"] = [0.0, 3.0, 1.0, 2.0]
    signs["flops"] = 1
    ranks = np.stack([rankdata(np.multiply(signs[n], scores[n])) for n in scores])
    np.testing.assert_array_equal(proxies.mean_rank(scores, signs), ranks.mean(0))
    # pairs: 0 loses all; 1 beats 2 (ntk, flops), 1 beats 3 (ntk, flops); 3 beats 2 (all)
    np.testing.assert_array_equal(proxies.majority(scores, signs), [-3, 3, -1, 1])
    with pytest.raises(InputError, match="votes: snip is not a number for network 1"):
        proxies.mean_rank({"snip": [1.0, math.nan]}, signs)
