"""How cost grows: python benchmarks/curves.py [--curve NAME ...] [--json FILE]

Each point is one measurement as in run.py: a fresh server on one core, wsload on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CONTENDERS, PEERS
from installing import build_wsload, install
from measuring import Cores, Run, measure
from processes import ServerProcess, free_port
from works import Work

CORES = Cores(0, 1)
LARGE = 64 * 1024 * 1024
#: What a message of 64 MiB may take at its peak, and how much longer the 99th percentile may be beside a flood.
MOST_OF_LARGE, MOST_OF_FLOOD = 2.2, 2.0


class Curves:
    """Measures points, and keeps all runs."""

    def __init__(self, wsload: Path, rounds: int, seconds: int) -> None:
        self.wsload = wsload
        self.rounds = rounds
        self.seconds = seconds
        self.runs: list[Run] = []

    def busy(self) -> None:
        """Messages a second and p99 with ever more busy connections."""
        print("\nbusy: echo of 125 B, 1 in flight\n\nconnections  server            messages/s    p99 us")
        for count in (1, 10, 100, 1000, 10_000):
            for server in ("geventws", "uwebsockets", "picows"):
                work = Work(f"busy-{count}", "", "echo", (f"-c{count}", "-w1", "-s125"))
                rate, p99 = self._median(work, server, "rate"), self._median(work, server, "p99_us", again=False)
                print(f"{count:>11,}  {server:<14}{rate:>14,.0f}{p99:>10,.0f}")

    def idle(self) -> None:
        """Memory with ever more idle connections."""
        print("\nidle: memory\n\nconnections  server          bytes/connection")
        for count in (1000, 2000, 5000, 10_000, 15_000):
            work = Work(f"idle-{count}", "", "hold", (f"-c{count}",), "connections")
            print(f"{count:>11,}  {'geventws':<14}{self._median(work, 'geventws', 'connection_bytes'):>18,.0f}")

    def fairness(self) -> None:
        """The p99 of 63 honest clients, quiet and while one floods."""
        print("\nfairness: 63 clients with one message of 125 B in flight\n")
        print("server            quiet p99 us  flooded p99 us  ratio")
        for server in ("geventws", "uwebsockets", "picows"):
            quiet = self._median(Work("quiet", "", "echo", ("-c63", "-w1", "-s125")), server, "p99_us")
            flooded = self._median(Work("flood", "", "echo", ("-c63", "-w1", "-s125", "-F512")), server, "p99_us")
            print(f"{server:<14}{quiet:>16,.0f}{flooded:>16,.0f}{flooded / quiet:>7.2f}")
        print(f"(the bound of ours: {MOST_OF_FLOOD:g})")

    def large(self) -> None:
        """The memory that a message of 64 MiB takes at its peak."""
        contender = CONTENDERS["geventws"]
        port = free_port()
        environment = {**contender.environment_for(False), "BENCHMARK_LARGEST": str(2 * LARGE)}
        with ServerProcess(contender.command_for(False), environment, PEERS, CORES.server, port) as server:
            server.wait_ready(False)
            before = _peak(server.pid)
            _echo_large(port)
            grown = _peak(server.pid) - before
        print(f"\nlarge: one message of 64 MiB takes {grown / LARGE:.2f} times its size (bound {MOST_OF_LARGE:g})")

    def publish(self) -> None:
        """What a delivery costs with ever more subscribers."""
        print("\npublish: 125 B to all\n\nsubscribers  server        us of CPU a delivery")
        for count in (10, 100, 1000, 10_000):
            for server in ("geventws", "uwebsockets"):
                work = Work(f"publish-{count}", "", "publish", (f"-c{count}", "-s125"), "deliveries", path="/publish")
                print(f"{count:>11,}  {server:<14}{self._median(work, server, 'server_cpu_us'):>20,.2f}")

    def _median(self, work: Work, server: str, figure: str, again: bool = True) -> float:
        if again:
            for number in range(1, self.rounds + 1):
                self.runs.append(measure(self.wsload, work, CONTENDERS[server], number, self.seconds, CORES))
        runs = [run for run in self.runs if run.work == work.name and run.server == server]
        wrong = [f"{run.outcome} {run.remark}" for run in runs if run.outcome != "right"]
        if wrong:
            print(f"{work.name} {server}: {'; '.join(wrong)}", file=sys.stderr)
        values = [value for run in runs if (value := getattr(run, figure)) is not None]
        return median(values) if values else float("nan")


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _echo_large(port: int) -> None:
    """Sends the message and reads its echo at the same time, as a server may not take all before it answers."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        sock.sendall(b"\x82\xff" + LARGE.to_bytes(8, "big") + bytes(4))
        piece = bytes(range(256)) * 256
        for _ in range(LARGE // len(piece)):
            sock.sendall(piece)
        left = LARGE + 10
        while left:
            got = len(sock.recv(min(left, 1024 * 1024)))
            if not got:
                raise ConnectionError("the echo is cut short")
            left -= got


def main() -> int:
    """Measures the curves that the command line asks for."""
    names = ("busy", "idle", "fairness", "large", "publish")
    parser = argparse.ArgumentParser(description="Measures how cost grows with connections, subscribers and sizes.")
    parser.add_argument("--curve", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every run")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    install([CONTENDERS[name] for name in ("geventws", "uwebsockets", "picows")])
    curves = Curves(build_wsload()[0], options.rounds, options.seconds)
    chosen: Sequence[Callable[[], None]] = [getattr(curves, name) for name in options.curve]
    for curve in chosen:
        curve()
    if options.json:
        runs: list[dict[str, Any]] = [asdict(run) for run in curves.runs]
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
