"""The ``mbconv`` space: networks of inverted residuals, from MobileNetV2 to EfficientNet-B7 and Once-for-all's.

A stem (3x3 convolution), up to seven stages of inverted residuals, a 1x1 convolution, the mean over all pixels, a
hidden dense layer where there is one, a classifier. A block expands its input by a 1x1 convolution, convolves each
channel, weighs channels by squeeze and excitation where it has that, and projects to the stage's width without
activation; its input is added where the shape stays (Sandler et al. 2018, Hu et al. 2018).
"""

from search_spaces.mbconv.published import NAMED, SUBSPACES
from search_spaces.mbconv.space import SPACE, build

__all__ = ["NAMED", "SPACE", "SUBSPACES", "build"]
