"""Compares topics across processes with what others have for it: python benchmarks/across.py"""

from __future__ import annotations

import argparse
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from installing import build_roomload, install_across, missing
from measuring import Cores
from report import environment, machine, versions, write_json
from rooms import ROOM_CONTENDERS, ROOM_WORKS, RoomContender, RoomRun, RoomWork, measure, medians
from run import positive, two_cores
from valkey_server import valkey_binary

__all__ = ["AT_LEAST", "document", "table", "targets"]

#: Our deliveries a second over each peer's.
AT_LEAST = 5.0

_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str], ...] = (
    ("deliveries/s", lambda row: row["rate"], "{:,.0f}"),
    ("spread", lambda row: row["spread"], "{:.0%}"),
    ("/CPU second", lambda row: row["rate_of_cpu"], "{:,.0f}"),
    ("Valkey us", lambda row: row["valkey_us"], "{:,.0f}"),
    ("p50 us", lambda row: row["p50_us"], "{:,.0f}"),
    ("p99 us", lambda row: row["p99_us"], "{:,.0f}"),
    ("client cpu", lambda row: row["client_cpu"], "{:.2f}"),
    ("server cpu", lambda row: row["server_cpu"], "{:.2f}"),
    ("Valkey cpu", lambda row: row["valkey_cpu"], "{:.2f}"),
    ("RSS MiB", lambda row: row["rss_bytes"] and row["rss_bytes"] / 2**20, "{:,.0f}"),
)


def main() -> int:
    """Measures what the command line asks for and prints the tables; 1 where one of ours went wrong."""
    options = _parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    runs: list[RoomRun] = []
    status = 0
    try:
        try:
            roomload = build_roomload()
        except (OSError, subprocess.CalledProcessError) as error:
            _say(f"roomload can't be built (it takes a C compiler): {error}")
            return 2
        install_across()
        valkey = options.valkey or valkey_binary()
        contenders = _available([ROOM_CONTENDERS[name] for name in options.server])
        if valkey is None or not contenders:
            _say("there is no Valkey" if valkey is None else "there is no server to measure")
            return 2
        _measure_all(runs, roomload, valkey, contenders, options)
    except KeyboardInterrupt:
        _say("interrupted; what was measured until now:")
        status = 130
    if not runs:
        return status
    results = document(runs, {name: str(value) for name, value in vars(options).items()})
    print(f"\n{machine(results['environment'])}\n{versions(results['environment'])}")
    for work in ROOM_WORKS.values():
        if chosen := [run for run in runs if run.work == work.name]:
            print(f"\n{table(work, chosen)}")
    print(f"\n{targets(runs)}", flush=True)
    if options.json:
        write_json(options.json, results)
        _say(f"all runs are in {options.json}")
    return status or int(any(ROOM_CONTENDERS[run.server].ours and run.outcome != "right" for run in runs))


def _available(contenders: Sequence[RoomContender]) -> list[RoomContender]:
    """Those that can run; who is left out is told."""
    found = []
    for contender in contenders:
        if reason := missing(contender.runtime, contender.check, contender.environment_for("")):
            _say(f"left out: {contender.name}: {reason}")
        else:
            found.append(contender)
    return found


def _measure_all(
    runs: list[RoomRun],
    roomload: Path,
    valkey: Path,
    contenders: Sequence[RoomContender],
    options: argparse.Namespace,
) -> None:
    """Appends to ``runs`` as it goes, so that an interruption loses nothing."""
    for name in options.work:
        for round_ in range(1, options.rounds + 1):
            for contender in contenders:
                run = measure(
                    roomload, valkey, ROOM_WORKS[name], contender, round_, options.seconds, Cores(*options.cores)
                )
                runs.append(run)
                words = [] if run.outcome == "right" else [f"{run.outcome.upper()} {run.remark}"]
                if run.rate is not None:
                    words.append(f"{run.rate:,.0f} deliveries/s, p99 {run.p99_us:,.0f} us")
                _say(f"{name} {round_}/{options.rounds} {contender.name}: {', '.join(words)}")


