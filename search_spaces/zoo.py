"""The famous networks by name: every family's ``NAMED`` in one dictionary.

Names are lower case, without punctuation but the underscore that sets a variant apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from nas.errors import InputError
from nas.space import Architecture, SearchSpace, parse_architecture
from search_spaces import FAMILIES, SPACES, spaces_with
from search_spaces.named import Named


def merged(families: Iterable[Mapping[str, Named]]) -> dict[str, Named]:
    """All of ``families`` in one; ValueError for a name given twice or not written as names are."""
    found: dict[str, Named] = {}
    for family in families:
        for name, named in family.items():
            if name in found:
                raise ValueError(f"{name}: named by {found[name].space} and by {named.space}")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{name}: not lower-case letters, digits and underscores")
            found[name] = named
    return found


ZOO: dict[str, Named] = merged(getattr(family, "NAMED", {}) for family in FAMILIES)


def find_architecture(text: str) -> tuple[SearchSpace, Architecture, Named | None]:
    """The space and architecture that ``text`` means, and the named network if it is one's name.

    ``resnet20``, ``space:architecture``, ``my_space.py:architecture`` or, of a file with several spaces,
    ``my_space.py:tiny:architecture``. Raises InputError.
    """
    if text in ZOO:
        named = ZOO[text]
        return SPACES[named.space], named.arch, named
    if own := re.match(r"(.+?\.py:[A-Za-z_]\w*):(.*)", text, re.DOTALL):
        space = spaces_with(own[1])[own[1]]
        return space, space.from_string(own[2]), None
    if ":" in text:
        return *parse_architecture(text, spaces_with(text.partition(":")[0])), None
    name = re.sub(r"[^a-z0-9_]", "", text.lower())
    near = [known for known in ZOO if name and name in known] or difflib.get_close_matches(name, ZOO, n=4)
    near = [name] if name in ZOO else near[:6]
    said = f"near: {', '.join(near)}" if near else f"the named ones are {', '.join(ZOO)}"
    raise InputError(
        f"arch: {text} is neither a named network, space:architecture nor the folder of a run; {said}"
    )
