"""Architectures as values and search spaces as data.

A space is named choices, conditions ("width_3 exists when depth >= 3") and constraints; a point of it is an
``Architecture``. Sampling, enumerating, counting, encoding, neighbours, mutation, crossover, validation and
text are written here once for all spaces. Needs NumPy and nothing else, so that it imports fast.
"""

from nas.space.architecture import Architecture, Scalar
from nas.space.choices import Categorical, Choice, Integer, LogUniform, Uniform
from nas.space.conditions import Constraint, When
from nas.space.counting import Size
from nas.space.definition import Cell
from nas.space.encoding import PathEncoding, path_encoding
from nas.space.sampling import Key
from nas.space.space import SearchSpace
from nas.space.subspaces import Range, parse_assignments
from nas.space.text import parse_architecture

__all__ = [
    "Architecture",
    "Categorical",
    "Cell",
    "Choice",
    "Constraint",
    "Integer",
    "Key",
    "LogUniform",
    "PathEncoding",
    "Range",
    "Scalar",
    "SearchSpace",
    "Size",
    "Uniform",
    "When",
    "parse_architecture",
    "parse_assignments",
    "path_encoding",
]
