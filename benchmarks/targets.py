"""What is aimed at, and how far it is reached: python benchmarks/targets.py FILE.json [--write FILE.md]

FILE.json is what ``run.py --json`` wrote. A ratio is taken in each round, between servers that had their turn one after
the other, and its median is what counts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from report import CLIENT_IS_FULL, machine, versions

__all__ = ["TARGETS", "Target", "markdown", "needed"]

OURS, WORKER, FLASK = "geventws", "geventws-gunicorn", "geventws-flask"
PUBLISHING = ("publish", "publish-10k", "publish-deflate", "topic", "topic-10k")
DEFLATING = ("uwebsockets", "ws", "aiohttp", "websockets")


@dataclass(frozen=True)
class Target:
    """One figure of one of our servers, compared with the best of some peers' or with a bound."""

    work: str
    #: The figure of a run: more is better of rates, less of all others.
    figure: str
    #: The least ratio to the best peer's; without peers, the most that the figure may be. None for a moonshot alone.
    bound: float | None
    moonshot: float | None = None
    peers: Sequence[str] = ()
    server: str = OURS

    @property
    def title(self) -> str:
        """What is compared."""
        names = {"rate": "rate", "p99_us": "p99", "server_cpu_us": "CPU a unit", "connection_bytes": "bytes"}
        of = "" if self.server == OURS else f" of {self.server}"
        return f"{names.get(self.figure, 'cores')}{of}"


def _within_5_percent(work: str, figure: str = "rate") -> Target:
    return Target(work, figure, 0.95, None, (OURS,), WORKER)


TARGETS = (
    Target("echo", "rate", 1.05, None, ("picows",)),
    Target("echo", "rate", 0.95, 1.05, ("uwebsockets",)),
    Target("echo", "p99_us", 1.0, None, ("picows",)),
    Target("pipelined", "rate", 1.5, 2.0, ("uwebsockets",)),
    Target("fragments", "rate", 0.9, 1.2, ("uwebsockets",)),
    Target("64k", "rate", 0.8, 1.0, ("uwebsockets",)),
    Target("64k", "rate", 2.0, None, ("picows",)),
    Target("4m", "rate", 1.0, 1.2, ("uwebsockets",)),
    Target("deflate-1k", "rate", 1.1, 2.0, DEFLATING),
    Target("deflate-64k", "rate", 1.1, 2.0, DEFLATING),
    Target("publish", "server_cpu_us", 1.0, 2.0, ("uwebsockets",)),
    Target("publish-10k", "server_cpu_us", 1.0, 2.0, ("uwebsockets",)),
    Target("topic", "server_cpu_us", 1.0, None, ("uwebsockets",)),
    Target("topic-10k", "server_cpu_us", 1.0, None, ("uwebsockets",)),
    Target("sessions", "rate", 1.0, None, ("ws",)),
    Target("sessions", "rate", 2.0, None, ("gevent-websocket",)),
    Target("sessions", "rate", None, 1.0, ("picows",)),
    Target("idle", "connection_bytes", 8192, 5120),
    Target("idle", "connection_bytes", 14336, 5120, (), FLASK),
    Target("pinged", "server_cpu", 0.03, 0.01),
    Target("tls", "rate", 1.0, None, ("picows",)),
    *(
        _within_5_percent(work)
        for work in ("echo", "pipelined", "fragments", "64k", "4m", "deflate-1k", "deflate-64k", "sessions", "tls")
    ),
    _within_5_percent("publish", "server_cpu_us"),
    _within_5_percent("idle", "connection_bytes"),
)


def needed(work: str) -> list[str]:
    """The servers that the targets need at a work."""
    names = [name for target in TARGETS if target.work == work for name in (target.server, *target.peers)]
    return list(dict.fromkeys(names))


def main() -> int:
    """Prints the table of targets, and writes it where it belongs."""
    parser = argparse.ArgumentParser(description="How far the targets are reached, by a result file of run.py --json.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it between the markers in that file")
    options = parser.parse_args()
    results = json.loads(options.file.read_text())
    text = markdown(results)
    if options.write is None:
        print(text)
        return 0
    page = options.write.read_text()
    marked = re.compile(r"(<!-- targets -->\n).*?(\n<!-- /targets -->)", re.DOTALL)
    if marked.search(page) is None:
        parser.error(f"{options.write} has no markers")
    options.write.write_text(marked.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page))
    return 0