def table(work: RoomWork, runs: Sequence[RoomRun]) -> str:
    """One work's table, and under it what went wrong."""
    names = list(dict.fromkeys(run.server for run in runs))
    lines = [["server", *(heading for heading, _, _ in _COLUMNS), ""]]
    for name in names:
        row = medians([run for run in runs if run.server == name])
        figures = [form.format(value) if (value := get(row)) is not None else "-" for _, get, form in _COLUMNS]
        lines.append([name, *figures, ", ".join(row["faults"] + row["marks"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rounds = max(run.round for run in runs)
    text = [f"{work.name}: {work.title} (medians of {rounds} round{'s' * (rounds > 1)})"]
    for name, *figures, marks in lines:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True)]
        text.append("  ".join((name.ljust(widths[0]), *cells, marks)).rstrip())
    text += [f"{run.server}, round {run.round}: {run.outcome.upper()}: {run.remark}" for run in runs if run.remark]
    return "\n".join(text)


def targets(runs: Sequence[RoomRun]) -> str:
    """Our deliveries a second over each peer's, as a table of Markdown.

    A ratio is taken in each round in which both were right, and its median counts.
    """
    lines = [
        "| work | ours | deliveries/s | compared with | ratio | at least | | by CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    servers = list(dict.fromkeys(run.server for run in runs))
    for work in (work.name for work in ROOM_WORKS.values() if work.full):
        for ours in (name for name in servers if ROOM_CONTENDERS[name].ours):
            if not any(run.work == work and run.server == ours for run in runs):
                continue
            for peer in (name for name in servers if not ROOM_CONTENDERS[name].ours):
                mine, theirs = (_figures(runs, work, name, "rate") for name in (ours, peer))
                ratio = _ratio(mine, theirs)
                by_cpu = _ratio(*(_figures(runs, work, name, "rate_of_cpu") for name in (ours, peer)))
                verdict = "not measured" if ratio is None else "met" if ratio >= AT_LEAST else "**missed**"
                cells = (
                    work,
                    ours,
                    _middle(mine),
                    f"{peer} {_middle(theirs)}",
                    _shown(ratio),
                    f"{AT_LEAST:g}",
                    verdict,
                    _shown(by_cpu),
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(runs: Sequence[RoomRun], work: str, server: str, figure: str) -> dict[int, float]:
    """A figure of a contender's right rounds, by round."""
    return {
        run.round: value
        for run in runs
        if (run.work, run.server, run.outcome) == (work, server, "right")
        and (value := getattr(run, figure)) is not None
    }


def _ratio(mine: dict[int, float], theirs: dict[int, float]) -> float | None:
    ratios = [mine[number] / theirs[number] for number in mine.keys() & theirs.keys() if theirs[number]]
    return median(ratios) if ratios else None


def _shown(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    # Not rounded up to the bound.
    return f"{ratio:.4f}" if ratio < AT_LEAST <= round(ratio, 1) else f"{ratio:.1f}"


def _middle(rates: dict[int, float]) -> str:
    return f"{median(rates.values()):,.0f}" if rates else "-"


def document(runs: Sequence[RoomRun], options: dict[str, Any]) -> dict[str, Any]:
    """Every run and the medians, with what they hold for."""
    summary: dict[str, dict[str, Any]] = {}
    for run in runs:
        chosen = [other for other in runs if (other.work, other.server) == (run.work, run.server)]
        summary.setdefault(run.work, {})[run.server] = medians(chosen)
    return {
        "environment": environment("requirements-across.txt", None),
        "options": options,
        "works": {work.name: asdict(work) for work in ROOM_WORKS.values()},
        "medians": summary,
        "runs": [asdict(run) for run in runs],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    works = [f"  {work.name:<18} {work.title}" for work in ROOM_WORKS.values()]
    servers = [f"  {contender.name:<18} {contender.remark}" for contender in ROOM_CONTENDERS.values()]
    parser = argparse.ArgumentParser(
        description="Compares topics across four processes with one Valkey (Linux, two cores or more).",
        epilog="\n".join(["works:", *works, "\nservers:", *servers]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = partial(parser.add_argument, metavar="NAME")
    add("--work", nargs="+", choices=ROOM_WORKS, default=list(ROOM_WORKS), help="what to measure (default: all)")
    add("--server", nargs="+", choices=ROOM_CONTENDERS, default=list(ROOM_CONTENDERS), help="whom (default: all)")
    add("--rounds", type=positive, default=3, metavar="N", help="rounds, told by their medians (default: 3)")
    add("--seconds", type=positive, default=5, metavar="S", help="seconds of each measurement (default: 5)")
    add("--json", type=Path, metavar="FILE", help="where to write every run and the medians")
    add("--cores", type=two_cores, default=(0, 1), metavar="A,B", help="of servers and Valkey, and of the client")
    add("--valkey", type=Path, metavar="FILE", help="a valkey-server or redis-server in place of the wheel's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
