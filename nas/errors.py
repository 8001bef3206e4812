"""The one kind of error that is the user's to mend, and the one that ends everything: a full disk."""

import difflib
import errno
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one line naming the place, the value and the choices.

    Scripts print it as ``error: <line>`` and exit with 2; no traceback.
    """


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """`` (did you mean hyperband?)`` where one of ``choices`` is like ``value``, else nothing."""
    near = difflib.get_close_matches(str(value)[:100], list(choices), n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def one_of(place: str, value: object, choices: Iterable[object]) -> InputError:
    """``InputError`` that says ``value`` at ``place`` is not among ``choices``, and which it is most like."""
    texts = [str(choice) for choice in choices]
    shown = repr(value)
    if len(shown) > 100:
        shown = f"{shown[:100]}…"
    return InputError(f"{place}: {shown} is not one of {', '.join(texts)}{did_you_mean(value, texts)}")


DISK_FULL = ("No space left on device", "Disk quota exceeded")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came from, is a full disk; TensorStore says so in the text of a ValueError."""
    seen: set[int] = set()  # a cause may have the error that it caused as its context
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
