"""How cost grows: python benchmarks/curves.py [--curve NAME ...] [--server NAME ...] [--json FILE] [--svg FILE]

Each point is one measurement as in run.py: a fresh server on one core, wsload on the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CONTENDERS, PEERS
from installing import build_wsload, install, missing
from measuring import Cores, Run, measure
from processes import ServerFailed, ServerProcess, free_port
from works import Work

CORES = Cores(0, 1)
LARGE = 64 * 1024 * 1024
#: What a message of 64 MiB may take at its peak, and how much longer the 99th percentile may be beside a flood.
MOST_OF_LARGE, MOST_OF_FLOOD = 2.2, 2.0
OURS = "geventws"
#: The curves, and who is measured for each where the command line names nobody.
SERVERS = {
    "busy": (OURS, "uwebsockets", "picows"),
    "idle": (OURS, "picows"),
    "fairness": (OURS, "uwebsockets", "picows"),
    "large": (OURS,),
    "publish": (OURS, "uwebsockets"),
}


@dataclass(frozen=True)
class Point:
    """One figure of a curve; ``value`` is None where there is no right one."""

    curve: str
    server: str
    figure: str
    #: Connections, subscribers or bytes.
    at: int
    value: float | None


class Curves:
    """Measures points, prints them, and keeps them with all runs."""

    def __init__(self, wsload: Path, servers: Sequence[str], rounds: int, seconds: int) -> None:
        self.wsload = wsload
        self.servers = servers
        self.rounds = rounds
        self.seconds = seconds
        self.runs: list[Run] = []
        self.points: list[Point] = []
        #: Whether a bound of ours was passed, or one of our measurements gave no right figure.
        self.failed = False

    def busy(self) -> None:
        """Messages a second and p99 with ever more busy connections."""
        print("\nbusy: echo of 125 B, 1 in flight\n\nconnections  server            messages/s      p99 us")
        for count in (1, 10, 100, 1000, 10_000):
            work = Work(f"busy-{count}", "", "echo", (f"-c{count}", "-w1", "-s125"))
            for server in self._chosen("busy"):
                rate, p99 = self._measure("busy", work, server, count, "rate", "p99_us")
                print(f"{count:>11,}  {server:<14}{_shown(rate):>14}{_shown(p99):>12}")

    def idle(self) -> None:
        """Memory with ever more idle connections."""
        print("\nidle: memory\n\nconnections  server          bytes/connection")
        for count in (1000, 2000, 5000, 10_000, 15_000):
            work = Work(f"idle-{count}", "", "hold", (f"-c{count}",), "connections")
            for server in self._chosen("idle"):
                (held,) = self._measure("idle", work, server, count, "connection_bytes")
                print(f"{count:>11,}  {server:<14}{_shown(held):>18}")

    def fairness(self) -> None:
        """The p99 of 63 honest clients, quiet and while one floods."""
        print("\nfairness: 63 clients with one message of 125 B in flight\n")
        print("server          quiet p99 us  flooded p99 us  ratio")
        options = ("-c63", "-w1", "-s125")
        for server in self._chosen("fairness"):
            (quiet,) = self._measure("fairness", Work("quiet", "", "echo", options), server, 63, "p99_us")
            flood = Work("flood", "", "echo", (*options, "-F512"))
            (flooded,) = self._measure("fairness", flood, server, 64, "p99_us")
            ratio = flooded / quiet if quiet and flooded else None
            self.points.append(Point("fairness", server, "ratio", 64, ratio))
            print(f"{server:<14}{_shown(quiet):>14}{_shown(flooded):>16}{_shown(ratio, 2):>7}")
            self._bound(server, ratio, MOST_OF_FLOOD)

    def large(self) -> None:
        """The memory that a message of 64 MiB takes at its peak."""
        print("\nlarge: one message of 64 MiB\n\nserver          peak over its size")
        for server in self._chosen("large"):
            ratio: float | None = None
            try:
                ratio = _large_ratio(server)
            except (OSError, ServerFailed) as error:
                self._say_wrong("large", server, str(error))
            self.points.append(Point("large", server, "ratio", LARGE, ratio))
            print(f"{server:<14}{_shown(ratio, 2):>20}")
            self._bound(server, ratio, MOST_OF_LARGE)

    def publish(self) -> None:
        """What a delivery costs with ever more subscribers."""
        print("\npublish: 125 B to all\n\nsubscribers  server        us of CPU a delivery")
        for count in (10, 100, 1000, 10_000):
            work = Work(f"publish-{count}", "", "publish", (f"-c{count}", "-s125"), "deliveries", path="/publish")
            for server in self._chosen("publish"):
                (cost,) = self._measure("publish", work, server, count, "server_cpu_us")
                print(f"{count:>11,}  {server:<14}{_shown(cost, 2):>20}")

    def _chosen(self, curve: str) -> list[str]:
        return [server for server in SERVERS[curve] if server in self.servers]

    def _measure(self, curve: str, work: Work, server: str, at: int, *figures: str) -> list[float | None]:
        """The medians of a point's right runs."""
        values: list[float | None] = []
        runs = [
            measure(self.wsload, work, CONTENDERS[server], number, self.seconds, CORES)
            for number in range(1, self.rounds + 1)
        ]
        self.runs += runs
        for run in runs:
            if run.outcome != "right":
                self._say_wrong(work.name, server, f"{run.outcome} {run.remark}")
        for figure in figures:
            right = [value for run in runs if run.outcome == "right" and (value := getattr(run, figure)) is not None]
            values.append(median(right) if right else None)
            self.points.append(
                Point(curve, server, f"{work.name} {figure}" if at in (63, 64) else figure, at, values[-1])
            )
        return values

    def _say_wrong(self, work: str, server: str, reason: str) -> None:
        print(f"{work} {server}: {reason}", file=sys.stderr)
        self.failed |= server == OURS

    def _bound(self, server: str, ratio: float | None, most: float) -> None:
        """Notes whether ours keeps a bound; a peer has none."""
        if server == OURS:
            kept = ratio is not None and ratio <= most
            print(f"(ours may be {most:g} at most: {'kept' if kept else 'NOT KEPT'})")
            self.failed |= not kept


