"""SECURITY.md, docs/reliability.md, docs/migrating.md: every row has its place, and every test they name exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECURITY = ROOT / "SECURITY.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
MIGRATING = ROOT / "docs" / "migrating.md"

#: The rows of each part of docs/reliability.md.
PARTS = {
    "A1": range(1, 17),
    "A2": range(17, 30),
    "A3": range(30, 48),
    "A4": range(48, 53),
    "C1": range(1, 11),
    "C2": range(11, 19),
}
FAULT_TESTS = (1, 2, 3, 5, 7, 9, 10, 11, 12, 14, 15, 16, 18, 19, 20, 21, 23, 24, 26, 27, 29, 31, 32, 33, 34, 35, 37, 39)


def tables(path: Path) -> Iterator[list[str]]:
    """The cells of each row of a document's tables, heads and rules left out."""
    lines = [*path.read_text().splitlines(), ""]
    for line, next_line in pairwise(lines):
        if line.startswith("| ") and not next_line.startswith("|---"):
            # A cell holds no bar of its own.
            yield [cell.strip() for cell in line.strip("|").split("|")]


@cache
def functions(path: Path) -> frozenset[str]:
    """The names of the tests in a file, and of the classes that hold them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test"):
            names.add(node.name)
    return frozenset(names)


@pytest.mark.parametrize(
    ("document", "least"),
    [(SECURITY, 80), (RELIABILITY, 80), (MIGRATING, 30)],
    ids=["security", "reliability", "migrating"],
)
def test_the_tests_that_are_named_exist(document: Path, least: int) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", document.read_text())
    assert len(named) > least
    for file, name in named:
        assert name in functions(Path(__file__).parent / file), f"{file}::{name}"


def test_the_figures_that_are_asked_for_are_those_of_tests_named_beside() -> None:
    count = 0
    for cells in tables(RELIABILITY):
        for test in re.findall(r"\{figure:(\w+)", cells[3]):
            assert f"::{test}`" in cells[2], cells
            count += 1
    assert count > 80


def test_the_threat_model_has_every_row_once() -> None:
    found = re.findall(r"^\| \*\*(\d+)\*\* ", SECURITY.read_text(), re.MULTILINE)
    assert sorted(map(int, found)) == list(range(1, 53))


def test_the_rows_of_the_threat_model_are_whole() -> None:
    for cells in tables(SECURITY):
        if not cells[0].startswith("**") or not cells[0][2].isdigit():
            continue
        assert len(cells) == 4, cells
        assert cells[1], cells
        assert "::" in cells[2] or cells[2] == "the same", cells


def test_the_table_of_tests_has_every_row_once() -> None:
    found = [cells[0] for cells in tables(RELIABILITY)]
    expected = [f"{part} {number}" for part, numbers in PARTS.items() for number in numbers]
    expected += [f"T{number:02}" for number in FAULT_TESTS]
    for row in expected:
        assert found.count(row) == 1, row
    others = [row for row in found if row not in expected]
    assert all(row.startswith("C3 ") for row in others), others
    assert len(others) == 14


def test_every_row_of_the_table_says_where_it_is_shown() -> None:
    for cells in tables(RELIABILITY):
        assert len(cells) == 4, cells
        assert cells[2], cells


def test_every_pain_has_its_row() -> None:
    rows = [cells[0] for cells in tables(MIGRATING) if len(cells) == 4 and cells[0].isdigit()]
    assert rows == [str(number) for number in range(1, 26)]
