"""Draws the house: python docs/house.py writes docs/house.svg, from the imports of the code and the rooms of its test.

A floor is a group of rooms in tests/test_layers.py, named by the comment above it. Lines lead to what is near; what is
far above is written in the room. The same code gives the same picture.
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
WIDTH, LEFT, RIGHT = 680, 26, 654
ROOM_HEIGHT, ROOM_GAP, LINE_GAP, FLOOR_GAP, PADDING = 24, 18, 18, 12, 8
LABEL_HEIGHT = 20
LETTER = 6.4
ROOF = 62
#: Floors that a line may go up.
NEAR = 1
NOTE_LETTER, NOTE_HEIGHT = 4.9, 13
#: Between lines beside each other, and between a line and a room.
APART = 5

COLOURS = ("#0a7d6c", "#4a64b0", "#b4552d", "#7a4fa3", "#2f7d32", "#a0772a", "#3b7f9c", "#b03a5b", "#55606e")


class Floor(NamedTuple):
    """Rooms that belong together."""

    name: str
    rooms: Sequence[str]


class Box(NamedTuple):
    """Where a room, or the name of a floor, stands in the picture."""

    x: float
    y: float
    width: float
    height: float = ROOM_HEIGHT


class Place(NamedTuple):
    """Where everything stands."""

    rooms: Mapping[str, Box]
    labels: Sequence[Box]
    #: Top and bottom of each floor.
    bands: Sequence[tuple[float, float]]
    height: float


def main() -> int:
    """Writes the picture."""
    PICTURE.write_text(draw())
    return 0


def draw() -> str:
    """The picture, as SVG."""
    floors = [floor for floor in _floors() if floor.rooms]
    rooms = [room for floor in floors for room in floor.rooms]
    imports = _imports(rooms)
    floor_of = {room: at for at, floor in enumerate(floors) for room in floor.rooms}
    needed: dict[str, list[str]] = {}
    notes: dict[str, str] = {}
    for room in rooms:
        others = _needed(room, imports)
        needed[room] = [other for other in others if floor_of[room] - floor_of[other] <= NEAR]
        far = [other for other in others if other not in needed[room]]
        notes[room] = f"\N{UPWARDS ARROW} {', '.join(far)}" if far else ""
    place = _place(floors, needed, notes)
    boxes, height = place.rooms, place.height
    colours = {room: COLOURS[at % len(COLOURS)] for at, floor in enumerate(floors) for room in floor.rooms}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" class="house"'
        ' font-family="system-ui, sans-serif">',
        "<title>The modules of geventws, and what each imports</title>",
        "<style>",
        ".house .room path { stroke-opacity: 0.6 }",
        ".house .room text { pointer-events: none }",
        # The lines of the room under the pointer stand out.
        ".house:has(.room:hover) .room path { stroke-opacity: 0.12 }",
        ".house .room:hover path { stroke-opacity: 1 !important; stroke-width: 2.2 }",
        ".house .room:hover rect { stroke-width: 3 }",
        "</style>",
        # The roof, and the walls.
        f'<path d="M10 {ROOF} L{WIDTH / 2:g} 8 L{WIDTH - 10} {ROOF} V{height - 6:g} H10 Z" fill="#ffffff"'
        ' stroke="#8a929c" stroke-width="2" stroke-linejoin="round"/>',
        f'<text x="{WIDTH / 2:g}" y="{ROOF - 14}" text-anchor="middle" font-size="17" font-weight="600"'
        ' fill="#30363d">geventws</text>',
    ]
    for at, (floor, label, (top, bottom)) in enumerate(zip(floors, place.labels, place.bands, strict=True)):
        colour = COLOURS[at % len(COLOURS)]
        lines.append(
            f'<rect x="12" y="{top:g}" width="{WIDTH - 24}" height="{bottom - top:g}" fill="{colour}" opacity="0.08"/>'
        )
        lines.append(
            f'<text x="{label.x:g}" y="{label.y + 13:g}" font-size="12.5" font-weight="600" fill="{colour}">'
            f"{escape(floor.name)}</text>"
        )
    rows = _obstacles([*boxes.values(), *place.labels])
    taken: dict[float, list[float]] = {}
    paths = {
        (room, other): _path(boxes[room], boxes[other], rows, taken)
        for room, other in sorted(
            ((room, other) for room in rooms for other in needed[room]),
            key=lambda pair: boxes[pair[0]].y - boxes[pair[1]].y,
        )
    }
    for room in rooms:
        box, colour = boxes[room], colours[room]
        told = ", ".join(sorted(imports[room], key=rooms.index)) or "nothing of the package"
        lines.append(f'<g class="room"><title>{escape(room)} imports {escape(told)}</title>')
        lines += [
            f'<path d="{paths[room, other]}" fill="none" stroke="{colour}" stroke-width="1.3">'
            f"<title>{escape(room)} imports {escape(other)}</title></path>"
            for other in needed[room]
        ]
        lines.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="5" fill="#ffffff"'
            f' stroke="{colour}" stroke-width="1.4"/>'
            f'<text x="{box.x + box.width / 2:g}" y="{box.y + 16:g}" text-anchor="middle" font-size="12"'
            f' fill="#1f2328">{escape(room)}</text>'
        )
        if notes[room]:
            lines.append(
                f'<text x="{box.x + box.width / 2:g}" y="{box.y + 30:g}" text-anchor="middle" font-size="9.5"'
                f' fill="#57606a">{escape(notes[room])}</text>'
            )
        lines.append("</g>")
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _floors() -> Iterator[Floor]:
    """The floors, from the top."""
    source = ROOMS.read_text()
    found = re.search(r"^ROOMS = \[\n(.*?)^\]", source, re.MULTILINE | re.DOTALL)
    assert found is not None, "there are no ROOMS in tests/test_layers.py"
    name = ""
    rooms: list[str] = []
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


def _place(floors: Sequence[Floor], needed: Mapping[str, Sequence[str]], notes: Mapping[str, str]) -> Place:
    """Where rooms, floors and their names stand: a room below all that it imports."""
    boxes: dict[str, Box] = {}
    labels = []
    bands = []
    y = ROOF + 8.0
    for floor in floors:
        top = y
        labels.append(Box(LEFT - 4, y + 4, len(floor.name) * 6.8, LABEL_HEIGHT - 4))
        y += LABEL_HEIGHT + PADDING
        widths_of = {room: _width(room, notes[room]) for room in floor.rooms}
        for row in _rows(widths_of, needed):
            # Below what they import, so that lines are short and cross little.
            row = sorted(row, key=lambda room: _middle(boxes, needed[room]))
            widths = [widths_of[room] for room in row]
            gap = (RIGHT - LEFT - sum(widths)) / (len(row) + 1)
            x = LEFT + gap
            for room, width in zip(row, widths, strict=True):
                height = ROOM_HEIGHT + (NOTE_HEIGHT if notes[room] else 0)
                boxes[room] = Box(round(x, 1), y, width, height)
                x += width + gap
            y += max(boxes[room].height for room in row) + LINE_GAP
        y += PADDING - LINE_GAP
        bands.append((top, y))
        y += FLOOR_GAP
    return Place(boxes, labels, bands, y - FLOOR_GAP + 14)


def _rows(rooms: Mapping[str, float], needed: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The rooms of a floor, which have widths, in rows: below what they import, and no row wider than the house."""
    depths: dict[str, int] = {}
    for room in rooms:
        depths[room] = max((depths[other] + 1 for other in needed[room] if other in depths), default=0)
    rows: list[list[str]] = []
    for depth in range(max(depths.values()) + 1):
        rows.append([])
        used = 0.0
        for room in (room for room in rooms if depths[room] == depth):
            width = rooms[room] + ROOM_GAP
            if rows[-1] and used + width > RIGHT - LEFT - ROOM_GAP:
                rows.append([])
                used = 0.0
            rows[-1].append(room)
            used += width
    return rows


