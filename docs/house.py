"""Draws the house: python docs/house.py writes docs/house.svg, from the imports of the code and the rooms of its test.

A floor is a group of rooms in tests/test_layers.py, named by the comment above it. The same code gives the same
picture.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

__all__ = ["PICTURE", "draw"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "geventws"
ROOMS = ROOT / "tests" / "test_layers.py"
PICTURE = Path(__file__).with_suffix(".svg")

#: Points. A room is as wide as its name.
WIDTH, LEFT, RIGHT = 760, 140, 744
ROOM_HEIGHT, ROOM_GAP, LINE_GAP, FLOOR_GAP, PADDING = 26, 12, 12, 34, 12
LETTER = 6.5
ROOF = 62

COLOURS = ("#0a7d6c", "#4a64b0", "#b4552d", "#7a4fa3", "#2f7d32", "#a0772a", "#3b7f9c", "#b03a5b", "#55606e")


class Floor(NamedTuple):
    """Rooms that belong together."""

    name: str
    rooms: Sequence[str]


class Box(NamedTuple):
    """Where a room stands in the picture."""

    x: float
    y: float
    width: float


def main() -> int:
    """Writes the picture."""
    PICTURE.write_text(draw())
    return 0


def draw() -> str:
    """The picture, as SVG."""
    floors = [floor for floor in _floors() if floor.rooms]
    boxes, bands, height = _place(floors)
    rooms = [room for floor in floors for room in floor.rooms]
    imports = _imports(rooms)
    colours = {room: COLOURS[at % len(COLOURS)] for at, floor in enumerate(floors) for room in floor.rooms}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" class="house"'
        ' font-family="system-ui, sans-serif">',
        "<title>The modules of geventws, and what each imports</title>",
        "<style>",
        ".house .room:hover rect { stroke-width: 3 }",
        ".house .room text { pointer-events: none }",
        "</style>",
        # The roof, and the walls.
        f'<path d="M10 {ROOF} L{WIDTH / 2:g} 8 L{WIDTH - 10} {ROOF} V{height - 6:g} H10 Z" fill="#ffffff"'
        ' stroke="#8a929c" stroke-width="2" stroke-linejoin="round"/>',
        f'<text x="{WIDTH / 2:g}" y="{ROOF - 14}" text-anchor="middle" font-size="17" font-weight="600"'
        ' fill="#30363d">geventws</text>',
    ]
    for at, (floor, (top, bottom)) in enumerate(zip(floors, bands, strict=True)):
        colour = COLOURS[at % len(COLOURS)]
        lines.append(
            f'<rect x="12" y="{top:g}" width="{WIDTH - 24}" height="{bottom - top:g}" fill="{colour}" opacity="0.07"/>'
        )
        lines += _label(floor.name, colour, (top + bottom) / 2)
    for room in rooms:
        for other in _needed(room, imports):
            lines.append(_line(boxes[room], boxes[other], colours[room], f"{room} imports {other}"))
    for room in rooms:
        box, colour = boxes[room], colours[room]
        told = ", ".join(sorted(imports[room], key=rooms.index)) or "nothing of the package"
        lines.append(
            f'<g class="room"><title>{escape(room)} imports {escape(told)}</title>'
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{ROOM_HEIGHT}" rx="5" fill="#ffffff"'
            f' stroke="{colour}" stroke-width="1.4"/>'
            f'<text x="{box.x + box.width / 2:g}" y="{box.y + 17:g}" text-anchor="middle" font-size="12"'
            f' fill="#1f2328">{escape(room)}</text></g>'
        )
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _floors() -> Iterator[Floor]:
    """The floors, from the top."""
    source = ROOMS.read_text()
    found = re.search(r"^ROOMS = \[\n(.*?)^\]", source, re.MULTILINE | re.DOTALL)
    assert found is not None, "there are no ROOMS in tests/test_layers.py"
    name, rooms = "", []
    for line in found[1].splitlines():
        line = line.strip()
        if line.startswith("#"):
            yield Floor(name, rooms)
            name, rooms = line.lstrip("# ").rstrip("."), []
        else:
            room = line.strip('",')
            # A room may be kept for what is not built yet.
            if _files(room):
                rooms.append(room)
    yield Floor(name, rooms)


def _files(room: str) -> list[Path]:
    """The files of a room: its module, or all of its package, but for those that are rooms of their own."""
    path = PACKAGE.joinpath(*room.split("."))
    if path.with_suffix(".py").exists():
        return [path.with_suffix(".py")]
    named = set(re.findall(r'^    "([\w.]+)",$', ROOMS.read_text(), re.MULTILINE))
    files = []
    for file in sorted(path.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module == room or module not in named:
            files.append(file)
    return files


def _imports(rooms: Sequence[str]) -> Mapping[str, set[str]]:
    """The rooms that each room imports, those for type checking alone left out."""
    imports: dict[str, set[str]] = {}
    for room in rooms:
        names = {name for file in _files(room) for name in _imported(ast.parse(file.read_text()))}
        imports[room] = {other for name in names if (other := _room_of(name, rooms)) and other != room}
    return imports


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imported(ast.Module(node.orelse, []))
        else:
            yield from _imported(node)


def _room_of(name: str, rooms: Sequence[str]) -> str | None:
    """The room of a module of the package; None for another's, and for what is no module."""
    if not name.startswith("geventws."):
        return None
    name = name.removeprefix("geventws.")
    while name not in rooms:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name


