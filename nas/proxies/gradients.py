"""Scores of one or a few gradients: of the loss by weights, grad_norm, SNIP, GraSP, Fisher, ZiCo; by images; SynFlow.

Sums are over the weights of convolutions and dense layers (parameters of two axes or more) as in Abdelfattah et
al. 2021 ("Zero-cost proxies for lightweight NAS", section 3), in float64. Higher is better for all.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jax import Array

from nas.proxies import passes
from nas.proxies.passes import TRAINING, Mode, Tree
from nas.proxies.probe import Probe, finite, map_weights
from nas.proxies.watching import ScoreError
from nas.training.programs import mean_loss


def grad_norm(probe: Probe) -> float:
    """The sum over layers of the Euclidean norm of the loss's gradient (Abdelfattah et al. 2021)."""
    found = probe.weights(probe.gradient().params)
    return finite("grad_norm", sum(math.sqrt(_dot(w.of, w.of)) for w in found))


def snip(probe: Probe) -> float:
    """The sum of |w dL/dw| (Lee et al. 2019, equation 5, not divided by its total)."""
    found = probe.weights(probe.gradient().params)
    return finite("snip", sum(np.abs(w.value.ravel() * w.of.ravel()).sum(dtype=np.float64) for w in found))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.einsum("i,i->", a.ravel(), b.ravel(), dtype=np.float64))


def grasp(probe: Probe) -> float:
    """The sum of -w (H g), g the loss's gradient by the weights and H its Hessian (Wang et al. 2020, equation 8).

    Exact, by differentiating the gradient along g. The published code of Abdelfattah et al. takes this sign.
    """
    gradient = probe.gradient().params
    product = hessian_product(probe, gradient)
    return finite("grasp", -sum(_dot(w.value, w.of) for w in probe.weights(product)))


def plain(probe: Probe) -> float:
    """The sum of w dL/dw, signs kept (Abdelfattah et al. 2021's code; a baseline of NAS-Bench-Suite-Zero, Krishnakumar
    et al. 2022, table 1)."""
    return finite("plain", sum(_dot(w.value, w.of) for w in probe.weights(probe.gradient().params)))


def l2_norm(probe: Probe) -> float:
    """The sum over layers of the weights' Euclidean norm, no images seen (as `plain`, a baseline there)."""
    found = probe.weights(probe.variables["params"])
    return finite("l2_norm", sum(math.sqrt(_dot(w.value, w.value)) for w in found))


def fisher(probe: Probe) -> float:
    """Fisher pruning's saliency, summed over all layers' channels (Theis et al. 2018; Turner et al. 2020, equation 4).

    Of channel c it is the mean over examples of (sum over pixels of a dL/da)^2 / 2, a the layer's output before
    its bias, L the batch's mean loss. `fisher_code` is what Abdelfattah et al. and NAS-Bench-Suite-Zero computed.
    """
    return finite("fisher", sum(_saliency(gate).sum() for gates in probe.gates for gate in gates))


def fisher_code(probe: Probe) -> float:
    """`fisher` as the code of Abdelfattah et al. 2021 sums it: a channel counts once for each of its weights.

    That code fills an array of the weights' shape with their channel's saliency and sums that, which weights each
    channel by its fan-in. (Its outputs have their bias in them, 0 in a network as initialised here.)
    """
    total = 0.0
    for piece, gates in zip(probe.cut.pieces, probe.gates, strict=True):
        if gates:
            for gate, layer in zip(gates, passes.layers(piece.unit), strict=True):
                total += layer.fan_in * _saliency(gate).sum()
    return finite("fisher_code", total)


def _saliency(gate: np.ndarray) -> np.ndarray:
    """Of each channel [C], of its gates' gradients [B, C]."""
    return np.square(gate).mean(0) / 2


def jacobian_covariance(probe: Probe) -> float:
    """-sum(log(v + k) + 1 / (v + k)), v the eigenvalues of the correlations of the examples' input gradients.

    Mellor et al. 2020 (the first version of "Neural architecture search without training"), k = 1e-5; the gradient
    is of the sum of all outputs. -inf where an example's does not vary, so that it correlates with nothing.
    """
    found = correlations(probe.image_gradients)
    if found is None:
        return -math.inf
    values = np.linalg.eigvalsh(found) + 1e-5
    return finite("jacobian_covariance", -(np.log(values) + 1 / values).sum())


def correlations(rows: np.ndarray | None) -> np.ndarray | None:
    """Pearson's, of each pair of ``rows`` [B, inputs]: [B, B]; None where a row does not vary, or there are none.

    Raises ScoreError where a row is not finite.
    """
    if rows is None:
        return None
    centred = rows - rows.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    if not np.isfinite(norms).all():
        raise ScoreError("correlations: an input gradient is not finite")
    if not norms.all():
        return None
    centred /= norms[:, None]
    return centred @ centred.T


