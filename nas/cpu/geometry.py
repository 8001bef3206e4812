"""Windows that slide over images, as convolution and pooling share them."""

from dataclasses import dataclass

import numpy as np

Pair = tuple[int, int]


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

    def numbers(self, groups: int = 1, members: int = 1) -> np.ndarray:
        """What kernels are told: int64 in the order of Geometry in geometry.h."""
        (top, bottom), (left, right) = self.padding
        sides = [*self.image, *self.kernel, *self.strides, top, bottom, left, right, *self.dilation]
        return np.array([*sides, groups, members], np.int64)
