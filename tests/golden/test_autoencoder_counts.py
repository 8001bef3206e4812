"""The cat neuron's networks, counted by hand."""

from nas.objectives.train import build, size_of
from search_spaces.autoencoder import NAMED, SPACE


def stages(side: int, channels: int, fields: list[int], maps: int, pool: int) -> tuple[int, int]:
    """Weights of the encoders, and the outputs of the last stage.

    On a ``side`` x ``side`` map a field of f pixels has (side - f + 1)^2 places, at each of which every map has
    f f channels weights of its own; pooling p x p places leaves (places - p + 1)^2.
    """
    weights = 0
    for field in fields:
        places = side - field + 1
        weights += places**2 * maps * field**2 * channels
        side, channels = places - pool + 1, maps
    return weights, side**2 * channels


def test_the_published_network():
    """Le et al. 2012, section 3.2: 200x200 pixels of three colours, fields of 18x18, 8 maps, pools of 5x5.

    The paper says "1 billion trainable parameters" and not how it counts. With a field at every pixel and
    nothing at the edges the three encoders have

        183^2 * 8 * 972 + 162^2 * 8 * 2592 + 141^2 * 8 * 2592 = 260,410,464 + 544,195,584 + 412,252,416

    = 1,216,858,464 weights: encoders alone are its billion. Decoders have as many again, and the readout of two
    classes that the space adds 137^2 * 8 * 2 + 2.
    """
    encoders, outputs = stages(200, 3, [18, 18, 18], maps=8, pool=5)
    assert encoders == 1_216_858_464
    assert outputs == 137**2 * 8 == 150_152
    named = NAMED["cat_neuron_1b"]
    size = size_of(build(SPACE, named.arch, named.num_classes), named.image_shape)
    assert size.params == 2 * encoders + 2 * outputs + 2 == named.params == 2_434_017_234
    tied = build(SPACE, named.arch.set(decoder="tied"), 2)
    assert size_of(tied, named.image_shape).params == encoders + 2 * outputs + 2


def test_the_network_for_cifar10():
    """26^2 * 8 * 147 + 18^2 * 8 * 392 + 10^2 * 8 * 392 = 794,976 + 1,016,064 + 313,600 weights of encoders."""
    encoders, outputs = stages(32, 3, [7, 7, 7], maps=8, pool=3)
    assert (encoders, outputs) == (2_124_640, 512)
    named = NAMED["cat_neuron"]
    size = size_of(build(SPACE, named.arch, named.num_classes), named.image_shape)
    assert size.params == 2 * encoders + 10 * outputs + 10 == named.params == 4_254_410
    # One a weight of encoders and readout; the two Gaussian windows of a stage's contrast normalisation, convolutions
    # of one map, are counted as well.
    assert size.macs_per_image == encoders + 10 * outputs + 2 * 25 * (24**2 + 16**2 + 8**2)
    shared = build(SPACE, named.arch.set(weights="shared"), named.num_classes)
    assert size_of(shared, named.image_shape).params == 2 * 8 * (147 + 392 + 392) + 5130
