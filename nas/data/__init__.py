"""Image-classification sets behind one ``load``: embedded and generated ones, and any TFDS set prepared as
array_record.

``load`` gives a search what it may see, train and validation; ``load_test`` is the only way to test images.
Both memory-map a cache that is decoded once, so a worker process loads by calling them itself.
"""

from nas.data.dataset import Dataset, Split
from nas.data.generated import GENERATED
from nas.data.loading import EMBEDDED, load, load_test

__all__ = ["EMBEDDED", "GENERATED", "Dataset", "Split", "load", "load_test"]
