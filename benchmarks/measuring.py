"""One measurement: a fresh server on one core, wsload on another."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import PEERS, Contender
from processes import ServerFailed, ServerProcess, free_port, pinned
from works import Work

__all__ = ["Run", "measure"]

_WARMUP = 1
_OPENING = 120  # seconds that wsload gives to its connections to open
_SAMPLE = 0.05
_SAMPLE_PSS = 0.3
_SAMPLE_PINGED = 0.5
_PINGED_SECONDS = 40  # two of the pings' intervals
_SETTLING = 6  # seconds after the last connection is open; a sample's breadth more than 5
_BUSY = 0.4  # of a core, both sides together
_RATES = {"echo": "messages_per_s", "connect": "sessions_per_s", "publish": "deliveries_per_s"}


@dataclass
class Run:
    """What one measurement gave. A figure that there is none of is None."""

    work: str
    server: str
    round: int
    #: "right"; "wrong" where wsload saw a wrong reply or lost a connection; "stalled" where replies stayed out;
    #: "failed" where there is no figure at all; "unable" where the server has no such feature.
    outcome: str = "right"
    remark: str = ""
    rate: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    client_cpu: float | None = None
    server_cpu: float | None = None
    server_cpu_us: float | None = None
    rss_bytes: int | None = None
    connection_bytes: float | None = None
    wsload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cores:
    """The cores of the server and of wsload."""

    server: int
    client: int


def measure(wsload: Path, work: Work, contender: Contender, round_: int, seconds: int, cores: Cores) -> Run:
    """Measures one contender at one work. Blocks; a server that fails is told in the result."""
    run = Run(work.name, contender.name, round_)
    if reason := contender.lacks(work):
        run.outcome, run.remark = "unable", reason
        return run
    port = free_port()
    load = pinned(cores.client, [str(wsload)])
    try:
        # It starts in a folder without a gunicorn.conf.py, which gunicorn would read.
        environment = contender.environment_for(work.deflate, work.tls)
        with ServerProcess(contender.command_for(work.tls), environment, PEERS, cores.server, port) as server:
            server.wait_ready(work.deflate, work.tls)
            if work.pinged:
                _measure_pinged(run, server, load, max(seconds, _PINGED_SECONDS), _held(work))
            elif work.mode == "hold":
                _measure_memory(run, server, load, seconds, work)
            else:
                options = (*work.options, f"-d{seconds}", f"-u{_WARMUP}")
                _measure_speed(run, server, [*load, work.mode, "127.0.0.1", str(port), work.path, *options], seconds)
                run.rate = run.wsload[_RATES[work.mode]]
                if run.rate and run.server_cpu is not None:
                    run.server_cpu_us = run.server_cpu / run.rate * 1e6
                if run.outcome == "right" and _stands_still(run):
                    run.outcome, run.remark = "stalled", "neither side is busy, though replies are owed"
    except ServerFailed as error:
        run.outcome, run.remark = "failed", str(error)
    return run


def _measure_speed(run: Run, server: ServerProcess, command: Sequence[str], seconds: int) -> None:
    # wsload measures in its last seconds, so what the server used is taken over the same span, counted from the end.
    samples: list[tuple[float, float]] = []
    resident = 0

    def sample() -> None:
        nonlocal resident
        samples.append((time.monotonic(), server.cpu_seconds()))
        resident = max(resident, server.rss())

    _load(run, server, command, sample, _SAMPLE, _OPENING + _WARMUP + seconds + 10)
    end, used_at_end = samples[-1]
    start, used_at_start = next(item for item in samples if item[0] >= end - seconds)
    if end > start:
        run.server_cpu = (used_at_end - used_at_start) / (end - start)
    run.rss_bytes = resident
    run.p50_us, run.p99_us = run.wsload["p50_us"], run.wsload["p99_us"]
    run.client_cpu = run.wsload["client_cpu"]


def _stands_still(run: Run) -> bool:
    # An echo always has messages in flight, so that one side is busy, and rate x latency is what is in flight.
    if run.wsload["mode"] == "connect" or (run.server_cpu or 0) + run.wsload["client_cpu"] > _BUSY:
        return False
    if run.wsload["mode"] == "publish":
        return not run.rate
    in_flight = run.wsload["conns"] * run.wsload["window"]
    return bool(run.wsload["messages_per_s"] * run.wsload["p50_us"] / 1e6 < in_flight / 4)


def _held(work: Work) -> list[str]:
    """wsload's options with as many of the connections as there may be."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200
    return [f"-c{min(int(option[2:]), limit)}" if option.startswith("-c") else option for option in work.options]


def _measure_pinged(run: Run, server: ServerProcess, load: Sequence[str], seconds: int, options: Sequence[str]) -> None:
    # As in _measure_speed, but without the last sample: while it was taken, wsload may have begun to hang up.
    samples: list[tuple[float, float]] = []
    command = [*load, "hold", "127.0.0.1", str(server.port), "/", *options, f"-d{seconds}", f"-u{_SETTLING}"]

    def sample() -> None:
        samples.append((time.monotonic(), server.cpu_seconds()))
        run.rss_bytes = max(run.rss_bytes or 0, server.rss())

    _load(run, server, command, sample, _SAMPLE_PINGED, _OPENING + _SETTLING + seconds + 10)
    end, used_at_end = samples[-2]
    start, used_at_start = next(item for item in samples if item[0] >= end - seconds)
    run.server_cpu = (used_at_end - used_at_start) / (end - start)
    run.client_cpu = run.wsload["client_cpu"]
    run.rate = run.wsload["opened"]
    if run.outcome == "right" and run.wsload["pings"] < run.wsload["opened"]:
        run.outcome, run.remark = "wrong", f"{run.wsload['pings']} pings came"


def _measure_memory(run: Run, server: ServerProcess, load: Sequence[str], seconds: int, work: Work) -> None:
    # A few sessions go first, so that what a server allocates once is not taken for a connection's share.
    place = ("127.0.0.1", str(server.port))
    _load(
        run, server, [*load, "echo", *place, "/", "-c8", "-w1", "-s125", "-d1", "-u0"], lambda: None, _SAMPLE, _OPENING
    )
    before = server.pss()
    held: list[int] = []
    command = [*load, "hold", *place, work.path, *_held(work), f"-d{seconds}", "-u0"]
    _load(run, server, command, lambda: held.append(server.pss()), _SAMPLE_PSS, _OPENING + seconds + 10)
    run.rate = run.wsload["opened"]
    # Not the last sample: while it was taken, wsload may have begun to hang up.
    run.connection_bytes = (held[-2:][0] - before) / run.wsload["opened"]
    run.rss_bytes = server.rss()


def _load(
    run: Run, server: ServerProcess, command: Sequence[str], sample: Callable[[], None], every: float, patience: float
) -> None:
    """Runs wsload to its end and samples meanwhile; raises ``ServerFailed`` where it gives no figures."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        deadline = time.monotonic() + patience
        try:
            while process.poll() is None:
                sample()
                if time.monotonic() > deadline:
                    raise ServerFailed("wsload did not come to its end")
                time.sleep(every)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        printed, complaint = output.read().decode(), errors.read().decode(errors="replace").strip()
    if not printed:
        last = complaint.splitlines()[-1] if complaint else "no output"
        raise ServerFailed(f"wsload ended with status {process.returncode}: {last}; server: {server.last_words()}")
    run.wsload = json.loads(printed)
    if process.returncode:
        run.outcome = "wrong"
        run.remark = ", ".join(f"{run.wsload[name]} {name}" for name in ("failed", "lost", "wrong") if run.wsload[name])
