"""Draws what run.py or curves.py wrote: python benchmarks/figure.py FILE.json FILE.svg (takes matplotlib)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from report import machine, versions

__all__ = ["draw"]

#: The works that have a panel: what is told of each, and whether more of it is better.
WORKS: Mapping[str, tuple[str, str, bool]] = {
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
#: The panels of curves: each a curve, its figure, a title, and what is on the x axis. Bars where nothing is.
CURVES: Sequence[tuple[str, str, str, str]] = (
    ("busy", "rate", "busy: messages/s", "connections"),
    ("busy", "p99_us", "busy: p99 in us", "connections"),
    ("idle", "connection_bytes", "idle: bytes a connection", "connections"),
    ("publish", "server_cpu_us", "publish: us of CPU a delivery", "subscribers"),
    ("fairness", "ratio", "fairness: p99 beside a flood over the quiet one", ""),
    ("large", "ratio", "large: peak of memory over a message of 64 MiB", ""),
)
ACCENT, MIDDLE, PLAIN = "#0a7d6c", "#7cc4b8", "#b9bec6"
#: Lines cross, so that each peer's has a colour of its own.
LINES: Mapping[str, str] = {"geventws": ACCENT, "uwebsockets": "#b4552d", "picows": "#4a64b0"}


class Bar(NamedTuple):
    """What is drawn of one server; without a figure its bar has no length."""

    server: str
    length: float
    text: str


def main() -> int:
    """Draws what the result file has."""
    parser = argparse.ArgumentParser(description="Draws the results of run.py --json or curves.py --json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.picture)
    return 0


def draw(results: Mapping[str, Any], picture: Path) -> None:
    """Draws results into an SVG file; the same results give the same file."""
    # Only drawing takes it: the rest is measured and tested without.
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "geventws", "font.size": 8})
    rows, height = (3, 10) if "points" in results else (5, 14)
    figure, axes = pyplot.subplots(rows, 2, figsize=(10, height), facecolor="white")
    if "points" in results:
        for axis, (curve, name, title, across) in zip(axes.flat, CURVES, strict=True):
            found = lines(results["points"], curve, name)
            if not found:
                axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
                axis.axis("off")
            elif across:
                # Rates and latencies span powers of ten; of the others, what counts is the distance from zero.
                _draw_lines(axis, found, across, name in ("rate", "p99_us"))
            else:
                _draw_ratios(axis, found, results["bounds"][curve])
            axis.set_title(title, loc="left", fontsize=9)
        title = "How cost grows with connections, subscribers and sizes"
    else:
        for axis, (work, (title, name, more)) in zip(axes.flat, WORKS.items(), strict=True):
            _draw_bars(axis, bars(results["medians"].get(work, {}), name, more))
            axis.set_title(title, loc="left", fontsize=9)
        title = "geventws beside other WebSocket servers, each on one core"
    figure.suptitle(title, fontsize=12)
    where = results["environment"]
    caption = f"{where['date']} - {machine(where)} - {versions(where)}"
    figure.text(0.01, 0.003, caption, fontsize=7, color="#444444", wrap=True)
    figure.tight_layout(rect=(0, 0.02, 1, 0.985))
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def bars(rows: Mapping[str, Any], name: str, more: bool) -> list[Bar]:
    """The servers of a work from the worst to the best: who has a figure, and who went wrong."""
    found = []
    for server, row in rows.items():
        value = row[name] or 0.0
        if name == "server_cpu_us" and value:
            value = 1e6 / value
        if server != "geventws-pure" and (value or row["faults"]):
            text = ", ".join(([f"{value:,.0f}"] if value else []) + row["faults"])
            found.append(Bar(server, value, text))
    return sorted(found, key=lambda bar: bar.length if more else -(bar.length or inf))


def lines(points: Iterable[Mapping[str, Any]], curve: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """The points of one figure of a curve, by server, from left to right; without those that there is no figure of."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        if point["curve"] == curve and point["figure"] == name and point["value"] is not None:
            found.setdefault(point["server"], []).append((point["at"], point["value"]))
    return {server: sorted(pairs) for server, pairs in found.items()}


def _draw_lines(axis: Any, found: Mapping[str, list[tuple[int, float]]], across: str, wide: bool) -> None:
    for server, pairs in found.items():
        axis.plot(*zip(*pairs, strict=True), marker="o", color=LINES.get(server, PLAIN), label=server)
    axis.set_xscale("log")
    if wide:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, 1.2 * max(value for pairs in found.values() for _, value in pairs))
    axis.set_xlabel(across)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_ratios(axis: Any, found: Mapping[str, list[tuple[int, float]]], bound: float) -> None:
    _draw_bars(axis, [Bar(server, value, f"{value:.2f}") for server, [(_, value)] in found.items()], bound)
    axis.axvline(bound, color="#444444", linestyle="--")
    axis.text(bound, 1, f" ours: at most {bound:g}", va="top", transform=axis.get_xaxis_transform())


def _draw_bars(axis: Any, found: Sequence[Bar], reach: float = 0) -> None:
    for place, bar in enumerate(found):
        colour = ACCENT if bar.server == "geventws" else MIDDLE if bar.server.startswith("geventws") else PLAIN
        axis.barh(place, bar.length, color=colour)
        axis.text(bar.length, place, f" {bar.text}", va="center", color="#222222")
    axis.set_yticks(range(len(found)), [bar.server for bar in found])
    axis.set_xticks([])
    axis.set_xlim(0, 1.2 * max([reach, *(bar.length for bar in found)]) or 1)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
