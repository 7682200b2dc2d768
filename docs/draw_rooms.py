"""Draws the rooms of the packages and the imports between them, from the source: docs/rooms.svg.

    python docs/draw_rooms.py            # tests compare

Rooms and their floors are those of tests/unit/test_floors.py. An arrow points from a room to one it imports;
imports that follow from other arrows are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
WIDTH, ROW, BOX_HEIGHT, LETTER, PADDING = 900, 86, 34, 7.4, 22

Graph = Mapping[str, set[str]]


def floors() -> ModuleType:
    """The module tests/unit/test_floors.py."""
    spec = importlib.util.spec_from_file_location("test_floors", ROOT / "tests/unit/test_floors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_graph(rules: ModuleType) -> Graph:
    """Room: the rooms that its modules import."""
    graph: dict[str, set[str]] = {room: set() for room in rules.FLOORS}
    for imported in rules.our_imports():
        package = imported.name.partition(".")[0]
        # rlhf/__init__.py imports lazily, for users; it is part of no room.
        if package not in rules.OURS or imported.module == "rlhf" or imported.name == "rlhf.__version__":
            continue
        source, target = rules.room_of(imported.module), rules.room_of(imported.name)
        if source != target:
            graph[source].add(target)
    return graph


def reduced(graph: Graph) -> Graph:
    """The transitive reduction: without the edges that follow from longer paths."""

    def reachable(room: str) -> set[str]:
        return graph[room].union(*(reachable(target) for target in graph[room]))

    return {
        room: {
            target
            for target in targets
            if not any(target in reachable(other) for other in targets - {target})
        }
        for room, targets in graph.items()
    }


def svg(heights: Mapping[str, int], graph: Graph) -> str:
    """The picture: one row for each floor, the highest at the top."""
    rows = sorted(set(heights.values()), reverse=True)
    label = {room: "rlhf: cli, commands" if room == "rlhf" else room for room in heights}
    boxes: dict[str, tuple[float, float, float]] = {}
    for number, floor in enumerate(rows):
        rooms = sorted(room for room, height in heights.items() if height == floor)
        boxes |= _place([(room, len(label[room]) * LETTER + PADDING) for room in rooms], 20 + number * ROW)
    height = 20 + (len(rows) - 1) * ROW + BOX_HEIGHT + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" '
        'font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#6b7a8f"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for room in sorted(graph):
        for target in sorted(graph[room]):
            (x, y, width), (to_x, to_y, to_width) = boxes[room], boxes[target]
            lines.append(
                f'<line x1="{x + width / 2:.0f}" y1="{y + BOX_HEIGHT:.0f}" x2="{to_x + to_width / 2:.0f}" '
                f'y2="{to_y:.0f}" stroke="#6b7a8f" marker-end="url(#tip)"/>'
            )
    for room, (x, y, width) in sorted(boxes.items()):
        lines.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="6" '
            'fill="#eef3f8" stroke="#33658a"/>'
        )
        lines.append(
            f'<text x="{x + width / 2:.0f}" y="{y + 21:.0f}" text-anchor="middle">'
            f"{escape(label[room])}</text>"
        )
    return "\n".join([*lines, "</svg>", ""])


def _place(row: Sequence[tuple[str, float]], y: float) -> dict[str, tuple[float, float, float]]:
    """Boxes of a row as (x, y, width), with equal gaps."""
    gap = (WIDTH - sum(width for _, width in row)) / (len(row) + 1)
    boxes, x = {}, gap
    for room, width in row:
        boxes[room] = (x, y, width)
        x += width + gap
    return boxes


def picture() -> str:
    """The SVG text for the source as it is."""
    rules = floors()
    return svg(rules.FLOORS, reduced(import_graph(rules)))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"Wrote {PICTURE}.")
