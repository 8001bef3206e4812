"""An architecture drawn: the graph of its network's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.api.inputs import Space, spaces_of
from nas.space import Architecture, SearchSpace

Figure = Any
"""A figure of matplotlib, which a notebook shows."""


def draw(
    space: Space,
    arch: Mapping[str, Any] | str,
    *,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Figure:
    """The network of ``arch``, layer by layer, as a matplotlib figure.

    >>> import nas
    >>> figure = nas.draw("minichain", nas.api.inputs.named_spaces("minichain")["minichain"].sample(0))
    >>> figure.get_size_inches().shape
    (2,)

    Args:
        arch: an architecture of ``space``, or its text.
        image_shape: (height, width, channels) of the images that it is built for.

    Raises:
        InputError: there is no such architecture, or the space has no networks.
    """
    name, spaces = spaces_of(space)
    return drawn(spaces[name], arch, num_classes=num_classes, image_shape=image_shape)


def drawn(
    space: SearchSpace, arch: Mapping[str, Any] | str, *, num_classes: int, image_shape: tuple[int, int, int]
) -> Figure:
    """See `draw`."""
    from nas.nn.bridge import build
    from nas.report import network_drawing
    from nas.training.profile import dissect

    meant: Architecture = space.from_string(arch) if isinstance(arch, str) else space.canonical(arch)
    anatomy = dissect(build(space, meant, num_classes), image_shape)
    sizes = anatomy.outline
    title = f"{space.name}\n{sizes.params:,} parameters, {sizes.macs_per_image:,} multiply-adds"
    return shown(network_drawing.draw(anatomy.layers, image_shape, title))


def shown(figure: Figure) -> Figure:
    """``figure``, so that a notebook shows it also where pyplot is not used."""
    figure._repr_png_ = lambda: png_of(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