def markdown(results: Mapping[str, Any]) -> str:
    """The machine, the table of targets, and where a peer is ahead."""
    where = results["environment"]
    measured = f"Measured on {where['date']}: {machine(where)}; {versions(where)}."
    return f"{measured}\n\n{_table(results)}\n\n{_ahead(results)}"


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        "| work | figure | ours | compared with | ratio | at least | moonshot | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = False
    for target in TARGETS:
        ours = _figures(results, target.work, target.server, target.figure)
        value = _shown(target.figure, ours)
        if not target.peers and target.bound is not None:
            verdict = "not measured" if not ours else _verdict(median(ours.values()) <= target.bound)
            most = f"at most {_number(target.figure, target.bound)}"
            moonshot = "" if target.moonshot is None else _number(target.figure, target.moonshot)
            lines.append(f"| {target.work} | {target.title} | {value} | | | {most} | {moonshot} | {verdict} |")
            continue
        peer, ratio, theirs = _best(results, target)
        shown, verdict = "-", "not measured"
        if ratio is not None:
            shown = _rounded(ratio, target.bound, target.moonshot)
            verdict = "" if target.bound is None else _verdict(ratio >= target.bound)
            if _client_is_full(results, target, peer):
                by_cpu = _best(results, replace(target, figure="server_cpu_us", peers=(peer,)))[1]
                shown += "\\*" if by_cpu is None else f" (CPU {by_cpu:.2f})\\*"
                full = True
        least, moonshot = ("" if bound is None else f"{bound:g}" for bound in (target.bound, target.moonshot))
        lines.append(
            f"| {target.work} | {target.title} | {value} | {peer} {theirs} | {shown} | {least} | {moonshot} "
            f"| {verdict} |"
        )
    if full:
        lines.append("\n\\* The client is at its limit there: compare the CPU time per message instead of the rate.")
    return "\n".join(lines)


def _rounded(ratio: float, *bounds: float | None) -> str:
    """To two digits, or to as many as show that a bound is missed."""
    digits = 2
    while any(bound is not None and ratio < bound <= round(ratio, digits) for bound in bounds):
        digits += 1
    return f"{ratio:.{digits}f}"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _figures(results: Mapping[str, Any], work: str, server: str, figure: str) -> dict[int, float]:
    """A figure of a server by round."""
    return {
        run["round"]: run[figure]
        for run in results["runs"]
        if run["work"] == work and run["server"] == server and run["outcome"] == "right" and run[figure] is not None
    }


def _best(results: Mapping[str, Any], target: Target) -> tuple[str, float | None, str]:
    """The peer that leaves us the least ratio, the ratio, and the peer's figure."""
    ours = _figures(results, target.work, target.server, target.figure)
    found: list[tuple[float, str, str]] = []
    for peer in target.peers:
        theirs = _figures(results, target.work, peer, target.figure)
        ratios = [_ratio(target.figure, ours[number], theirs[number]) for number in ours.keys() & theirs.keys()]
        if ratios:
            found.append((median(ratios), peer, _shown(target.figure, theirs)))
    if not found:
        return ", ".join(target.peers), None, ""
    ratio, peer, shown = min(found)
    return peer, ratio, shown


def _ratio(figure: str, ours: float, theirs: float) -> float:
    above, below = (ours, theirs) if figure == "rate" else (theirs, ours)
    # Who ended no session in a round has a rate of zero.
    return above / below if below else math.inf


def _client_is_full(results: Mapping[str, Any], target: Target, peer: str) -> bool:
    if target.figure != "rate":
        return False
    rows = results["medians"][target.work]
    return any(rows[name]["client_cpu"] >= CLIENT_IS_FULL for name in (target.server, peer))


def _shown(figure: str, values: Mapping[int, float]) -> str:
    return _number(figure, median(values.values())) if values else "-"


def _number(figure: str, value: float) -> str:
    if figure == "server_cpu":
        return f"{value:.1%} of a core"
    unit = {"p99_us": " us", "server_cpu_us": " us", "connection_bytes": " B"}.get(figure, "/s")
    return f"{value:,.2f}{unit}" if value < 100 and figure != "rate" else f"{value:,.0f}{unit}"


def _ahead(results: Mapping[str, Any]) -> str:
    """Where a peer is ahead of our standalone server."""
    lines, measured = [], []
    for work, rows in results["medians"].items():
        figure = "connection_bytes" if work == "idle" else "server_cpu_us" if work in PUBLISHING else "rate"
        ours = _shown(figure, _figures(results, work, OURS, figure))
        found = []
        for peer in (name for name in rows if not name.startswith(OURS)):
            _, ratio, theirs = _best(results, Target(work, figure, 1.0, None, (peer,)))
            if ratio is not None:
                found.append(peer)
                if ratio < 1:
                    lines.append(f"- {work}: {peer} {theirs}, geventws {ours} ({_rounded(ratio, 1)})")
        measured.append(f"{work}: {', '.join(found) or 'none'}")
    # A peer that had no turn at a work may be ahead too: the list must not read as if it were not.
    scope = f"This run measured only these peers, and says nothing about others. {'; '.join(measured)}."
    return "Where a peer is ahead:\n\n" + ("\n".join(lines) or "- nowhere in this run") + f"\n\n{scope}"


if __name__ == "__main__":
    sys.exit(main())
