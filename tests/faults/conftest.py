"""What the fault tests share: the server that they run against, and the figures that they find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rig import OURS, PEERS, raise_own_limit

HERE = Path(__file__).parent
#: Seconds that one of these tests may take.
TIMEOUT = 180

figures_found: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--server", default="worker", choices=[*OURS, *PEERS], help="the server that is tested")
    group.addoption("--figures", metavar="FILE", help="append the figures to FILE, as lines of JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session", autouse=True)
def _limits() -> None:
    raise_own_limit()


@pytest.fixture
def server_name(request: pytest.FixtureRequest) -> str:
    """The server that is tested."""
    return str(request.config.getoption("--server"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Reports a figure: ``figure("age at close, p99", 10.2, "s")``."""

    def report(name: str, value: Any, unit: str = "", server: str | None = None) -> None:
        if server is None:
            server = request.getfixturevalue("server_name") if "server_name" in request.fixturenames else "worker"
        test = request.node
        entry = {
            "test": test.name,
            "id": _identity(test.name),
            "name": name,
            "value": value,
            "unit": unit,
            "server": server,
        }
        figures_found.append(entry)
        path = request.config.getoption("--figures")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps(entry) + "\n")

    return report


def _identity(name: str) -> str:
    """The id of a test by its name: T11 of test_t11_..., A1-05 of test_a1_05_..."""
    parts = name.removeprefix("test_").split("_")
    if parts[0][:1] == "t" and parts[0][1:].isdecimal():
        return parts[0].upper()
    if len(parts) > 1 and len(parts[0]) == 2 and parts[1].isdecimal():
        return f"{parts[0].upper()}-{parts[1]}"
    return ""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not figures_found:
        return
    terminalreporter.section("figures")
    for entry in figures_found:
        value = f"{entry['value']:.4g}" if isinstance(entry["value"], float) else entry["value"]
        terminalreporter.write_line(
            f"{entry['id'] or '-':6} {entry['server']:10} {entry['test']}: {entry['name']} {value} {entry['unit']}"
        )
