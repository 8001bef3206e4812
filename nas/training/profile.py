"""What a network is and costs: its layers from one trace, and what this device takes to run and train it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from nas import cpu
from nas.cpu.function import plain
from nas.errors import InputError
from nas.nn.call import keywords
from nas.nn.count import macs_of_equation, macs_of_jaxpr
from nas.nn.graph import Graph
from nas.nn.repeats import Repeat
from nas.nn.repeats import repeats as repeated
from nas.training.network import Extra, Noise, Outline, abstract, check_maps, once, streams
from nas.training.optimiser import Rates
from nas.training.programs import Batch, Shape, init_state, lower_predict, lower_step, place, timed

RULE = (
    "multiply-adds of convolutions and dense layers; taps on padding count, biases, normalisation, pooling and "
    "activations do not"
)

LARGEST_IMAGE = 2**31  # numbers; sizes beyond are mistakes, and counts of what they give are no use


class Layer(NamedTuple):
    """A node of a graph network, or a submodule without submodules of another one."""

    name: str
    kind: str  # its class
    settings: str  # what of its fields tells it apart, for people
    inputs: tuple[int, ...]  # 0 is the image, i the output of the i-th layer (from 1); of a graph
    output_shape: tuple[int, ...]  # without the batch; () where it is not known: of none, or within a scan
    params: int
    macs_per_image: int
    training_only: bool = False  # of an auxiliary classifier


class Anatomy(NamedTuple):
    """A network taken apart. ``outline`` equals `nas.training.network.outline`'s."""

    layers: tuple[Layer, ...]
    outline: Outline
    is_graph: bool  # else ``inputs`` are but the order of calls


def dissect(network: Any, image_shape: tuple[int, int, int]) -> Anatomy:
    """Trace ``network`` once, on one image; nothing is allocated or compiled.

    Raises InputError where it does not take such images.
    """
    if math.prod(image_shape) > LARGEST_IMAGE:
        raise InputError(f"input {shape_text(image_shape)}: an image has at most {LARGEST_IMAGE:,} numbers")
    nodes = network.nodes if isinstance(network, Graph) else None
    modules: dict[tuple[str, ...], Any] = {}  # by path, in the order in which calls return

    def capture(module: Any, method: str) -> bool:
        if method == "__call__" and module.path:
            modules.setdefault(tuple(module.path), module)
        return method == "__call__"

    def build(key: Any, image: Any) -> Any:
        return network.init_with_output(
            streams(key), image, capture_intermediates=capture, **keywords(network, train=False)
        )

    trace = jax.make_jaxpr(build, return_shape=True)
    try:
        with plain():  # a native kernel does not show what it multiplies
            program, (_, made) = trace(jax.eval_shape(lambda: jax.random.key(0)), abstract((1, *image_shape)))
    except InputError as error:
        raise InputError(f"input {shape_text(image_shape)}: {error}") from error
    except Exception as error:  # a user's network may raise what it likes
        said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise InputError(f"input {shape_text(image_shape)}: the network does not take it: {said}") from error
    check_maps(program.jaxpr, image_shape)
    variables = {name: tree for name, tree in made.items() if name not in (*Extra._fields, "intermediates")}
    kept = once(made.get("intermediates", {}))

    if nodes is not None:
        paths = [(node.name,) for node in nodes]
        inputs = [node.inputs for node in nodes]
        needed = network.needed
    else:
        paths = [path for path in modules if not any(p[: len(path)] == path != p for p in modules)]
        inputs = [(k,) for k in range(len(paths))]
        needed = range(len(paths))
    macs = _macs_by_path(program.jaxpr, paths)
    layers = []
    for k, path in enumerate(paths):
        module = nodes[k].module if nodes is not None else modules[path]
        outputs = jax.tree.leaves(_at(kept, path).get("__call__"))
        layers.append(
            Layer(
                name="/".join(path),
                kind=type(module).__name__,
                settings=settings(module),
                inputs=inputs[k],
                output_shape=outputs[0].shape[1:] if outputs else (),
                params=_size(_at(variables.get("params", {}), path)),
                macs_per_image=macs.get(path, 0),
                training_only=k not in needed,
            )
        )
    unused = sum(layer.macs_per_image for layer in layers if layer.training_only)
    found = Outline(
        variables, _size(variables.get("params", {})), sum(macs.values()) - unused, 4 * _size(kept)
    )
    return Anatomy(tuple(layers), found, nodes is not None)


