"""What holds for all tests: Hypothesis draws the same examples on every run and has no deadline; shapes are checked;
programs that tests start import this checkout, whatever is installed."""

import os

from hypothesis import settings

from tests import shapes

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("house")

shapes.install()  # before anything of these packages is imported

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(shapes.ROOT), os.environ.get("PYTHONPATH")]))
