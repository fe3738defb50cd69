"""The figures as tables and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from contenders import HERE, NODE
from measuring import Run
from works import Work

__all__ = [
    "CLIENT_IS_FULL",
    "document",
    "environment",
    "heading",
    "machine",
    "medians",
    "table",
    "versions",
    "write_json",
]

_FIGURES = ("rate", "p50_us", "p99_us", "client_cpu", "server_cpu", "server_cpu_us", "rss_bytes", "connection_bytes")

#: Of wsload's core: from here on the client is the limit.
CLIENT_IS_FULL = 0.95

#: A heading, what it shows of a row, and the format.
Column = tuple[str, Callable[[dict[str, Any]], float | None], str]


def medians(runs: Sequence[Run]) -> dict[str, Any]:
    """The median of each figure over the right rounds of one server at one work, and what is to be said beside it."""
    result: dict[str, Any] = {}
    right = [run for run in runs if run.outcome == "right"]
    for name in _FIGURES:
        values = [value for run in right if (value := getattr(run, name)) is not None]
        result[name] = median(values) if values else None
    rates = [run.rate for run in right if run.rate]
    result["spread"] = (max(rates) - min(rates)) / median(rates) if rates else None
    outcomes = [run.outcome for run in runs]
    result["faults"] = [
        f"{name.upper()} in {outcomes.count(name)} of {len(runs)}"
        for name in ("wrong", "stalled", "failed")
        if name in outcomes
    ]
    result["marks"] = list(dict.fromkeys(run.remark for run in runs if run.outcome == "unable"))
    if (result["client_cpu"] or 0) >= CLIENT_IS_FULL:
        result["marks"].append("the client is the limit")
    return result


def table(work: Work, runs: Sequence[Run], baseline: str) -> str:
    """One work's table, and under it what went wrong."""
    names = list(dict.fromkeys(run.server for run in runs))
    rows = {name: medians([run for run in runs if run.server == name]) for name in names}
    columns = _speed_columns(work)
    if work.mode == "hold":
        columns = _pinged_columns() if work.pinged else _memory_columns()
    if baseline in rows and len(rows) > 1:
        columns += _ratio_columns(work, rows[baseline])
    lines = [["server", *(heading for heading, _, _ in columns), ""]]
    for name, row in rows.items():
        figures = [form.format(value) if (value := get(row)) is not None else "-" for _, get, form in columns]
        lines.append([name, *figures, ", ".join(row["faults"] + row["marks"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rounds = max(run.round for run in runs)
    text = [f"{work.name}: {work.title} (medians of {rounds} round{'s' * (rounds > 1)})"]
    for name, *figures, marks in lines:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True)]
        text.append("  ".join((name.ljust(widths[0]), *cells, marks)).rstrip())
    text += [f"{run.server}, round {run.round}: {run.outcome.upper()}: {run.remark}" for run in runs if _is_told(run)]
    return "\n".join(text)


def document(works: Sequence[Work], runs: Sequence[Run], options: dict[str, Any]) -> dict[str, Any]:
    """Every run and the medians, with what they hold for."""
    summary: dict[str, dict[str, Any]] = {}
    for work in works:
        for name in dict.fromkeys(run.server for run in runs):
            chosen = [run for run in runs if run.work == work.name and run.server == name]
            if chosen:
                summary.setdefault(work.name, {})[name] = medians(chosen)
    return {
        "environment": environment(),
        "options": options,
        "works": {work.name: asdict(work) for work in works},
        "medians": summary,
        "runs": [asdict(run) for run in runs],
    }


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Writes results to a file."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def heading(runs: Sequence[Run], baseline: str) -> str:
    """What stands above the tables: the machine, and how to read the ratios."""
    lines = [machine(environment())]
    if baseline in {run.server for run in runs}:
        lines.append(
            f"rate ratio: {baseline}'s rate over that server's; cpu ratio: that server's CPU time per message over "
            f"{baseline}'s.\nAbove 1, {baseline} is the better one. benchmarks/README.md tells how to read the rest."
        )
    return "\n".join(lines)


def machine(where: Mapping[str, Any]) -> str:
    """The machine of an ``environment``, in a line."""
    return (
        f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, "
        f"Python {where['python']}, Node {where['node'] or 'missing'}"
    )


def versions(where: Mapping[str, Any]) -> str:
    """The versions of an ``environment``, ours first, in a line."""
    return ", ".join(f"{name} {number}" for name, number in (where["ours"] | where["peers"]).items())


def environment(requirements: str = "requirements.txt", manifest: str | None = "package.json") -> dict[str, Any]:
    """The machine and the versions that the figures hold for; the peers' are those that are pinned in these files."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    node = shutil.which(NODE) and subprocess.run([NODE, "--version"], capture_output=True, text=True).stdout.strip()
    pins = (HERE / "peers" / requirements).read_text().splitlines()
    packages = json.loads((HERE / "peers" / manifest).read_text())["dependencies"] if manifest else {}
    names = ("gevent", "greenlet", "cython", "gunicorn", "flask", "werkzeug", "redis", "hiredis")
    return {
        "date": date.today().isoformat(),
        "ours": {"geventws": _own_version()} | {name: found for name in names if (found := _version(name))},
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "node": node,
        "peers": dict(line.split("==") for line in pins if "==" in line) | packages,
    }


def _version(name: str) -> str | None:
    # Cython, gunicorn and Flask may be absent; the figures of the others must not be lost for it.
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _own_version() -> str:
    # Of this checkout, which is what was measured; an installed geventws may be another.
    found = re.search(r'^VERSION\b.*?"(.+?)"', (HERE.parent / "geventws" / "_build.py").read_text(), re.MULTILINE)
    return found.group(1) if found else "of an unknown version"


def _is_told(run: Run) -> bool:
    """Whether its remark has a line under the table. What a server is unable to do is told in its row."""
    return bool(run.remark) and run.outcome != "unable"


def _speed_columns(work: Work) -> list[Column]:
    unit = "delivery" if work.unit == "deliveries" else work.unit.removesuffix("s")
    return [
        (f"{work.unit}/s", lambda row: row["rate"], "{:,.0f}"),
        ("spread", lambda row: row["spread"], "{:.0%}"),
        ("p99 us", lambda row: row["p99_us"], "{:,.0f}"),
        ("client cpu", lambda row: row["client_cpu"], "{:.2f}"),
        ("server cpu", lambda row: row["server_cpu"], "{:.2f}"),
        (f"us/{unit}", lambda row: row["server_cpu_us"], "{:,.2f}"),
        ("RSS MiB", lambda row: row["rss_bytes"] and row["rss_bytes"] / 2**20, "{:,.0f}"),
    ]


def _memory_columns() -> list[Column]:
    return [
        ("connections", lambda row: row["rate"], "{:,.0f}"),
        ("bytes/connection", lambda row: row["connection_bytes"], "{:,.0f}"),
        ("RSS MiB", lambda row: row["rss_bytes"] and row["rss_bytes"] / 2**20, "{:,.0f}"),
    ]


def _pinged_columns() -> list[Column]:
    return [
        ("connections", lambda row: row["rate"], "{:,.0f}"),
        ("server cpu", lambda row: row["server_cpu"], "{:.2%}"),
        ("RSS MiB", lambda row: row["rss_bytes"] and row["rss_bytes"] / 2**20, "{:,.0f}"),
    ]


def _ratio_columns(work: Work, base: dict[str, Any]) -> list[Column]:
    def of(name: str, more_is_better: bool) -> Callable[[dict[str, Any]], float | None]:
        def ratio(row: dict[str, Any]) -> float | None:
            theirs, ours = row[name], base[name]
            if not theirs or not ours:
                return None
            return float(ours / theirs if more_is_better else theirs / ours)

        return ratio

    if work.mode == "hold":
        return [("ratio", of("server_cpu" if work.pinged else "connection_bytes", False), "{:.2f}")]
    return [("rate ratio", of("rate", True), "{:.2f}"), ("cpu ratio", of("server_cpu_us", False), "{:.2f}")]