MANY_CLASSES = 100


def epe_nas(probe: Probe) -> float:
    """EPE-NAS: how little the input gradients of one class's examples correlate (Lopes et al. 2021, section 3).

    With E_c the sum of log(|correlation| + 1e-5) over the pairs of examples of class c (each with itself, too): the
    sum over classes of |E_c|. Beyond 100 classes E_c is divided by how many examples c has, and the score is the mean
    over classes of the sums over classes of |E_c - E_d|. As in the authors' code, classes are those in the batch.
    -inf where an example's gradient does not vary.
    """
    found = correlations(probe.image_gradients)
    if found is None:
        return -math.inf
    logarithms, labels = np.log(np.abs(found) + 1e-5), np.asarray(probe.batch().labels)
    many = probe.differentiated.output.shape[-1] > MANY_CLASSES
    sums = []
    for c in np.unique(labels):
        total = logarithms[np.ix_(labels == c, labels == c)].sum()
        sums.append(total / (labels == c).sum() if many else total)
    of = np.array(sums)
    score = np.abs(of[:, None] - of[None, :]).sum() / len(of) if many else np.abs(of).sum()
    return finite("epe_nas", score)


def zico(probe: Probe) -> float:
    """Sum over layers of log(sum over weights of mean |g| / std g) over batches (Li et al. 2023, equation 14).

    g are the loss's gradients on at least two batches. As in the authors' code, weights whose gradient does not
    vary and layers without others are left out; -inf where none is left.
    """
    if len(probe.batches) < 2:
        raise ScoreError(f"zico: needs at least 2 batches, {len(probe.batches)} given")
    found: dict[str, list[np.ndarray]] = {}
    for k in range(len(probe.batches)):
        for weight in probe.weights(probe.gradient(k).params):
            found.setdefault(weight.name, []).append(np.asarray(weight.of, np.float64).ravel())
    total, layers = 0.0, 0
    for gradients in map(np.stack, found.values()):
        spread, size = gradients.std(0), np.abs(gradients).mean(0)
        varies = spread > 0
        ratio = (size[varies] / spread[varies]).sum()
        if ratio > 0:
            total, layers = total + math.log(ratio), layers + 1
    return finite("zico", total) if layers else -math.inf


# ------------------------------------------------------------------------------------ the Hessian times a vector


def hessian_product(probe: Probe, vector: Tree) -> Tree:
    """H v by the weights: the derivative of the loss's gradient along ``vector``, its parts of one axis left out.

    Forward over reverse through the jitted pieces from outside: what JAX derives of a piece is compiled once for all
    networks that have it.
    """
    cut, batch = probe.cut, probe.batch()
    shares = [piece.share(probe.variables) for piece in cut.pieces]

    def loss(params: list[Tree]) -> Array:
        values: list[Any] = [batch.images]
        for piece, own, share in zip(cut.pieces, params, shares, strict=True):
            rest = {name: tree for name, tree in share.items() if name != "params"}
            run = piece.unit.known(
                "jitted", lambda unit=piece.unit: jax.jit(passes.function_of(unit, TRAINING))
            )
            values.append(run(own, rest, [values[i] for i in piece.inputs], [])[0])
        return mean_loss(values[-1], batch.target)

    params = [share.get("params", {}) for share in shares]
    along = [
        _along(own, vector if piece.name is None else vector.get(piece.name))
        for piece, own in zip(cut.pieces, params, strict=True)
    ]
    product = jax.jvp(jax.grad(loss), (params,), (along,))[1]
    if cut.pieces[0].name is None:
        return product[0]
    return {piece.name: own for piece, own in zip(cut.pieces, product, strict=True) if own}


def _along(params: Tree, vector: Tree | None) -> Tree:
    """``vector`` at the weights, zeros elsewhere."""

    def zero(leaf: Any) -> Any:
        return np.zeros(leaf.shape, np.float32)

    if vector is None:
        return jax.tree.map(zero, params)
    return map_weights(vector, lambda leaf: leaf, lambda name, leaf: zero(leaf))


# ------------------------------------------------------------------------------------------------------ SynFlow

_LARGE = 2.0**30


def synflow(probe: Probe) -> float:
    """log of the sum of |w| dR/d|w|, R the summed output of the linear network of |w| on ones (Tanaka et al. 2020).

    The network is without normalisations and activations, biases and running means, as in the published code's
    form without batch normalisation (Abdelfattah et al. 2021). The sum passes float32, and in deep networks float64;
    a graph is run in float32 with a power of two beside every array, which loses nothing since all is linear, any
    other network in float64. -inf where no path leads from the image to the output.

    ScoreError where a node, so reduced, is not linear; where the float64 sum is not finite.
    """
    linear = Mode(train=False, linear=True)
    variables = synflow_variables(probe.variables)
    if probe.cut.pieces[0].name is None:
        return _synflow_in_float64(probe, variables, linear)
    logarithms = [one for one in _synflow_of_pieces(probe, variables, linear) if one > -math.inf]
    return finite("synflow", np.logaddexp.reduce(logarithms)) if logarithms else -math.inf


