"""Counts our instructions a message: python benchmarks/instructions.py [--check | --record]

Seconds scatter, instructions don't: valgrind's callgrind counts those of our echo server, in user space, while wsload
has a fixed number of messages echoed. Each work runs with a number of messages and with three times as many, so that
starting the server cancels out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from installing import build_wsload
from processes import free_port, telling_line

HERE = Path(__file__).resolve().parent
RECORD = HERE / "instructions.json"

#: What a count may be above the recorded one.
TOLERANCE = 1.05

#: Opening the connections takes some million instructions more in one run than in another: the messages must outweigh
#: that. With 40 publishes in place of 1200, the counts were up to 19 % apart.
#: wsload's mode, path and options, the number of messages, and what one of them counts for.
WORKS: Mapping[str, tuple[str, str, tuple[str, ...], int, int]] = {
    "echo": ("echo", "/", ("-c64", "-w1", "-s125"), 25600, 1),
    "pipelined": ("echo", "/", ("-c64", "-w16", "-s125"), 32000, 1),
    "fragments": ("echo", "/", ("-c64", "-w1", "-s4096", "-t16"), 6400, 1),
    "64k": ("echo", "/", ("-c16", "-w1", "-s65536", "-b"), 1600, 1),
    "deflate-1k": ("echo", "/", ("-c64", "-w1", "-s1024", "-z"), 1600, 1),
    "publish": ("publish", "/publish", ("-c100", "-s125"), 1200, 100),
    "sessions": ("connect", "/", ("-c16", "-s125"), 300, 1),
}

# Turns and slices end by the clock, which under valgrind is always late, so that less would be gathered than usual. The
# copy that is measured has them end late.
_CLOCKED = re.compile(r"^(TURN_SECONDS|SLICE_SECONDS) = .*$", re.MULTILINE)


def main() -> int:
    """Prints the counts; with ``--check`` gives 1 where one has grown too much."""
    parser = argparse.ArgumentParser(description="Counts user-space instructions a message (needs valgrind).")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="fail where a count is 5 %% above the recorded one")
    group.add_argument("--record", action="store_true", help="write the counts to instructions.json")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS), help="what to count (default: all)")
    options = parser.parse_args()
    obstacle = None if shutil.which("valgrind") else "valgrind is missing"
    record, versions = json.loads(RECORD.read_text()), _versions()
    if options.record and not obstacle:
        obstacle = _not_recordable(HERE.parent, record, versions, options.work)
    if obstacle:
        print(obstacle, file=sys.stderr)
        return 2
    revision = _git(HERE.parent, "rev-parse", "HEAD").strip() if options.record else ""
    counts = _count_tree(HERE.parent, options.work)
    if options.record:
        RECORD.write_text(json.dumps(_recorded(record, versions, revision, counts), indent=1) + "\n")
    if options.check:
        return _check(record, versions, counts)
    for name, count in counts.items():
        print(f"{name:<12}{count:>12,}")
    return 0


def _not_recordable(
    tree: Path, record: Mapping[str, Any], versions: Mapping[str, Any], works: Collection[str]
) -> str | None:
    """Why the counts of these works can't be recorded, in words; None where they can."""
    # All but the record itself: it may have been written for other works just before.
    changed = _git(tree, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/instructions.json")
    if changed:
        return f"commit first: counts are recorded with the commit that they hold for\n{changed}"
    if record["versions"] != versions and set(works) != set(WORKS):
        return "the record is of other versions, which it has once for all works: record all of them"
    return None


def _recorded(
    record: Mapping[str, Any], versions: Mapping[str, Any], revision: str, counts: Mapping[str, int]
) -> dict[str, Any]:
    """The record with these counts; those of other works stay, with the commits that they hold for."""
    entries = {name: {"count": count, "revision": revision} for name, count in counts.items()}
    return {"versions": versions, "works": {**record["works"], **entries}}


def _check(record: Mapping[str, Any], versions: Mapping[str, Any], counts: Mapping[str, int]) -> int:
    entries = {name: record["works"][name] for name in counts}
    expected = {name: entry["count"] for name, entry in entries.items()}
    if record["versions"] != versions:
        print(f"recorded with other versions: {record['versions']}, here {versions}")
        for revision in {entry["revision"] for entry in entries.values()}:
            names = [name for name, entry in entries.items() if entry["revision"] == revision]
            expected |= _count_revision(revision, names)
    failed = 0
    for name, count in counts.items():
        verdict = "right"
        if count > expected[name] * TOLERANCE:
            verdict = "TOO MANY: find the cause, or record the new count with the reason in the commit's message"
            failed += 1
        print(f"{name:<12}{count:>12,}  {count / expected[name] - 1:+.1%} of {expected[name]:,}  {verdict}")
    print(f"instructions: {len(counts) - failed} right, {failed} too many")
    return int(failed > 0)


def _count_revision(revision: str, works: list[str]) -> dict[str, int]:
    """The counts of a recorded commit with the versions of here; none where the clone hasn't got it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=HERE.parent, capture_output=True)
        if archive.returncode:
            print(f"this clone has no commit {revision}: compared with the counts as recorded")
            return {}
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        return _count_tree(Path(folder), works)


def _count_tree(tree: Path, works: list[str]) -> dict[str, int]:
    wsload, _ = build_wsload()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("geventws", "benchmarks/servers"):
            shutil.copytree(tree / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(tree / name, copy)
        raised: set[str] = set()
        for path in copy.rglob("geventws/**/*.py"):
            text = path.read_text()
            raised.update(_CLOCKED.findall(text))
            path.write_text(_CLOCKED.sub(r"\1 = 1000.0", text))
        if raised != {"TURN_SECONDS", "SLICE_SECONDS"}:
            raise RuntimeError(f"of TURN_SECONDS and SLICE_SECONDS only {sorted(raised)} were found: see _CLOCKED")
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _require_compiled(copy)
        return {name: _count(copy, wsload, name) for name in works}


def _require_compiled(tree: Path) -> None:
    """Raises ``RuntimeError`` where the copy is not compiled: a failing compiler does not fail the build."""
    command = [sys.executable, "-c", "import geventws.server; print(geventws.build())"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.stdout.strip() != "compiled":
        raise RuntimeError(f"the copy to measure is not compiled: {telling_line(done.stdout + done.stderr)}")


def _count(tree: Path, wsload: Path, name: str) -> int:
    count, weight = WORKS[name][3:]
    few, many = (_instructions(tree, wsload, name, times * count) for times in (1, 3))
    return round((many - few) / (2 * count * weight))


def _instructions(tree: Path, wsload: Path, name: str, count: int) -> int:
    """All instructions of a server that has ``count`` messages to echo."""
    mode, path, arguments, _, _ = WORKS[name]
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONHASHSEED": "0",
        "BENCHMARK_DEFLATE": "1" if "-z" in arguments else "0",
    }
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    server = subprocess.Popen(
        [*tool, sys.executable, str(tree / "benchmarks" / "servers" / "echo.py"), str(port)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _wait_for(port, server)
        command = [str(wsload), mode, "127.0.0.1", str(port), path, *arguments, "-n", str(count)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    finally:
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=60)
    collected = re.search(r"Collected : (\d+)", told)
    if collected is None:
        raise RuntimeError(f"valgrind did not tell its count:\n{told[-2000:]}")
    return int(collected.group(1))


def _wait_for(port: int, server: subprocess.Popen[str]) -> None:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the server ended at once")


def _versions() -> dict[str, Any]:
    compiler = subprocess.run(["cc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    packages = {name: version(name) for name in ("gevent", "greenlet", "cython", "werkzeug")}
    return {"python": platform.python_version(), "machine": platform.machine(), "compiler": compiler, **packages}


def _git(tree: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
