"""Search spaces, one file a family, by name."""

from __future__ import annotations

from collections.abc import Mapping

from nas.errors import InputError
from nas.own_file import load_file, named_in_file
from nas.space import SearchSpace
from search_spaces import (
    accel_nasbench,
    alexnet,
    autoencoder,
    chain,
    cuda_convnet,
    darts,
    densenet,
    inception,
    lenet,
    mbconv,
    minichain,
    mlp,
    nasbench201,
    nasbench_macro,
    natssize,
    resnet,
)

FAMILIES = (
    chain,
    mlp,
    lenet,
    alexnet,
    inception,
    resnet,
    densenet,
    mbconv,
    autoencoder,
    darts,
    nasbench201,
    nasbench_macro,
    natssize,
    accel_nasbench,
    minichain,
    cuda_convnet,
)

SPACES: dict[str, SearchSpace] = {family.SPACE.name: family.SPACE for family in FAMILIES}


def spaces_with(name: str) -> Mapping[str, SearchSpace]:
    """``SPACES``; where ``name`` is a Python file, or a name in one, with that space under that name.

    ``my.py`` means what the file calls ``SPACE``, ``my.py:tiny`` what it calls ``tiny``. Raises InputError where the
    file is not there, does not run, or has no such space.
    """
    named = named_in_file(name)
    if named is None:
        return SPACES
    module = load_file(named.file, "space")
    space = getattr(module, named.name or "SPACE", None)
    if not isinstance(space, SearchSpace):
        others = [other for other, value in vars(module).items() if isinstance(value, SearchSpace)]
        hint = f"; say one of {', '.join(f'{named.file}:{other}' for other in others)}" if others else ""
        raise InputError(f"space: {named.file} has no {named.name or 'SPACE'} that is a SearchSpace{hint}")
    return {**SPACES, name: space}