def _needed(room: str, imports: Mapping[str, set[str]]) -> list[str]:
    """What a room imports, but for what those import, by any way, too."""
    implied: set[str] = set()
    waiting = list(imports[room])
    while waiting:
        for other in imports[waiting.pop()]:
            if other not in implied:
                implied.add(other)
                waiting.append(other)
    return sorted(imports[room] - implied)


def _place(floors: Sequence[Floor]) -> tuple[Mapping[str, Box], Sequence[tuple[float, float]], float]:
    """Where rooms and floors stand, and the height of the picture."""
    boxes: dict[str, Box] = {}
    bands = []
    y = ROOF + 8.0
    for floor in floors:
        top = y
        y += PADDING
        for row in _rows(floor.rooms):
            widths = [_width(room) for room in row]
            free = RIGHT - LEFT - sum(widths)
            # Spread over the floor where there are several, so that lines find a way between.
            gap = min(free / (len(row) + 1), 60.0)
            x = LEFT + (free - gap * (len(row) - 1)) / 2
            for room, width in zip(row, widths, strict=True):
                boxes[room] = Box(round(x, 1), y, width)
                x += width + gap
            y += ROOM_HEIGHT + LINE_GAP
        y += PADDING - LINE_GAP
        bands.append((top, y))
        y += FLOOR_GAP
    return boxes, bands, y - FLOOR_GAP + 14


def _rows(rooms: Sequence[str]) -> list[list[str]]:
    """The rooms in as few rows as hold them."""
    rows: list[list[str]] = [[]]
    used = 0.0
    for room in rooms:
        width = _width(room) + ROOM_GAP
        if rows[-1] and used + width > RIGHT - LEFT:
            rows.append([])
            used = 0.0
        rows[-1].append(room)
        used += width
    return rows


def _width(room: str) -> float:
    return round(len(room) * LETTER + 20, 1)


def _label(name: str, colour: str, y: float) -> list[str]:
    """A floor's name, in lines of some letters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) > 19:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    top = y - (len(lines) - 1) * 7.5 + 4
    return [
        f'<text x="24" y="{top + at * 15:g}" font-size="12" font-weight="600" fill="{colour}">{escape(line)}</text>'
        for at, line in enumerate(lines)
    ]


def _line(below: Box, above: Box, colour: str, told: str) -> str:
    """From the room that imports up to the one that is imported."""
    x1, y1 = below.x + below.width / 2, below.y
    x2, y2 = above.x + above.width / 2, above.y + ROOM_HEIGHT
    if y2 >= y1:
        # In one row, or on the same height: over the roofs.
        y2 = above.y
        path = f"M{x1:g} {y1:g} C{x1:g} {y1 - 14:g} {x2:g} {y2 - 14:g} {x2:g} {y2:g}"
    else:
        bend = (y1 - y2) / 2
        path = f"M{x1:g} {y1:g} C{x1:g} {y1 - bend:g} {x2:g} {y2 + bend:g} {x2:g} {y2:g}"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-opacity="0.45" stroke-width="1.2">'
        f"<title>{escape(told)}</title></path>"
    )


if __name__ == "__main__":
    sys.exit(main())
