"""Windows sliding over images: the arguments convolution and pooling share, checked and made explicit."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from nas.errors import InputError

Pair = tuple[int, int]
Padding = str | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Windows:
    """Where windows of ``kernel`` taps lie on an image of ``image`` pixels; every pair is (rows, columns)."""

    image: Pair
    kernel: Pair
    strides: Pair
    padding: tuple[Pair, Pair]  # ((top, bottom), (left, right))
    dilation: Pair = (1, 1)

    @property
    def output(self) -> Pair:
        """How many windows fit."""
        rows, columns = (
            (size + sum(pad) - (taps - 1) * dilation - 1) // stride + 1
            for size, taps, stride, pad, dilation in zip(
                self.image, self.kernel, self.strides, self.padding, self.dilation, strict=True
            )
        )
        return rows, columns


def windows(
    place: str,
    image: Sequence[int],
    kernel: Sequence[int],
    strides: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int] = 1,
) -> Windows:
    """``Windows`` with padding in pixels; ``InputError`` where an argument is wrong or no window fits."""
    rows, columns = image
    explicit = Windows(
        image=(rows, columns),
        kernel=pair(place, "window", kernel),
        strides=pair(place, "strides", strides),
        padding=((0, 0), (0, 0)),
        dilation=pair(place, "dilation", dilation),
    )
    found = Windows(
        explicit.image,
        explicit.kernel,
        explicit.strides,
        _explicit_padding(place, padding, explicit),
        explicit.dilation,
    )
    if min(found.output) < 1:
        raise InputError(
            f"{place}: a {found.kernel[0]}x{found.kernel[1]} window (dilation {found.dilation},"
            f" padding {padding}) does not fit an image of {rows}x{columns}"
        )
    return found


def pair(place: str, name: str, value: int | Sequence[int]) -> Pair:
    """``value`` as (rows, columns), one positive number standing for both."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(one, int) and one >= 1 for one in both):
        raise InputError(f"{place}: {name}={value!r} is not a positive number or a pair of them")
    return both


def _explicit_padding(place: str, padding: Padding, at: Windows) -> tuple[Pair, Pair]:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise InputError(
                f"{place}: padding={padding!r} is not one of SAME, VALID, ((top, bottom), (left, right))"
            )
        extent = tuple(
            (taps - 1) * dilation + 1 for taps, dilation in zip(at.kernel, at.dilation, strict=True)
        )
        rows, columns = jax.lax.padtype_to_pads(at.image, extent, at.strides, padding)
        return (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))
    pads = tuple(tuple(side) for side in padding)
    if len(pads) != 2 or any(
        len(side) != 2 or not all(isinstance(one, int) and one >= 0 for one in side) for side in pads
    ):
        raise InputError(
            f"{place}: padding={padding!r} is not one of SAME, VALID, ((top, bottom), (left, right))"
        )
    (top, bottom), (left, right) = pads
    return (top, bottom), (left, right)
