"""The one kind of error that is the user's to mend."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one line naming the place, the value and the choices.

    Scripts print it as ``error: <line>`` and exit with 2; no traceback.
    """


def one_of(place: str, value: object, choices: Iterable[object]) -> InputError:
    """``InputError`` that says ``value`` at ``place`` is not among ``choices``."""
    listed = ", ".join(str(choice) for choice in choices)
    return InputError(f"{place}: {value!r} is not one of {listed}")
