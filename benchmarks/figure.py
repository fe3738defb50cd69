"""Draws the main table: python benchmarks/figure.py FILE.json FILE.svg (takes matplotlib)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

#: The works that have a panel: what is told of each, and whether more of it is better.
PANELS: Mapping[str, tuple[str, str, bool]] = {
    "echo": ("echo 125 B, 1 in flight: messages/s", "rate", True),
    "pipelined": ("echo 125 B, 16 in flight: messages/s", "rate", True),
    "fragments": ("echo 4 KiB in 16 fragments: messages/s", "rate", True),
    "64k": ("echo 64 KiB: messages/s", "rate", True),
    "4m": ("echo 4 MiB: messages/s", "rate", True),
    "deflate-1k": ("deflate echo 1 KiB: messages/s", "rate", True),
    "deflate-64k": ("deflate echo 64 KiB: messages/s", "rate", True),
    "sessions": ("whole sessions/s", "rate", True),
    "publish": ("1 to 500: deliveries a CPU second", "server_cpu_us", True),
    "idle": ("idle connection: bytes (less is better)", "connection_bytes", False),
}
ACCENT, MIDDLE, PLAIN = "#0a7d6c", "#7cc4b8", "#b9bec6"


def main() -> int:
    """Draws what the result file has."""
    parser = argparse.ArgumentParser(description="Draws the results of run.py --json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    # The same results give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "geventws", "font.size": 8})
    figure, axes = pyplot.subplots(5, 2, figsize=(10, 14), facecolor="white")
    for axis, (work, (title, name, more)) in zip(axes.flat, PANELS.items(), strict=True):
        _panel(axis, results["medians"].get(work, {}), title, name, more)
    figure.suptitle("geventws beside other WebSocket servers, each on one core", fontsize=12)
    figure.text(0.01, 0.003, _caption(results["environment"]), fontsize=7, color="#444444", wrap=True)
    figure.tight_layout(rect=(0, 0.02, 1, 0.985))
    figure.savefig(options.picture, metadata={"Date": None})
    return 0


def _panel(axis: Any, rows: Mapping[str, Any], title: str, name: str, more: bool) -> None:
    # Figures of rounds that went wrong mean nothing.
    bad = ("WRONG", "STALLED", "FAILED")
    values = {
        server: row[name]
        for server, row in rows.items()
        if row.get(name) and not any(mark.startswith(bad) for mark in row["marks"])
    }
    values.pop("geventws-pure", None)
    if name == "server_cpu_us":
        values = {server: 1e6 / value for server, value in values.items()}
    ordered = sorted(values, key=values.__getitem__, reverse=not more)
    for place, server in enumerate(ordered):
        colour = ACCENT if server == "geventws" else MIDDLE if server.startswith("geventws") else PLAIN
        axis.barh(place, values[server], color=colour)
        axis.text(values[server], place, f" {values[server]:,.0f}", va="center", color="#222222")
    axis.set_yticks(range(len(ordered)), ordered)
    axis.set_xticks([])
    axis.set_xlim(0, 1.2 * max(values.values(), default=1))
    axis.set_title(title, loc="left", fontsize=9)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _caption(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in (machine.get("ours", {}) | machine["peers"]).items())
    return (
        f"{machine.get('date', '')} - {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, Node {machine['node']} - {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
