"""What holds for all tests: Hypothesis draws the same examples on every run and has no deadline."""

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("house")
