"""What is aimed at, and how far it is reached: python benchmarks/targets.py FILE.json [--write FILE.md]

FILE.json is what ``run.py --json`` wrote. A ratio is taken in each round, between servers that had their turn one after
the other, and its median is what counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["TARGETS", "Target", "needed", "report"]

OURS, WORKER, FLASK = "geventws", "geventws-gunicorn", "geventws-flask"
DEFLATING = ("uwebsockets", "ws", "aiohttp", "websockets")
_CLIENT_IS_FULL = 0.95


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
    text = report(results)
    if options.write is None:
        print(text)
        return 0
    page = options.write.read_text()
    marked = re.compile(r"(<!-- targets -->\n).*?(\n<!-- /targets -->)", re.DOTALL)
    if marked.search(page) is None:
        parser.error(f"{options.write} has no markers")
    options.write.write_text(marked.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page))
    return 0


def report(results: Mapping[str, Any]) -> str:
    """The machine, the table of targets, and where a peer is ahead, as markdown."""
    return f"{_machine(results)}\n\n{_table(results)}\n\n{_ahead(results)}"


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
        shown = "-" if ratio is None else _rounded(ratio, target.bound)
        if ratio is not None and _client_is_full(results, target, peer):
            by_cpu = _best(results, Target(target.work, "server_cpu_us", target.bound, None, (peer,), target.server))[1]
            if by_cpu is not None:
                shown += f" (CPU {by_cpu:.2f})\\*"
                full = True
        verdict = "not measured"
        if ratio is not None:
            verdict = "" if target.bound is None else _verdict(ratio >= target.bound)
        least, moonshot = ("" if bound is None else f"{bound:g}" for bound in (target.bound, target.moonshot))
        lines.append(
            f"| {target.work} | {target.title} | {value} | {peer} {theirs} | {shown} | {least} | {moonshot} "
            f"| {verdict} |"
        )
    if full:
        lines.append("\n\\* The client is at its limit there, and only the CPU time a message tells the servers apart.")
    return "\n".join(lines)


def _rounded(ratio: float, bound: float | None) -> str:
    # A third digit where two would show a missed bound as reached.
    return f"{ratio:.3f}" if bound is not None and ratio < bound <= round(ratio, 2) else f"{ratio:.2f}"


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
    return ours / theirs if figure == "rate" else theirs / ours


def _client_is_full(results: Mapping[str, Any], target: Target, peer: str) -> bool:
    if target.figure != "rate":
        return False
    medians: Callable[[str], Any] = lambda server: results["medians"].get(target.work, {}).get(server) or {}  # noqa: E731
    return max(medians(name).get("client_cpu") or 0 for name in (target.server, peer)) >= _CLIENT_IS_FULL


def _shown(figure: str, values: Mapping[int, float]) -> str:
    return _number(figure, median(values.values())) if values else "-"


def _number(figure: str, value: float) -> str:
    if figure == "server_cpu":
        return f"{value:.1%} of a core"
    unit = {"p99_us": " us", "server_cpu_us": " us", "connection_bytes": " B"}.get(figure, "/s")
    return f"{value:,.2f}{unit}" if value < 100 and figure != "rate" else f"{value:,.0f}{unit}"


def _ahead(results: Mapping[str, Any]) -> str:
    """Where a peer is ahead of our standalone server."""
    lines, compared = [], []
    for work in results["works"]:
        figure = "connection_bytes" if work == "idle" else "server_cpu_us" if work == "publish" else "rate"
        peers = [name for name in results["medians"].get(work, {}) if not name.startswith("geventws")]
        found: list[str] = []
        for peer in peers:
            _, ratio, theirs = _best(results, Target(work, figure, 1.0, None, (peer,)))
            found += [peer] if ratio is not None else []
            if ratio is not None and ratio < 0.995:
                ours = _shown(figure, _figures(results, work, OURS, figure))
                lines.append(f"- {work}: {peer} {theirs}, geventws {ours} ({ratio:.2f})")
        compared.append(f"{work}: {', '.join(found) or 'none'}")
    # A peer that had no turn at a work may be ahead too: the list must not read as if it were not.
    scope = f"Only these peers were measured in this run, of others it tells nothing. {'; '.join(compared)}."
    return "Where a peer is ahead:\n\n" + ("\n".join(lines) or "- nowhere in this run") + f"\n\n{scope}"


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in (machine.get("ours", {}) | machine["peers"]).items())
    return (
        f"Measured on {machine.get('date', 'an unknown day')}: {machine['cpu']}, {machine['cores']} cores, Linux "
        f"{machine['kernel']}, Python {machine['python']}, Node {machine['node']}; {versions}."
    )


if __name__ == "__main__":
    sys.exit(main())
