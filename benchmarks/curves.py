"""How cost grows: python benchmarks/curves.py [--curve NAME ...] [--server NAME ...] [--json FILE] [--svg FILE]

Each point is one measurement as in run.py: a fresh server on one core, wsload on the other.
"""

from __future__ import annotations

import argparse
import re
import resource
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, PEERS
from figure import draw
from installing import available, build_wsload
from measuring import Cores, Run, measure
from processes import ServerFailed, ServerProcess, free_port
from report import environment, medians, write_json
from works import Work

CORES = Cores(0, 1)
LARGE = 64 * 1024 * 1024
OURS = "geventws"
#: How much longer our 99th percentile may be beside a flood, and what a message may take over its size.
BOUNDS = {"fairness": 2.0, "large": 2.2}
#: The curves, and who is measured for each.
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
                figures = self._measure(work, server)
                rate, p99 = (self._keep("busy", server, name, count, figures[name]) for name in ("rate", "p99_us"))
                print(f"{count:>11,}  {server:<14}{_shown(rate):>14}{_shown(p99):>12}")

    def idle(self) -> None:
        """Memory with ever more idle connections."""
        print("\nidle: memory\n\nconnections  server          bytes/connection")
        for count in (1000, 2000, 5000, 10_000, 15_000):
            work = Work(f"idle-{count}", "", "hold", (f"-c{count}",), "connections")
            for server in self._chosen("idle"):
                figures = self._measure(work, server)
                # As many as this system lets it open.
                opened = int(figures["rate"] or count)
                held = self._keep("idle", server, "connection_bytes", opened, figures["connection_bytes"])
                print(f"{opened:>11,}  {server:<14}{_shown(held):>18}")

    def publish(self) -> None:
        """What a delivery costs with ever more subscribers."""
        print("\npublish: 125 B to all\n\nsubscribers  server        us of CPU a delivery")
        for count in (10, 100, 1000, 10_000):
            work = Work(f"publish-{count}", "", "publish", (f"-c{count}", "-s125"), "deliveries", path="/publish")
            for server in self._chosen("publish"):
                figures = self._measure(work, server)
                cost = self._keep("publish", server, "server_cpu_us", count, figures["server_cpu_us"])
                print(f"{count:>11,}  {server:<14}{_shown(cost, 2):>20}")

    def fairness(self) -> None:
        """The p99 of 63 honest clients, quiet and while one floods."""
        print("\nfairness: 63 clients with one message of 125 B in flight\n")
        print("server          quiet p99 us  flooded p99 us  ratio")
        options = ("-c63", "-w1", "-s125")
        for server in self._chosen("fairness"):
            quiet = self._measure(Work("quiet", "", "echo", options), server)["p99_us"]
            flooded = self._measure(Work("flood", "", "echo", (*options, "-F512")), server)["p99_us"]
            ratio = flooded / quiet if quiet and flooded else None
            self._keep("fairness", server, "quiet p99_us", 63, quiet)
            self._keep("fairness", server, "flooded p99_us", 63, flooded)
            self._keep("fairness", server, "ratio", 63, ratio)
            print(f"{server:<14}{_shown(quiet):>14}{_shown(flooded):>16}{_shown(ratio, 2):>7}")
            self._hold_to_bound("fairness", server, ratio)

    def large(self) -> None:
        """The memory that a message of 64 MiB takes at its peak."""
        print("\nlarge: one message of 64 MiB\n\nserver          peak over its size")
        for server in self._chosen("large"):
            ratio: float | None = None
            try:
                ratio = _large_ratio(server)
            except (OSError, ServerFailed) as error:
                self._say_wrong("large", server, str(error))
            self._keep("large", server, "ratio", LARGE, ratio)
            print(f"{server:<14}{_shown(ratio, 2):>20}")
            self._hold_to_bound("large", server, ratio)

    def _chosen(self, curve: str) -> list[str]:
        return [server for server in SERVERS[curve] if server in self.servers]

    def _measure(self, work: Work, server: str) -> dict[str, Any]:
        """The medians of the right runs."""
        numbers = range(1, self.rounds + 1)
        runs = [measure(self.wsload, work, CONTENDERS[server], number, self.seconds, CORES) for number in numbers]
        self.runs += runs
        for run in runs:
            if run.outcome != "right":
                self._say_wrong(work.name, server, f"{run.outcome.upper()} {run.remark}")
        return medians(runs)

    def _keep(self, curve: str, server: str, figure: str, at: int, value: float | None) -> float | None:
        self.points.append(Point(curve, server, figure, at, value))
        return value

    def _say_wrong(self, work: str, server: str, reason: str) -> None:
        print(f"{work} {server}: {reason}", file=sys.stderr)
        self.failed |= server == OURS

    def _hold_to_bound(self, curve: str, server: str, ratio: float | None) -> None:
        """Notes whether ours keeps a bound; a peer has none."""
        if server == OURS:
            kept = ratio is not None and ratio <= BOUNDS[curve]
            print(f"(ours may be {BOUNDS[curve]:g} at most: {'kept' if kept else 'NOT KEPT'})")
            self.failed |= not kept


def _shown(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _large_ratio(server: str) -> float:
    contender, port = CONTENDERS[server], free_port()
    # A frame's limit holds for its payload; some room, so that it is the memory that counts and not the limit.
    variables = {**contender.environment_for(False), "BENCHMARK_LARGEST": str(80 * 1024 * 1024)}
    with ServerProcess(contender.command_for(False), variables, PEERS, CORES.server, port) as process:
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
    """Measures the curves that the command line asks for; 1 where ours failed or passed a bound."""
    parser = argparse.ArgumentParser(description="Measures how cost grows with connections, subscribers and sizes.")
    everyone = list(dict.fromkeys(server for servers in SERVERS.values() for server in servers))
    parser.add_argument("--curve", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--server", nargs="+", choices=everyone, default=everyone)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every point and run")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="where to draw the curves; takes matplotlib")
    options = parser.parse_args()
    if not any(server in SERVERS[curve] for curve in options.curve for server in options.server):
        parser.error("none of these servers has one of these curves")
    if options.svg and find_spec("matplotlib") is None:
        parser.error("--svg takes matplotlib")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    wsload, _ = build_wsload()
    servers = [contender.name for contender in available([CONTENDERS[name] for name in options.server])]
    curves = Curves(wsload, servers, options.rounds, options.seconds)
    curves.failed = OURS in options.server and OURS not in servers
    for curve in options.curve:
        getattr(curves, curve)()
    results = {
        "environment": environment(),
        "bounds": BOUNDS,
        "points": [asdict(point) for point in curves.points],
        "runs": [asdict(run) for run in curves.runs],
    }
    if options.json:
        write_json(options.json, results)
    if options.svg:
        draw(results, options.svg)
    return int(curves.failed)


if __name__ == "__main__":
    sys.exit(main())
