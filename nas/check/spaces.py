"""What every search space promises: values, notations, moves, counts, and networks that can be trained."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nas.check.base import Check, require
from nas.errors import InputError
from nas.space import Architecture, SearchSpace, parse_architecture

KEYS = 20  # random architectures that each check of a user's space looks at
NETWORKS = 3  # networks that are built


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """The names at which two architectures differ."""
    return {name for name in {*a, *b} if name not in a or name not in b or a[name] != b[name]}


def samples_are_valid(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    space.validate(arch)
    require(space.sample(key) == arch, f"the key {key} gives two architectures")
    require(space.sample(np.random.default_rng(key)) == arch, "a generator gives another than its seed")
    require(list(arch) == [name for name in space.choices if name in arch], "choices are out of order")


def notations_come_back(space: SearchSpace, key: int) -> None:
    """As text and as JSON."""
    arch = space.sample((7, key))
    text = space.to_string(arch)
    require("\n" not in text, f"its text has several lines: {text!r}")
    require(space.from_string(text) == arch, f"{text} is read as {space.from_string(text)}")
    require(space.to_string(space.from_string(text)) == text, f"{text} has another text when it is read")
    require(space.from_string(f" {arch.to_json()} ") == arch, f"{arch.to_json()} is read as something else")
    require(Architecture.from_json(json.loads(arch.to_json())) == arch, "its JSON is something else")
    for written in (text, arch.to_json()):
        found = parse_architecture(f"{space.name}:{written}", {space.name: space})
        require(found == (space, arch), f"{space.name}:{written} is read as something else")


def encodings_come_back(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    vector = space.encode(arch)
    require(vector.shape == (space.encoded_width,), f"an encoding has the shape {vector.shape}")
    require(vector.min() >= 0 and vector.max() <= 1, "an encoding leaves [0, 1]")
    require(space.decode(vector) == arch, f"{space.to_string(arch)} is decoded as another")


def mutants_differ_in_one_choice(space: SearchSpace, key: int) -> None:
    """And in what hangs on it; a space with one architecture has none."""
    if space.size().value == 1:
        return
    arch = space.sample(key)
    mutant = space.mutate(arch, (key, 1))
    space.validate(mutant)
    require(mutant != arch, f"{space.to_string(arch)} has no mutant")
    require(space.mutate(arch, (key, 1)) == mutant, "a key gives two mutants")


def neighbours_are_valid(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    neighbours = space.neighbours(arch)
    require(len(set(neighbours)) == len(neighbours), "a neighbour comes twice")
    require(arch not in neighbours, "an architecture is its own neighbour")
    for neighbour in neighbours[:100]:
        space.validate(neighbour)
        edited = [name for name in differing(arch, neighbour) if name in arch and name in neighbour]
        require(len(edited) == 1, f"a neighbour differs in {len(edited)} choices that both have")


def children_are_valid(space: SearchSpace, key: int) -> None:
    a, b = space.sample((key, 0)), space.sample((key, 1))
    child = space.crossover(a, b, key)
    space.validate(child)
    for name, value in child.items():
        if name in a or name in b:
            inherited = [parent[name] for parent in (a, b) if name in parent]
            require(value in inherited, f"{name}={value} is of neither parent")


def it_is_counted(space: SearchSpace) -> None:
    size = space.size()
    require(math.isinf(size.value) == bool(space.continuous), f"it has {size} architectures")
    text = space.describe()
    require(str(size) in text, "its description does not have its size")


# --------------------------------------------------------------------------------------------------- networks


def networks(
    space: SearchSpace, image_shape: tuple[int, int, int], num_classes: int
) -> Iterator[tuple[str, Any]]:
    """Some networks of the part to be searched, each with its architecture's text."""
    from nas.nn.bridge import build

    part = space.searched()
    for key in range(NETWORKS):
        arch = part.sample((5, key))
        yield part.to_string(arch), build(part, arch, num_classes)


def networks_give_logits(space: SearchSpace, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """``[batch, classes]``, in training and in evaluation, from shapes alone."""
    import jax

    from nas.training.network import abstract_noise, apply_evaluate, apply_train, outline

    image = jax.ShapeDtypeStruct((3, *image_shape), "float32")
    for text, network in networks(space, image_shape, num_classes):
        try:
            variables = outline(network, image_shape).variables
            evaluated = jax.eval_shape(lambda v, x, n=network: apply_evaluate(n, v, (x,)), variables, image)
            trained = jax.eval_shape(
                lambda v, x, s, n=network: apply_train(n, v, (x,), s)[0], variables, image, abstract_noise()
            )
        except InputError as error:
            require(False, f"{text}: {error}")
            raise
        for how, output in (("evaluated", evaluated), ("trained", trained)):
            require(
                output.shape == (3, num_classes),
                f"{text}: 3 images {how} give {output.shape}, not {(3, num_classes)}",
            )


def networks_learn(space: SearchSpace, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """The same initial weights from the same key; a loss and gradients that are numbers; every weight has one."""
    import jax
    import jax.numpy as jnp

    from nas.training.network import Noise, apply_train, initialise

    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, *image_shape)), jnp.float32)
    for text, network in list(networks(space, image_shape, num_classes))[:1]:
        variables, again = (initialise(network, 1, image_shape, "float32") for _ in range(2))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), variables, again)
        require(all(jax.tree.leaves(same)), f"{text}: one key gives two sets of weights")

        def loss(params: Any, network: Any = network, variables: Any = variables) -> Any:
            noise = Noise(np.float32(0), np.uint32(0))
            output, _, _ = apply_train(network, {**variables, "params": params}, (images,), noise)
            return -jax.nn.log_softmax(output)[:, 0].mean()

        value, gradients = jax.value_and_grad(loss)(variables["params"])
        require(bool(jnp.isfinite(value)), f"{text}: the loss of its first step is {value}")
        finite = [bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients)]
        require(all(finite), f"{text}: gradients of its first step are not numbers")


def it_reaches_workers(space: SearchSpace) -> None:
    """By value, as a process has it that cannot import the file."""
    from nas.run.tune.worker import pickled

    pickled(lambda: space)


def checks(
    space: SearchSpace, image_shape: tuple[int, int, int] = (16, 16, 3), num_classes: int = 10
) -> Iterator[Check]:
    """All checks of a user's space."""

    def over_keys(check: Callable[[SearchSpace, int], None]) -> Callable[[], None]:
        def holds() -> None:
            for key in range(KEYS):
                check(space, key)

        return holds

    for sentence, check in (
        ("random architectures are valid and depend on their key alone", samples_are_valid),
        ("text and JSON of an architecture come back", notations_come_back),
        ("encodings come back", encodings_come_back),
        ("neighbours are valid and one edit away", neighbours_are_valid),
        ("mutants are valid and differ", mutants_differ_in_one_choice),
        ("children are valid and have their parents' values", children_are_valid),
    ):
        yield Check(sentence, over_keys(check))
    yield Check("it is counted and described", functools.partial(it_is_counted, space))
    if space.build is not None:
        shown = "x".join(map(str, image_shape))
        given = functools.partial(networks_give_logits, space, image_shape, num_classes)
        yield Check(f"networks take images of {shown} and give [batch, {num_classes}]", given)
        learn = functools.partial(networks_learn, space, image_shape, num_classes)
        yield Check("a step of training has a loss and gradients that are numbers", learn)
    yield Check("it goes to workers that do not have the file", functools.partial(it_reaches_workers, space))