def _middle(boxes: Mapping[str, Box], rooms: Sequence[str]) -> float:
    """Where the rooms are, from left to right; in the middle of the house where there are none."""
    middles = [boxes[room].x + boxes[room].width / 2 for room in rooms]
    return sum(middles) / len(middles) if middles else (LEFT + RIGHT) / 2


def _width(room: str, note: str) -> float:
    return round(max(len(room) * LETTER, len(note) * NOTE_LETTER) + 16, 1)


def _obstacles(boxes: Sequence[Box]) -> list[list[Box]]:
    """What lines go around: the boxes of each height, from the bottom, each from left to right."""
    rows: dict[float, list[Box]] = {}
    for box in boxes:
        rows.setdefault(box.y, []).append(box)
    return [sorted(rows[y]) for y in sorted(rows, reverse=True)]


def _path(below: Box, above: Box, rows: Sequence[Sequence[Box]], taken: dict[float, list[float]]) -> str:
    """From the room that imports up to the one that is imported, between the rooms on the way."""
    start, end = below.x + below.width / 2, above.x + above.width / 2
    on_the_way = [row for row in rows if above.y < row[0].y < below.y]
    stops: list[tuple[float, Box]] = []
    at = start
    for number, row in enumerate(on_the_way):
        # Straight on to where it ends.
        wanted = at + (end - at) / (len(on_the_way) - number + 1)
        at = _passage(row, wanted, taken.setdefault(row[0].y, []))
        stops.append((at, max(row, key=lambda box: box.height)))
    first = stops[0][0] if stops else end
    x = min(max(first, below.x + 8), below.x + below.width - 8)
    y = below.y
    path = f"M{x:g} {y:g}"
    for stop, row_box in stops:
        bottom = row_box.y + row_box.height
        path += f" C{x:g} {(y + bottom) / 2:g} {stop:g} {(y + bottom) / 2:g} {stop:g} {bottom:g} V{row_box.y:g}"
        x, y = stop, row_box.y
    last = min(max(x, above.x + 8), above.x + above.width - 8)
    bottom = above.y + above.height
    return f"{path} C{x:g} {(y + bottom) / 2:g} {last:g} {(y + bottom) / 2:g} {last:g} {bottom:g}"


def _passage(row: Sequence[Box], wanted: float, taken: list[float]) -> float:
    """Where a line passes a row: as near as can be to where it wants to, and not where another does."""
    walls = [LEFT - 10.0, *(side for box in row for side in (box.x, box.x + box.width)), RIGHT + 10.0]
    best = wanted
    found = float("inf")
    for left, right in zip(walls[::2], walls[1::2], strict=True):
        x = left + APART
        while x <= right - APART:
            # One that has to share its place goes elsewhere first, if that is not too far.
            crowded = 60.0 if any(abs(x - other) < APART for other in taken) else 0.0
            if abs(x - wanted) + crowded < found:
                best, found = x, abs(x - wanted) + crowded
            x += 1
    taken.append(best)
    return round(best, 1)


if __name__ == "__main__":
    sys.exit(main())
