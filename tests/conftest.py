"""Hypothesis draws the same examples on every run and has no deadline: a slow machine is not a failure."""

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("house")
