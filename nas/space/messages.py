"""How values are shown in error messages and in the text of architectures."""

from __future__ import annotations


def clip(value: object, limit: int = 80) -> str:
    """``repr(value)``, always one line, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str) -> str:
    """``text`` itself where it is short and printable, else as `clip` shows it."""
    return text if text.isprintable() and len(text) <= 80 else clip(text)


def text_of(value: object) -> str:
    """A value as the text of an architecture has it: strings bare, the others as Python writes them."""
    return value if isinstance(value, str) else repr(value)
