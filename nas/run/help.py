"""The help text of a command line: its options by topic, whichever dataclasses they are fields of."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

Topics = Mapping[str, Sequence[str]]
"""Titles and the options below each; the name of a dataclass among them means those of its options that no title has
by their own names."""


class Option(typing.NamedTuple):
    """A field as tyro takes it: its name, its type with its help, and its default."""

    name: str
    hint: Any
    default: Any


def by_topic(config_type: type, topics: Topics) -> type:
    """A dataclass with the options of ``config_type``, a dataclass within it for each topic that has some.

    It serves to print help alone: what the command line means is read into ``config_type`` itself.
    """
    import tyro

    placed = {name: title for title, names in topics.items() for name in names}
    groups: dict[str, list[Option]] = {title: [] for title in ("", *topics)}
    for path, option in options_in(config_type):
        if tyro.conf.Suppress in getattr(option.hint, "__metadata__", ()):
            continue
        title = next((placed[name] for name in (option.name, *path) if name in placed), "")
        groups[title].append(option)
    for title, names in topics.items():
        groups[title].sort(key=lambda option, names=tuple(names): _place(option.name, names))
    fields: list[tuple[str, Any, Any]] = [*groups.pop("")]
    for title, options in groups.items():
        if options:
            group = dataclasses.make_dataclass(title.title().replace(" ", ""), options)
            group.__doc__ = ""
            named = Annotated[group, tyro.conf.arg(name=title)]
            fields.append((title.replace(" ", "_"), named, dataclasses.field(default_factory=group)))
    made = dataclasses.make_dataclass(config_type.__name__, fields)
    made.__doc__ = config_type.__doc__
    return made


def _place(name: str, names: tuple[str, ...]) -> int:
    """Where a title has the option; those that it has by their dataclass's name come last, in their own order."""
    return names.index(name) if name in names else len(names)


def options_in(config_type: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Option]]:
    """Every option, with the names of the dataclasses that it stands in, the innermost first."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    plain = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        if isinstance(plain[field.name], type) and dataclasses.is_dataclass(plain[field.name]):
            yield from options_in(plain[field.name], (field.name, *path))
            continue
        yield path, Option(field.name, _with_help(hint, docstring_of(config_type, field.name)), _again(field))


def _with_help(hint: Any, text: str) -> Any:
    import tyro

    given = [meta for meta in getattr(hint, "__metadata__", ()) if getattr(meta, "help", None)]
    return hint if given or not text else Annotated[hint, tyro.conf.arg(help=text)]


def _again(field: dataclasses.Field[Any]) -> Any:
    """A field of another dataclass with the same default; a dataclass's fields with none come first."""
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field()


def docstring_of(config_type: type, name: str) -> str:
    """The text below field ``name`` in the class that defines it, "" where there is none."""
    for defining in config_type.__mro__:
        if name in inspect.get_annotations(defining):
            return _texts_of(defining).get(name, "")
    return ""


@functools.cache  # the source of a class is found by parsing its whole file
def _texts_of(defining: type) -> dict[str, str]:
    """The text below each field of a class; none of a class without a source."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        body = ast.parse(textwrap.dedent(inspect.getsource(defining))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
