"""The ``darts`` space: the cells of Liu et al. 2019, in their evaluation network and in their supernet.

A cell has two inputs, the outputs of the two cells before it, and ``steps`` nodes; a node is the sum of two
operations, each on an earlier node or input; the cell's output are nodes side by side. There are two kinds,
``normal`` and ``reduce``; the second halves the resolution and doubles the channels, at one and two thirds
of the network (section 2.1 and appendix A). The same space holds the cells of NASNet and AmoebaNet as that
paper evaluates them: five nodes, two inputs that may be the same, some nodes left out of the output.
"""

from search_spaces.darts.genotypes import PRIMITIVES, Genotype, architecture_of, genotype_of, read_genotype
from search_spaces.darts.modules import DropPath, operation
from search_spaces.darts.published import GENOTYPES, NAMED, RECIPE
from search_spaces.darts.space import SPACE, build
from search_spaces.darts.supernets import derived, discrete, layout, search_network, supernet

__all__ = [
    "GENOTYPES",
    "NAMED",
    "PRIMITIVES",
    "RECIPE",
    "SPACE",
    "DropPath",
    "Genotype",
    "architecture_of",
    "build",
    "derived",
    "discrete",
    "genotype_of",
    "layout",
    "operation",
    "read_genotype",
    "search_network",
    "supernet",
]