def _synflow_in_float64(probe: Probe, variables: Any, mode: Mode) -> float:
    ones = np.ones((1, *probe.image_shape))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        twice = np.asarray(passes.forward(probe.cut, wide, 2 * ones, mode).output)
        passed = passes.forward(probe.cut, wide, ones, mode, differentiate=True)
        found = jax.device_get(passes.backward(passed, np.ones(passed.output.shape)).params)
        once = np.asarray(passed.output)
    own = Probe(probe.network, wide, probe.image_shape)
    total = sum(_dot(w.value, w.of) for w in own.weights(found))
    if not (np.isfinite(twice).all() and math.isfinite(total)):
        raise ScoreError("synflow: the sum is beyond float64")
    if not np.allclose(twice, 2 * once, rtol=1e-9):
        raise ScoreError("synflow: the network is not linear without its activations and normalisations")
    return math.log(total) if total > 0 else -math.inf


def synflow_variables(variables: Any) -> dict[str, Tree]:
    """|w|; normalisations that do nothing; no biases."""
    neutral = {"bias": np.zeros_like, "scale": np.ones_like, "mean": np.zeros_like, "var": np.ones_like}

    def other(name: str, leaf: Any) -> np.ndarray:
        return neutral.get(name, np.abs)(np.asarray(leaf))

    return {
        collection: map_weights(tree, lambda leaf: np.abs(np.asarray(leaf)), other)
        for collection, tree in variables.items()
    }


class _Scaled:
    """``array * 2 ** exponent``, the array kept within float32's range."""

    def __init__(self, array: Any, exponent: int = 0) -> None:
        top = float(np.abs(array := np.asarray(array)).max(initial=0.0))
        if not math.isfinite(top):
            raise ScoreError("synflow: one node alone passes float32")
        if top and not 1 / _LARGE < top < _LARGE:
            shift = math.frexp(top)[1]
            array, exponent = np.ldexp(array, -shift), exponent + shift
        self.array, self.exponent = array, exponent

    def at(self, exponent: int) -> np.ndarray:
        return self.array if exponent == self.exponent else np.ldexp(self.array, self.exponent - exponent)


def _top(arrays: list[_Scaled]) -> int:
    return max((one.exponent for one in arrays if one.array.any()), default=0)


def _synflow_of_pieces(probe: Probe, variables: Any, mode: Mode) -> list[float]:
    """Of each weight, the logarithm of its sum of |w| dR/d|w|."""
    cut = probe.cut
    values = [_Scaled(np.ones((1, *probe.image_shape), np.float32))]
    steps: list[Any] = []
    for k, piece in enumerate(cut.pieces):
        own = piece.share(variables)
        params, rest = own.pop("params", {}), own
        exponent = _top([values[i] for i in piece.inputs])
        inputs = [values[i].at(exponent) for i in piece.inputs]
        moves = [i > 0 for i in piece.inputs]
        step, output, _ = passes.step(piece, mode, params, rest, inputs, moves)

        def is_linear(
            piece=piece, params=params, rest=rest, inputs=inputs, moves=moves, output=output
        ) -> bool:
            """Twice the input gives exactly twice the output; looked at once for a unit."""
            twice = passes.step(piece, mode, params, rest, [2 * x for x in inputs], moves)[1]
            return np.array_equal(twice, 2 * np.asarray(output))

        if not piece.unit.known(("linear", mode), is_linear):
            raise ScoreError(
                f"synflow: {piece.name} is not linear without its activations and normalisations"
            )
        steps.append((step, exponent) if k in cut.live else None)
        values.append(_Scaled(output, exponent))
    waiting = {len(cut.pieces): [_Scaled(np.ones(values[-1].array.shape, np.float32))]}
    found: list[float] = []
    for k in range(len(cut.pieces), 0, -1):
        parts = waiting.pop(k, None)
        if parts is None or steps[k - 1] is None:
            continue
        piece, (step, input_exponent) = cut.pieces[k - 1], steps[k - 1]
        exponent = _top(parts)
        cotangent = functools.reduce(np.add, (part.at(exponent) for part in parts))
        own, pulled, _ = passes.pull(step, cotangent)
        for i, part in zip(step.sources, pulled, strict=True):
            waiting.setdefault(i, []).append(_Scaled(part, exponent))
        mine = Probe(probe.network, {"params": piece.share(variables).get("params", {})}, probe.image_shape)
        for weight in mine.weights(own or {}):
            total = _dot(weight.value, weight.of)
            if total > 0:
                found.append(math.log(total) + math.log(2) * (input_exponent + exponent))
    return found
