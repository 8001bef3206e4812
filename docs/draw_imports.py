"""Which module imports which, and the picture of it: python docs/draw_imports.py writes docs/imports.png."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nas", "search_spaces", "experiments", "scripts")
PICTURE = ROOT / "docs" / "imports.png"

# What is drawn: a folder, within nas a package or file there; its column and row, and what it is.
PARTS = {
    "nas.check": (0.6, 0, "of users' own files"),
    "nas.api": (2.3, 1, "programs, notebooks"),
    "scripts": (1.5, 0, "command lines"),
    "experiments": (3.6, 1, "papers' experiments"),
    "nas.run": (1.7, 2, "plan, engines"),
    "nas.report": (3.6, 3, "tables, plots, HTML"),
    "search_spaces": (4.6, 3, "networks by family"),
    "nas.strategies": (0.6, 4, "ask and tell"),
    "nas.objectives": (1.7, 4, "what a trial is worth"),
    "nas.record": (2.7, 4, "a run, append-only"),
    "nas.tables": (0.2, 5, "benchmark tables"),
    "nas.oneshot": (1.6, 5, "search in a supernet"),
    "nas.proxies": (2.95, 5, "scores, no training"),
    "nas.pareto": (0.5, 6, "fronts"),
    "nas.tpu": (4.6, 4, "chips not at hand"),
    "nas.export": (4.9, 1, "StableHLO, ONNX"),
    "nas.training": (3.6, 6, "one pure train step"),
    "nas.nn": (4.5, 7, "layers, supernets"),
    "nas.trial": (1.55, 7, "trial, measurement"),
    "nas.data": (3.6, 7, "sets of images"),
    "nas.storage": (3.9, 8, "buckets"),
    "nas.ending": (2.9, 8, "SIGTERM"),
    "nas.space": (1.1, 9, "architectures, spaces"),
    "nas.goals": (2.05, 9, "objectives, constraints"),
    "nas.cache": (4.0, 9, "what is kept on disk"),
    "nas.cpu": (4.9, 9, "fast beneath JAX"),
    "nas.own_file": (3.0, 9, "users' own files"),
    "nas.errors": (2.4, 10, "errors in one line"),
    "nas.cores": (3.6, 10, "of this machine"),
}


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules below ``root`` and which of them each imports, wherever in its file.

    ``from package import module`` imports the module; the package itself only where it also takes a name from it.
    """
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    names = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names if alias.name in names)
            elif isinstance(node, ast.ImportFrom) and node.module in names:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= full & names.keys() or {node.module}
                if full - names.keys():
                    graph[name].add(node.module)
    return graph


def part_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between the parts of the picture."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if name != "nas":  # it is empty
            parts = {part_of(target) for target in targets if target != "nas"}
            found.setdefault(part_of(name), set()).update(parts - {part_of(name)})
    return found


def part_of(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("nas.") else 1])


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """What ``start`` imports, directly or through others."""
    found: set[str] = set()
    queue = list(graph[start])
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += graph[name]
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another, directly or through others, in order of name."""
    all_reached = {name: reached(graph, name) for name in graph}
    circular = [name for name in graph if name in all_reached[name]]
    groups = {tuple(b for b in circular if b in all_reached[a] and a in all_reached[b]) for a in circular}
    return sorted(map(list, groups))


def arrows(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: of a -> b -> c and a -> c the first two. ``graph`` has no cycle."""
    return sorted(
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if not any(target in reached(graph, other) for other in targets - {target})
    )


def draw(graph: Mapping[str, set[str]]) -> Figure:
    """Every part in its place, every arrow of `arrows`; raises ValueError for one that would not point down."""
    wide, high, scale = 0.8, 0.55, (2.2, 0.95)  # inches a column and a row
    columns, rows = [PARTS[name][0] for name in graph], [PARTS[name][1] for name in graph]
    figure = Figure(
        figsize=(scale[0] * (max(columns) - min(columns) + 1), scale[1] * (max(rows) - min(rows) + 1))
    )
    axes = figure.add_axes((0, 0, 1, 1))
    for name, target in arrows(graph):
        (x, y, _), (to_x, to_y, _) = PARTS[name], PARTS[target]
        if y >= to_y:
            raise ValueError(
                f"{name} imports {target}, which does not stand below it in docs/draw_imports.py"
            )
        arrow = {"arrowstyle": "-|>", "color": "0.45", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (to_x, to_y - high / 2), (x, y + high / 2), arrowprops=arrow, zorder=1)
    for name in graph:
        x, y, text = PARTS[name]
        colour = "#E3EEF9" if name.startswith("nas") else "#FBEBD8"
        box = Rectangle(
            (x - wide / 2, y - high / 2), wide, high, facecolor=colour, edgecolor="0.35", zorder=2
        )
        axes.add_patch(box)
        axes.text(x, y - 0.09, name, ha="center", va="center", fontsize=9.5, family="monospace", zorder=3)
        axes.text(x, y + 0.12, text, ha="center", va="center", fontsize=8, color="0.25", zorder=3)
    axes.set_xlim(min(columns) - 0.5, max(columns) + 0.5)
    axes.set_ylim(max(rows) + 0.5, min(rows) - 0.5)
    axes.set_axis_off()
    return figure


def described(graph: Mapping[str, set[str]]) -> str:
    """What the picture shows, as text; it is kept in the picture's file."""
    return "; ".join(f"{name} -> {target}" for name, target in arrows(graph))


if __name__ == "__main__":
    parts = part_graph(import_graph())
    draw(parts).savefig(PICTURE, dpi=110, metadata={"Description": described(parts)})
    print(PICTURE)
