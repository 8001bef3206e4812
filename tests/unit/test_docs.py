"""docs/architecture.md names what the code defines, and its picture shows today's imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from PIL import Image

from docs import draw_imports

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
LINKS = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/.]+)\)", TEXT)


def defined(path: Path) -> set[str]:
    """The names that a module defines at its top, its own and its folder's."""
    names = {path.stem, path.parent.name}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize(("name", "path"), LINKS)
def test_what_the_page_names_stands_where_it_says(name: str, path: str) -> None:
    assert set(name.split(".")) <= defined(ROOT / path)


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", TEXT)
    assert len(paths) > 3
    assert [path for path in paths if "/" in path and not (ROOT / path).exists() and path != "runs/h"] == []


def test_the_picture_shows_the_imports_of_today() -> None:
    parts = draw_imports.part_graph(draw_imports.import_graph())
    draw_imports.draw(parts)  # every part has a place, and every arrow points down
    with Image.open(draw_imports.PICTURE) as picture:
        shown = picture.info["Description"]
    assert shown == draw_imports.described(parts), "python docs/draw_imports.py draws it again"


def test_an_arrow_that_does_not_point_down_is_not_drawn() -> None:
    with pytest.raises(ValueError, match=r"nas\.trial imports nas\.run, which does not stand below it"):
        draw_imports.draw({"nas.trial": {"nas.run"}, "nas.run": set()})
