"""What the package's own code must not have: some faults are absent by what is not written."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import geventws

PACKAGE = Path(geventws.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd"))

#: Names of what a peer has to know, whose comparison must take the same time wherever it differs.
SECRET = re.compile(r"secret|passw|credential|digest|signature|hmac|cookie|authori[sz]|authent", re.IGNORECASE)

#: What makes objects or code of bytes, and randomness that can be foretold.
UNSAFE_MODULES = {"dill", "marshal", "pickle", "random", "shelve", "xmlrpc", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in SOURCES if path.suffix == ".py"}


def test_there_are_sources() -> None:
    assert {"codec.py", "buffer.pyx", "codec.pxd", "handshake.py"} <= {path.name for path in SOURCES}


def test_no_secret_is_compared_byte_by_byte() -> None:
    """A3 row 45: nothing here is secret but to the application; what would be goes through hmac.compare_digest."""
    wrong = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            # Whether there is one, by identity, is no comparison.
            if isinstance(node, ast.Compare) and not all(isinstance(each, ast.Is | ast.IsNot) for each in node.ops):
                names = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
                names += [each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)]
                if any(map(SECRET.search, names)):
                    wrong.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_hmac_is_imported_for_its_comparison_alone() -> None:
    """A3 row 45."""
    for path in SOURCES:
        for line in path.read_text().splitlines():
            if re.search(r"\bhmac\b", line):
                assert re.search(r"\bimport hmac\b|from hmac import compare_digest$|hmac\.compare_digest\(", line), line


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_module_makes_objects_of_bytes_or_foretells_randomness(path: Path) -> None:
    """A2 row 29 and A4 row 48: randomness is the system's, and nothing is unpickled."""
    for line in path.read_text().splitlines():
        found = re.match(r"\s*(?:from|c?import)\s+([a-zA-Z_]+)", line)
        assert found is None or found[1] not in UNSAFE_MODULES, line
        # Of C, which Cython would call.
        assert not re.search(r"\bs?rand(?:om|_r)?\s*\(", line), line


def test_nothing_is_evaluated() -> None:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in UNSAFE_CALLS, f"{name}:{node.lineno}"
