"""What may import what: each module only those that stand above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import geventws

PACKAGE = Path(geventws.__file__).parent

#: The rooms of the house, from the top. A module imports modules of the package that stand before it here.
ROOMS = [
    # The nouns.
    "_build",
    "errors",
    "arguments",
    "frames",
    "settings",
    "stats",
    # Bytes in, bytes out.
    "protocol.extensions",
    "protocol.buffer",
    "protocol.shared",
    "protocol.deflating",
    "protocol.codec",
    "protocol.output",
    "protocol.deflate",
    "protocol.handshake",
    "protocol.client_handshake",
    "protocol.url",
    "http_head",
    # What peers do wrong, told to operators.
    "peer_log",
    # The seam between the server half and the application half.
    "upgrade",
    # One socket.
    "transport",
    "schedule",
    "spare_memory",
    "arrivals",
    "switching",
    "tls",
    "deadlines",
    "fragmenting",
    "connection",
    # Sessions.
    "pinger",
    "converters",
    "session",
    # A client's.
    "dialing",
    "client_session",
    # Routes.
    "call",
    "routing",
    # Many sessions.
    "topics.prefetching",
    "topics.delivery",
    "topics.broadcasting",
    "topics.audience",
    "topics.nouns",
    "topics.statistics",
    # Many processes.
    "topics.wire",
    "topics.redis_scripts",
    "topics.redis_connections",
    "topics.redis_subscriptions",
    "topics.redis_commands",
    "topics.redis_channels",
    "topics.redis_links",
    "topics.redis_presence",
    "topics.redis_process",
    "topics.redis_publishing",
    "topics.redis_greenlets",
    "topics.redis_broker",
    # A process's own part in it.
    "topics.history",
    "topics.topic",
    "topics.recovery",
    "topics.local",
    "topics.threads",
    "topics.topics",
    "topics",
    # The server half.
    "accepting",
    "lent_socket",
    # The faces.
    "flask",
    "socketio",
    "metrics",
    "dashboard",
    "server",
    "offers",
    "worker",
    "client",
    "interrupting",
    "testing",
    "compat",
    "connecting",
    "__main__",
]

#: What is imported from below for its type alone, under TYPE_CHECKING: a noun that holds what is made further down, or
#: a part that knows what has it.
TYPES_FROM_BELOW = {
    ("errors", "frames"),
    ("settings", "converters"),
    ("settings", "protocol.extensions"),
    ("pinger", "session"),
    ("topics.redis_commands", "topics.redis_links"),
    ("topics.redis_channels", "topics.redis_links"),
    ("topics.redis_links", "topics.redis_greenlets"),
    ("topics.redis_presence", "topics.redis_greenlets"),
    ("topics.topic", "topics.local"),
}

#: The facades, which import for others and are imported by none.
FACADES = {"", "protocol", "topics"}

#: What code without I/O has no business with.
INPUT_AND_OUTPUT = {
    "_socket", "asyncio", "flask", "gevent", "greenlet", "gunicorn", "http.client", "http.server", "io", "logging",
    "multiprocessing", "select", "selectors", "signal", "socket", "socketserver", "ssl", "subprocess", "threading",
    "time", "urllib.request", "werkzeug",
}  # fmt: skip

#: What only these modules may import; the rest works without it.
OPTIONAL = {
    "flask": {"compat.flask_sock", "flask"},
    "gunicorn": {"offers", "worker"},
    "msgspec": {"converters"},
    "prometheus_client": {"metrics"},
    "redis": {
        "topics.redis_channels",
        "topics.redis_commands",
        "topics.redis_connections",
        "topics.redis_greenlets",
        "topics.redis_links",
        "topics.redis_presence",
        "topics.redis_process",
        "topics.redis_publishing",
    },
}


def name_of(path: Path) -> str:
    """The module in a file, without the package's name."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, checking: bool = False) -> Iterator[tuple[str, bool]]:
    """The modules that are imported anywhere in ``tree``, each with whether it is for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module is not None
            # `from geventws import x` names modules by their last part.
            if node.module in ("geventws", "geventws.protocol"):
                yield from ((f"{node.module}.{alias.name}", checking) for alias in node.names)
            else:
                yield node.module, checking
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.body, []), True)
            yield from imports(ast.Module(node.orelse, []), checking)
        else:
            yield from imports(node, checking)


def own(imported: str) -> str | None:
    """The module of the package that an import names, None for another's."""
    return imported.removeprefix("geventws.") if imported.startswith("geventws.") else None


def room(name: str) -> int:
    """Where a module stands; a package's modules stand where it does, unless they are named."""
    while name not in ROOMS:
        assert "." in name, f"{name} has no place in ROOMS: put it below all that it imports"
        name = name.rpartition(".")[0]
    return ROOMS.index(name)


def test_every_module_has_its_place() -> None:
    for name in modules():
        if name not in FACADES:
            room(name)


@pytest.mark.parametrize("name", [name for name in modules() if name not in FACADES])
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    wrong = []
    for imported, checking in imports(ast.parse(modules()[name].read_text())):
        assert imported != "geventws", "the facade is for users"
        module = own(imported)
        if module is None or (checking and (name, module) in TYPES_FROM_BELOW):
            continue
        if room(module) > room(name) or module == name:
            wrong.append(imported)
    assert not wrong, f"{name} imports {wrong}, which stand below it"


def test_the_exceptions_for_types_are_needed() -> None:
    found = set()
    for name, path in modules().items():
        for imported, checking in imports(ast.parse(path.read_text())):
            module = own(imported)
            if checking and module is not None and name not in FACADES and room(module) > room(name):
                found.add((name, module))
    assert found == TYPES_FROM_BELOW


@pytest.mark.parametrize(
    "name", [name for name in modules() if name.startswith("protocol.")] + ["errors", "frames", "settings"]
)
def test_what_is_no_io_imports_none(name: str) -> None:
    for imported, _ in imports(ast.parse(modules()[name].read_text())):
        assert imported not in INPUT_AND_OUTPUT
        assert imported.partition(".")[0] not in INPUT_AND_OUTPUT


def test_no_server_is_known_to_the_application_half() -> None:
    for name in ("session", "call", "routing", "flask"):
        for imported, _ in imports(ast.parse(modules()[name].read_text())):
            assert own(imported) not in ("server", "worker"), name
            assert imported.partition(".")[0] != "gunicorn", name


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_dependencies_stay_optional(package: str) -> None:
    for name, path in modules().items():
        for imported, checking in imports(ast.parse(path.read_text())):
            if imported.partition(".")[0] == package and not checking:
                assert name in OPTIONAL[package]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_compiled_code_obeys_too(path: Path) -> None:
    """Cython's own imports, which `ast` can't read."""
    name = name_of(path)
    for line in path.read_text().splitlines():
        found = re.match(r"\s*(?:from\s+(\S+)\s+(?:c?import)|c?import\s+(\S+))", line)
        if found is None:
            continue
        imported = found[1] or found[2]
        module = own(imported)
        if module is not None:
            assert room(module) < room(name), line
        elif name.startswith("protocol."):
            assert imported.partition(".")[0] not in INPUT_AND_OUTPUT, line