def _macs_by_path(jaxpr: Any, paths: Sequence[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """The program's multiply-adds by the module that each equation was traced in; () has those of none."""
    known = {path[:n] for path in paths for n in range(1, len(path) + 1)}
    modules = set(paths)
    seen: set[Any] = set()  # a part that comes again, which `jax.jit` keeps, has the scopes of the first time

    def module(scopes: Sequence[str]) -> tuple[str, ...]:
        """Scopes that name no module are passed over. That of another method than ``__call__`` is "module.method",
        also where the module calls it itself."""
        at: tuple[str, ...] = ()
        for scope in scopes:
            names = (scope, scope.partition(".")[0])
            at = next(((*at, name) for name in names if (*at, name) in known), at)
        return at if at in modules else ()

    def walk(jaxpr: Any, around: tuple[str, ...]) -> Counter[tuple[str, ...]]:
        found: Counter[tuple[str, ...]] = Counter()
        for equation in jaxpr.eqns:
            count = macs_of_equation(equation)
            if not count:
                continue
            stack = re.sub(r"\w+\(|\)", "", str(equation.source_info.name_stack))  # of vmap(Dense_0): Dense_0
            scopes = (*around, *filter(None, stack.split("/")))
            parts = list(core.jaxprs_in_params(equation.params))  # their scopes lie in those of the equation
            if equation.primitive.name == "cond":
                parts = [max(parts, key=macs_of_jaxpr)]  # the one that counts
            if not parts or not seen.isdisjoint(parts):
                found[module(scopes[1:])] += count  # the first is the network itself
                continue
            seen.update(parts)
            within = sum((walk(part, scopes) for part in parts), Counter[tuple[str, ...]]())
            times = count // within.total()  # the steps of a scan
            found.update({path: times * macs for path, macs in within.items()})
        return found

    return walk(jaxpr, ())


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


_ALWAYS = (
    "features",
    "kernel",
    "window",
    "kind",
    "normalisation",
    "activation",
)  # also where it is the default
_SQUARE = ("kernel", "window")


_FLAX = {
    "kernel_size": "kernel",
    "strides": "stride",
    "kernel_dilation": "dilation",
    "feature_group_count": "groups",
}


def settings(module: Any) -> str:
    """A module's fields in a few words: ``3x3 64 stride 2``. Probabilities and the like are left out."""
    words: dict[str, str] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in ("parent", "name") or value is None or isinstance(value, float) or callable(value):
            continue
        if (value == field.default and field.name not in _ALWAYS) or value in ("none", "identity"):
            continue
        key = _FLAX.get(field.name, field.name)
        name = key.replace("_", " ")
        if field.name == "use_bias":
            continue
        if isinstance(value, bool):
            words[field.name] = name if value else f"no {name}"
        elif key in _SQUARE:
            words[key] = shape_text(value if isinstance(value, tuple) else (value, value))
        elif field.name == "padding" and isinstance(value, tuple):
            sides = {side for pair in value for side in pair}
            words[key] = f"padding {sides.pop()}" if len(sides) == 1 else name
        elif isinstance(value, str):
            words[field.name] = value.replace("_", " ")
        elif field.name == "features":
            words[field.name] = str(value)
        elif isinstance(value, int):
            words[field.name] = f"{name} {value}"
        elif isinstance(value, tuple) and all(isinstance(part, int) for part in value):
            words[field.name] = f"{name} {shape_text(value)}"
        else:
            words[field.name] = name  # a table of connections, say
    order = sorted(words, key=lambda name: (name not in _SQUARE, name != "features"))
    return " ".join(words[name] for name in order)


def repeats(layers: Sequence[Layer], longest: int = 64) -> list[Repeat]:
    """`nas.nn.repeats.repeats` of ``layers``.

    Alike are layers of one kind and settings at one height and width that read what stands equally far back.
    """
    dense = _dense(layers)
    keys = [
        (
            *(layer.kind, layer.settings, layer.output_shape[:-1], layer.training_only),
            "dense" if dense[k] else tuple(k + 1 - i for i in layer.inputs),
        )
        for k, layer in enumerate(layers)
    ]
    found = repeated(keys, [layer.inputs for layer in layers], longest)
    return [part._replace(dense=part.times > 1 and dense[part.start]) for part in found]


def _dense(layers: Sequence[Layer]) -> list[bool]:
    """Whether each layer is one of a dense block: it and its neighbour are alike, and the later of the two
    reads what the earlier reads and the earlier."""

    def pair(k: int) -> bool:
        if not 0 <= k < len(layers) - 1:
            return False
        a, b = layers[k], layers[k + 1]
        return (a.kind, a.settings) == (b.kind, b.settings) and b.inputs == (*a.inputs, k + 1)

    return [pair(k - 1) or pair(k) for k in range(len(layers))]


class Measured(NamedTuple):
    """What one device took. Seconds are medians; compilation is apart and not from a cache.

    ``train_peak_bytes`` is what XLA plans for a training step: arguments, outputs and temporaries, less the
    outputs that take the place of arguments.
    """

    device: str
    dtype: str
    forward_batch_1_seconds: float
    forward_batch_seconds: float
    train_step_seconds: float
    forward_compile_seconds: float  # of both batch sizes
    train_compile_seconds: float
    train_peak_bytes: int
    train_argument_bytes: int
    train_output_bytes: int
    train_alias_bytes: int
    train_temp_bytes: int


def measure(network: Any, shape: Shape, *, seconds: float = 1.0) -> Measured:
    """Compile and run ``network``: forward passes and training steps, each for ``seconds`` (at least 3 times)."""
    cpu.native_status()  # builds the native kernels, where nobody has, before any time is taken
    forward, forward_compile_seconds = {}, 0.0
    for size in dict.fromkeys((1, shape.batch_size)):
        lowered = functools.partial(
            lower_predict, network, dataclasses.replace(shape, evaluate_batch_size=size)
        )
        forward[size], took = timed(lambda lowered=lowered: cpu.compiled(lowered()))
        forward_compile_seconds += took
    step, train_compile_seconds = timed(lambda: cpu.compiled(lower_step(network, shape)))
    planned = step.memory_analysis()

    rng = np.random.default_rng(0)
    size = shape.batch_size
    images = rng.standard_normal((size, *shape.image_shape), np.float32)
    target = np.eye(shape.num_classes, dtype=np.float32)[rng.integers(0, shape.num_classes, size)]
    labels = target.argmax(axis=1).astype(np.int32)
    batch = Batch(*jax.device_put((images.astype(jax.numpy.dtype(shape.dtype)), target, labels)))
    zero = np.float32(0)
    noise, rates = Noise(zero, np.uint32(0)), Rates(zero, zero)
    state = place(init_state(network, shape, 0), None)
    forward_seconds = {
        size: _median_seconds(lambda f=f, size=size: f(state.variables, batch.images[:size]), seconds)
        for size, f in forward.items()
    }

    def train() -> Any:
        nonlocal state
        state, loss, _ = step(state, batch, noise, rates, zero)
        return loss

    return Measured(
        device=jax.local_devices()[0].device_kind,
        dtype=shape.dtype,
        forward_batch_1_seconds=forward_seconds[1],
        forward_batch_seconds=forward_seconds[size],
        train_step_seconds=_median_seconds(train, seconds),
        forward_compile_seconds=forward_compile_seconds,
        train_compile_seconds=train_compile_seconds,
        train_peak_bytes=(
            planned.argument_size_in_bytes
            + planned.output_size_in_bytes
            + planned.temp_size_in_bytes
            - planned.alias_size_in_bytes
        ),
        train_argument_bytes=planned.argument_size_in_bytes,
        train_output_bytes=planned.output_size_in_bytes,
        train_alias_bytes=planned.alias_size_in_bytes,
        train_temp_bytes=planned.temp_size_in_bytes,
    )


def _median_seconds(call: Callable[[], Any], seconds: float, least: int = 3) -> float:
    jax.block_until_ready(call())
    took: list[float] = []
    start = time.perf_counter()
    while len(took) < least or time.perf_counter() - start < seconds:
        took.append(timed(lambda: jax.block_until_ready(call()))[1])
    return statistics.median(took)
