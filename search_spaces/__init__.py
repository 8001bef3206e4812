"""Search spaces, one file a family, by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from nas.errors import InputError
from nas.space import FILE_MODULE, SearchSpace
from search_spaces import (
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
    minichain,
    cuda_convnet,
)

SPACES: dict[str, SearchSpace] = {family.SPACE.name: family.SPACE for family in FAMILIES}


def spaces_with(name: str) -> Mapping[str, SearchSpace]:
    """``SPACES``; where ``name`` is a Python file, with the space that is its ``SPACE`` under that name.

    Raises InputError where the file is not there, does not run, or has no such space.
    """
    if not name.endswith(".py"):
        return SPACES
    path = Path(name)
    if not path.is_file():
        raise InputError(f"space: no file {name}")
    module_name = f"{FILE_MODULE}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"space: {name} does not run: {type(error).__name__}: {error}") from error
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise InputError(f"space: {name} has no SPACE that is a SearchSpace")
    return {**SPACES, name: space}
