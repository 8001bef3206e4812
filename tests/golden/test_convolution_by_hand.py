"""Convolution as the lecture defines it: the filter is slid, not flipped, and each place is a sum of products."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from nas.nn.layers import conv2d


def slid(image, kernel, **arguments):
    """`conv2d` of one image and one filter, both lists of rows."""
    x = jnp.asarray(image, jnp.float32)[None, :, :, None]
    w = jnp.asarray(kernel, jnp.float32)[:, :, None, None]
    return conv2d(x, w, **arguments)[0, :, :, 0].tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"padding": "VALID"}, [2, 1, 1]),  # 1+1, 1+0, 1+0
        ({"padding": ((0, 0), (1, 1))}, [1, 2, 1, 1, 0]),  # 0+1, 1+1, 1+0, 1+0, 0+0
        ({"padding": "SAME"}, [1, 2, 1, 1, 0]),
        (
            {"padding": ((0, 0), (2, 2))},
            [1, 1, 2, 1, 1, 0, 0],
        ),  # every overlap: 0+1, 0+1, 1+1, 1+0, 1+0, 0+0, 0+0
        ({"padding": "VALID", "stride": 2}, [2, 1]),
        ({"padding": ((0, 0), (1, 1)), "stride": 2}, [1, 1, 0]),
        ({"padding": ((0, 0), (1, 1)), "stride": 3}, [1, 1]),
    ],
)
def test_one_dimension(arguments, expected):
    """Input 1 1 1 0 0, filter 1 0 1."""
    assert slid([[1, 1, 1, 0, 0]], [[1, 0, 1]], **arguments) == [expected]


def test_the_filter_is_not_flipped():
    assert slid([[0, 0, 1, 0, 0]], [[1, 2, 3]], padding="VALID") == [[3, 2, 1]]


IMAGE = [
    [1, 1, 1, 0, 0],
    [0, 1, 1, 1, 0],
    [0, 0, 1, 1, 1],
    [0, 0, 1, 1, 0],
    [0, 1, 1, 0, 0],
]
FILTER = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_two_dimensions():
    assert slid(IMAGE, FILTER, padding="VALID") == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]


def test_two_dimensions_strided():
    """Every other place of the answer without stride."""
    assert slid(IMAGE, FILTER, padding="VALID", stride=2) == [[4, 4], [2, 4]]


def test_two_dimensions_padded():
    """One zero on each side: the middle is the answer without; each border place worked out by hand.

    At the top left corner, say, the filter sees 0 0 0 / 0 1 1 / 0 0 1: its middle 1 and its lower right 1.
    """
    assert slid(IMAGE, FILTER, padding=((1, 1), (1, 1))) == [
        [2, 2, 3, 1, 1],
        [1, 4, 3, 4, 1],
        [1, 2, 4, 3, 3],
        [1, 2, 3, 4, 1],
        [0, 2, 2, 1, 1],
    ]


def test_channels_add_up():
    """Two channels, each with its own filter, give one map: the sum of both answers."""
    x = jnp.stack([jnp.asarray(IMAGE, jnp.float32), jnp.ones((5, 5))], -1)[None]
    w = jnp.stack([jnp.asarray(FILTER, jnp.float32), jnp.full((3, 3), 2.0)], -1)[..., None]
    y = conv2d(x, w, padding="VALID")[0, :, :, 0]
    assert y.tolist() == [[22, 21, 22], [20, 22, 21], [20, 21, 22]]
