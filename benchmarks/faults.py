"""The fault tests against our servers and their peers, as one table: python benchmarks/faults.py --out FOLDER.

Our servers go through all of ``tests/faults``, and the peers through those tests that ask no more of a server than an
echo at its defaults, which are in ``test_comparison.py``: the others need settings, routes or accounts that only ours
have. The peers are installed as for the benchmarks. Options behind ``--`` go to pytest: ``-- -k comparison``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = ("worker", "standalone")
#: Our names of the peers, and those that the benchmarks install.
PEERS = {
    "gunicorn-asgi": "flask-sock",
    "websockets": "websockets",
    "flask-sock": "flask-sock",
    "gevent-websocket": "gevent-websocket",
}
#: Where the plugin writes how each test ended.
OUTCOMES = "FAULT_OUTCOMES"
LONGEST_REMARK = 160

# -- What pytest loads of this file ------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keeps the tests that are about the server of this run."""
    chosen = config.getoption("--server")
    kept, dropped = [], []
    for item in items:
        named = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if named in OURS:
            fits = named == chosen
        else:
            # A test that takes no server starts gunicorn with our worker.
            fits = chosen == "worker" or bool({"server", "server_name"} & set(item.fixturenames))
        (kept if fits else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Writes down that a test begins: one that takes too long ends the process, and says nothing more."""
    _write({"test": nodeid, "outcome": "begun", "remark": "it did not end"})


def pytest_runtest_logreport(report: Any) -> None:
    """Writes down how a test ended; what fails in its setup or its end counts too."""
    if report.when != "call" and report.outcome == "passed":
        return
    remark = ""
    if report.outcome == "skipped":
        remark = report.longrepr[2].removeprefix("Skipped: ")
    elif report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        remark = (crash.message if crash else str(report.longrepr)).partition("\n")[0]
    _write({"test": report.nodeid, "outcome": report.outcome, "remark": remark, "seconds": report.duration})


def _write(line: dict[str, Any]) -> None:
    with open(os.environ[OUTCOMES], "a") as file:
        file.write(json.dumps(line) + "\n")


# -- The runs ----------------------------------------------------------------------------------------------------------


def run(server: str, folder: Path, more: Sequence[str]) -> None:
    """Runs the tests against one server; what they find is in the folder."""
    outcomes, figures = folder / f"{server}.outcomes", folder / f"{server}.figures"
    for path in (outcomes, figures):
        path.unlink(missing_ok=True)
    environment = {**os.environ, OUTCOMES: str(outcomes), "FAULT_PEERS_PYTHON": peer_python()}
    environment["PYTHONPATH"] = os.pathsep.join((str(HERE), str(HERE.parent)))
    command = [sys.executable, "-m", "pytest", "-p", "faults", "-m", "faults", "-q", "--no-header"]
    command.append("tests/faults" if server in OURS else "tests/faults/test_comparison.py")
    command += ["--server", server, "--figures", str(figures), *more]
    with (folder / f"{server}.log").open("w") as log:
        subprocess.run(command, cwd=HERE.parent, env=environment, stdout=log, stderr=log)


def peer_python() -> str:
    """The interpreter of the peers' virtual environment."""
    from contenders import PEER_PYTHON

    return PEER_PYTHON


def install_peers(servers: Sequence[str]) -> list[str]:
    """Installs what the servers need; gives those that can run."""
    from contenders import CONTENDERS
    from installing import available

    names = dict.fromkeys(PEERS[server] for server in servers if server in PEERS)
    able = [contender.name for contender in available([CONTENDERS[name] for name in names])]
    return [server for server in servers if server in OURS or PEERS[server] in able]


# -- The table ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def name_of(test: str) -> str:
    """A test's name without its file, its prefix, and the server in its brackets."""
    name = test.rpartition("::")[2].removeprefix("test_")
    for server in OURS:
        name = name.replace(f"[{server}]", "").replace(f"-{server}]", "]").replace(f"[{server}-", "[")
    return name


def table(folder: Path, servers: Sequence[str]) -> str:
    """A row for each test, a column for each server; below it, why tests failed."""
    cells: dict[str, dict[str, str]] = {}
    remarks: list[str] = []
    for server in servers:
        figures: dict[str, list[str]] = {}
        for entry in read(folder / f"{server}.figures"):
            value = entry["value"]
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            figures.setdefault(name_of(entry["test"]), []).append(f"{entry['name']}: {shown} {entry['unit']}".strip())
        outcomes = read(folder / f"{server}.outcomes")
        ended = {entry["test"] for entry in outcomes if entry["outcome"] != "begun"}
        for entry in outcomes:
            name = name_of(entry["test"])
            row = cells.setdefault(name, {})
            if entry["outcome"] == "begun" and entry["test"] in ended:
                continue
            if entry["outcome"] == "skipped":
                row[server] = "cannot"
                continue
            verdict = "pass" if entry["outcome"] == "passed" else "**FAIL**"
            # A failure behind a pass is one of the test's end.
            if verdict == "pass" and server in row:
                continue
            row[server] = "<br>".join([verdict, *figures.get(name, [])])
            if verdict != "pass":
                remarks.append(f"- {server}, {name}: `{entry['remark'][:LONGEST_REMARK]}`")
    lines = [f"| test | {' | '.join(servers)} |", f"|---|{'---|' * len(servers)}"]
    for name, row in cells.items():
        found = [row.get(server, "cannot" if server in PEERS else "") for server in servers]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join([*lines, "", *remarks]).rstrip() + "\n"


def main() -> int:
    """Runs and reports; 1 where one of ours fails a test."""
    arguments, _, more = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--out", type=Path, default=Path("faults"), help="a folder for all that is written")
    parser.add_argument(
        "--report", action="store_true", help="make the table of what is in the folder, and run nothing"
    )
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    servers = options.server
    if not options.report:
        servers = install_peers(servers)
        for server in servers:
            run(server, folder, more)
    text = table(folder, servers)
    (folder / "faults.md").write_text(text)
    print(text)
    ours = [entry for server in servers if server in OURS for entry in read(folder / f"{server}.outcomes")]
    return 1 if any(entry["outcome"] == "failed" for entry in ours) else 0


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    where = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:where], "--", arguments[where + 1 :]


if __name__ == "__main__":
    sys.exit(main())
