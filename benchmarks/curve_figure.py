"""Draws the curves: python benchmarks/curve_figure.py FILE.json FILE.svg (takes matplotlib)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

__all__ = ["draw"]

#: A panel's curve, its figure, its title, and what is on the x axis; where that is empty, the panel has bars.
PANELS: Sequence[tuple[str, str, str, str]] = (
    ("busy", "rate", "busy: messages/s", "connections"),
    ("busy", "p99_us", "busy: p99 in us", "connections"),
    ("idle", "connection_bytes", "idle: bytes a connection", "connections"),
    ("publish", "server_cpu_us", "publish: us of CPU a delivery", "subscribers"),
    ("fairness", "ratio", "fairness: p99 beside a flood over the quiet one", ""),
    ("large", "ratio", "large: peak of memory over a message of 64 MiB", ""),
)
BOUNDS: Mapping[str, float] = {"fairness": 2.0, "large": 2.2}
COLOURS: Mapping[str, str] = {"geventws": "#0a7d6c", "uwebsockets": "#b4552d", "picows": "#4a64b0"}


def draw(points: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draws the points into an SVG file; the same points give the same file."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "geventws", "font.size": 8})
    figure, axes = pyplot.subplots(3, 2, figsize=(10, 10), facecolor="white")
    for axis, (curve, name, title, across) in zip(axes.flat, PANELS, strict=True):
        values: dict[str, list[tuple[int, float]]] = {}
        for point in points:
            if point["curve"] == curve and point["figure"] == name and point["value"] is not None:
                values.setdefault(point["server"], []).append((point["at"], point["value"]))
        axis.set_title(title, loc="left", fontsize=9)
        if not values:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        elif across:
            _lines(axis, values, across, name in ("rate", "p99_us"))
        else:
            _bars(axis, values, BOUNDS[curve])
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def _lines(axis: Any, values: Mapping[str, list[tuple[int, float]]], across: str, wide: bool) -> None:
    for server, pairs in values.items():
        axis.plot(*zip(*sorted(pairs), strict=True), marker="o", color=COLOURS[server], label=server)
    axis.set_xscale("log")
    # Rates and latencies span powers of ten; of the others, what counts is the distance from zero.
    if wide:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel(across)
    axis.legend(frameon=False)


def _bars(axis: Any, values: Mapping[str, list[tuple[int, float]]], bound: float) -> None:
    for place, (server, pairs) in enumerate(values.items()):
        axis.barh(place, pairs[0][1], color=COLOURS[server])
        axis.text(pairs[0][1], place, f" {pairs[0][1]:.2f}", va="center")
    axis.axvline(bound, color="#444444", linestyle="--", label=f"bound of ours: {bound:g}")
    axis.set_yticks(range(len(values)), list(values))
    axis.legend(frameon=False)


def main() -> int:
    """Draws what a result file of curves.py has."""
    parser = argparse.ArgumentParser(description="Draws the results of curves.py --json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text())["points"], options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
