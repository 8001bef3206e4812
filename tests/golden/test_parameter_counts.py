"""Published parameter counts, to the digit."""

import pytest

from nas.objectives.train import build, size_of
from nas.space import Architecture
from search_spaces import SPACES


@pytest.mark.parametrize(("blocks", "params"), [(3, 269_722), (9, 853_018)])
@pytest.mark.parametrize("connections", ["residual", "plain"])
def test_cifar_resnets(blocks, params, connections):
    """He et al. 2015, table 6: ResNet-20 0.27 M and ResNet-56 0.85 M; option A adds none over the plain net."""
    arch = Architecture({"blocks": blocks, "width": 16, "connections": connections, "shortcut": "A"})
    assert size_of(build(SPACES["resnet"], arch, 10), (32, 32, 3)).params == params