def _shown(value: float | None, places: int = 0) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{places}f}"


def _large_ratio(server: str) -> float:
    contender, port = CONTENDERS[server], free_port()
    # A frame's limit holds for its payload; some room, so that it is the memory that counts and not the limit.
    environment = {**contender.environment_for(False), "BENCHMARK_LARGEST": str(80 * 1024 * 1024)}
    with ServerProcess(contender.command_for(False), environment, PEERS, CORES.server, port) as process:
        process.wait_ready(False)
        before = _peak(process.pid)
        _echo_large(port)
        return (_peak(process.pid) - before) / LARGE


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise ServerFailed("its peak of memory is not told")
    return int(found[1]) * 1024


def _echo_large(port: int) -> None:
    """Sends the message, then reads its echo and checks each byte; raises ``ConnectionError``."""
    piece = bytes(range(256)) * 4096
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, sock.makefile("rb") as stream:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        status = stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"the handshake was answered with {status!r}")
        while stream.readline().strip():
            pass
        # The mask is zero: the masked payload is the payload.
        sock.sendall(b"\x82\xff" + LARGE.to_bytes(8, "big") + bytes(4))
        for _ in range(LARGE // len(piece)):
            sock.sendall(piece)
        if stream.read(10) != b"\x82\x7f" + LARGE.to_bytes(8, "big"):
            raise ConnectionError("the echo is no single frame of the message's size")
        for _ in range(LARGE // len(piece)):
            if stream.read(len(piece)) != piece:
                raise ConnectionError("the echo is altered or cut short")


def main() -> int:
    """Measures the curves that the command line asks for; gives 1 where ours failed or passed a bound."""
    parser = argparse.ArgumentParser(description="Measures how cost grows with connections, subscribers and sizes.")
    everyone = list(dict.fromkeys(server for servers in SERVERS.values() for server in servers))
    parser.add_argument("--curve", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--server", nargs="+", choices=everyone, default=everyone)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every point and run")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where to draw the curves; takes matplotlib")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    install([CONTENDERS[name] for name in options.server])
    wsload, _ = build_wsload()
    there = []
    for server in options.server:
        if reason := missing(CONTENDERS[server]):
            print(f"{server} is left out: {reason}", file=sys.stderr)
        else:
            there.append(server)
    curves = Curves(wsload, there, options.rounds, options.seconds)
    curves.failed = OURS in options.server and OURS not in there
    for curve in options.curve:
        getattr(curves, curve)()
    points: list[dict[str, Any]] = [asdict(point) for point in curves.points]
    if options.json:
        results = {"cores": os.cpu_count(), "points": points, "runs": [asdict(run) for run in curves.runs]}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        from curve_figure import draw  # matplotlib is needed for nothing else here

        draw(points, options.svg)
    return int(curves.failed)


if __name__ == "__main__":
    sys.exit(main())
