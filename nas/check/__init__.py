"""What a space, a strategy, an objective and a data set have to keep to, as functions that say what is wrong.

``python -m nas.check my.py`` runs them on what a user's file defines; ``tests/conformance`` on all that is here.
"""

from nas.check.base import Check, CheckFailed, require

__all__ = ["Check", "CheckFailed", "require"]
