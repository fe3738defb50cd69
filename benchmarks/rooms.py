"""Rooms across four processes with one Valkey: who is measured, at what, and how."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Timer
from typing import Any

from contenders import ACROSS, HERE, PEERS
from measuring import Cores
from processes import ServerFailed, ServerProcess, fetch, free_port, pinned
from report import CLIENT_IS_FULL
from valkey_server import Valkey

__all__ = [
    "PROCESSES",
    "ROOM_CONTENDERS",
    "ROOM_WORKS",
    "RoomContender",
    "RoomRun",
    "RoomWork",
    "judge",
    "measure",
    "medians",
    "start",
]

#: The processes of each contender.
PROCESSES = 4
#: Seconds that a contender's processes may take until all of them answer.
STARTING = 30.0
#: Seconds that roomload gives to its connections to open, to what stands still, and to what comes late; and some more.
PATIENCE = 90
WARMUP = 1
ACROSS_PYTHON = str(ACROSS / "bin" / "python")


@dataclass(frozen=True)
class RoomWork:
    """One table of the comparison."""

    name: str
    title: str
    #: roomload's options, without the durations.
    options: tuple[str, ...]
    #: Whether it publishes as fast as it is allowed to: what counts is deliveries, and not how long one takes.
    full: bool


@dataclass(frozen=True)
class RoomContender:
    """A server with topics, rooms or groups."""

    name: str
    #: What it is, in a few words.
    remark: str
    runtime: str
    #: The arguments behind the interpreter; ``{port}`` stands for the port.
    arguments: tuple[str, ...]
    #: Code that the interpreter must run without an error before the contender may start.
    check: str
    #: Its route.
    path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Whether one command starts all processes, on one port; else each has its own.
    forks: bool = False
    socketio: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is geventws, and no peer."""
        return self.runtime == sys.executable

    def environment_for(self, url: str) -> dict[str, str]:
        """The variables to start it with, over those of this process."""
        return {"PYTHONPATH": str(HERE.parent) if self.ours else "", "BENCHMARK_REDIS": url, **self.environment}


@dataclass
class RoomRun:
    """What one measurement gave. A figure that there is none of is None."""

    work: str
    server: str
    round: int
    #: "right"; "wrong" where a message was missing, came twice or altered, or a connection was lost; "failed" where
    #: there is no figure at all.
    outcome: str = "right"
    remark: str = ""
    #: Deliveries a second; of the servers' CPU time, too.
    rate: float | None = None
    rate_of_cpu: float | None = None
    valkey_us: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    client_cpu: float | None = None
    server_cpu: float | None = None
    valkey_cpu: float | None = None
    rss_bytes: int | None = None
    roomload: dict[str, Any] = field(default_factory=dict)


_FIGURES = (
    "rate",
    "rate_of_cpu",
    "valkey_us",
    "p50_us",
    "p99_us",
    "client_cpu",
    "server_cpu",
    "valkey_cpu",
    "rss_bytes",
)

ROOM_WORKS = {
    work.name: work
    for work in (
        RoomWork(
            "room",
            "400 subscribers of one topic, 4 publishers with 4 messages in flight each",
            ("-c400", "-r1", "-p4", "-w4"),
            True,
        ),
        RoomWork(
            "rooms",
            "2,000 subscribers of 100 topics, a publisher of each with 4 messages in flight",
            ("-c2000", "-r100", "-p100", "-w4"),
            True,
        ),
        RoomWork(
            "room-slow",
            "400 subscribers of one topic, 5 messages a second by 4 publishers",
            ("-c400", "-r1", "-p4", "-R5"),
            False,
        ),
        RoomWork(
            "rooms-slow",
            "2,000 subscribers of 100 topics, 50 messages a second, to each topic in turn",
            ("-c2000", "-r100", "-p100", "-R50"),
            False,
        ),
    )
}


def _gunicorn(workers: int, worker: str, folder: str, app: str) -> tuple[str, ...]:
    place = ("-b", "127.0.0.1:{port}", "--chdir", str(HERE / folder))
    options = "--worker-connections 20000 --graceful-timeout 1 --no-control-socket --log-level warning"
    return ("-m", "gunicorn", "-k", worker, "-w", str(workers), *options.split(), *place, app)


def _ours(name: str, remark: str, history: int) -> RoomContender:
    # A row must not be of another build than it says.
    check = """
import geventws.worker, geventws.topics, redis
if geventws.build() != "compiled":
    raise ImportError("this is the pure build; to compile: python setup.py build_ext --inplace")
"""
    environment = {"BENCHMARK_HISTORY": str(history), "GEVENTWS_PURE": ""}
    arguments = _gunicorn(PROCESSES, "geventws.Worker", "servers", "topics_app:app")
    return RoomContender(name, remark, sys.executable, arguments, check, "/topic", environment, forks=True)


def _channels(name: str, layer: str) -> RoomContender:
    place = ("--host", "127.0.0.1", "--port", "{port}", "--app-dir", str(HERE / "peers"))
    quiet = ("--log-level", "error", "--no-access-log")
    return RoomContender(
        name,
        f"Django Channels on uvicorn, {layer.rpartition('.')[2]}",
        ACROSS_PYTHON,
        ("-m", "uvicorn", "--loop", "asyncio", *place, *quiet, "channels_rooms:app"),
        "import channels, channels_redis, django, uvicorn, websockets",
        "/topic",
        {"BENCHMARK_LAYER": f"channels_redis.{layer}"},
    )


_SOCKETIO_WORKER = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"

ROOM_CONTENDERS = {
    contender.name: contender
    for contender in (
        _ours("geventws", "gunicorn -k geventws.Worker -w 4", 0),
        _ours("geventws-history", "the same with history=1000", 1000),
        RoomContender(
            "flask-socketio",
            "Flask-SocketIO's Redis manager, gunicorn with gevent-websocket",
            ACROSS_PYTHON,
            _gunicorn(1, _SOCKETIO_WORKER, "peers", "socketio_rooms:app"),
            f"import flask_socketio, redis, gunicorn, {_SOCKETIO_WORKER.rpartition('.')[0]}",
            "/socket.io/?EIO=4&transport=websocket",
            socketio=True,
        ),
        _channels("channels", "core.RedisChannelLayer"),
        _channels("channels-pubsub", "pubsub.RedisPubSubChannelLayer"),
    )
}


def measure(
    roomload: Path, valkey: Path, work: RoomWork, contender: RoomContender, round_: int, seconds: int, cores: Cores
) -> RoomRun:
    """Measures one contender at one work. Blocks; a server that fails is told in the result."""
    run = RoomRun(work.name, contender.name, round_)
    try:
        with ExitStack() as stack:
            redis = stack.enter_context(Valkey(valkey, cores.server))
            servers = start(stack, contender, redis.url, cores.server)
            ports = ",".join(str(server.port) for server in servers)
            command = [str(roomload), "127.0.0.1", ports, contender.path, *work.options, "-s125"]
            command += [f"-d{seconds}", f"-u{WARMUP}", *(["-e"] if contender.socketio else [])]
            _load(run, pinned(cores.client, command), servers, redis, PATIENCE + WARMUP + seconds)
    except ServerFailed as error:
        run.outcome, run.remark = "failed", str(error)
    return run


def start(stack: ExitStack, contender: RoomContender, url: str, core: int) -> list[ServerProcess]:
    """Starts a contender's processes, which end with the stack, and blocks until all of them answer.

    Raises ``ServerFailed``.
    """
    command = (contender.runtime, *contender.arguments)
    environment = contender.environment_for(url)
    # It starts in a folder without a gunicorn.conf.py, which gunicorn would read.
    servers = [
        stack.enter_context(ServerProcess(command, environment, PEERS, core, free_port()))
        for _ in range(1 if contender.forks else PROCESSES)
    ]
    for server in servers:
        server.wait_answering()
    if contender.forks:
        _wait_for_workers(servers[0])
    return servers


def _wait_for_workers(server: ServerProcess) -> None:
    """Blocks until each worker has answered: who comes late would get none of the connections."""
    deadline = time.monotonic() + STARTING
    seen: set[int] = set()
    while len(seen) < PROCESSES:
        if time.monotonic() > deadline:
            raise ServerFailed(f"{len(seen)} of {PROCESSES} workers answer: {server.last_words()}")
        seen.add(json.loads(fetch(server.port, "/"))["pid"])
    server.take_stock()


def _load(run: RoomRun, command: list[str], servers: list[ServerProcess], redis: Valkey, patience: float) -> None:
    """Runs roomload to its end, and takes what the servers used between the lines that it prints for its phases."""

    def used() -> tuple[float, float, float]:
        return time.monotonic(), sum(server.running_seconds() for server in servers), redis.running_seconds()

    at: dict[str, tuple[float, float, float]] = {}
    printed = ""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        watchdog = Timer(patience, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    printed = line
                    continue
                if line == "opened\n":
                    for server in servers:
                        server.take_stock()
                at[line.strip()] = used()
            process.wait()
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if not printed:
        last = complaint.splitlines()[-1] if complaint else "no output"
        words = "; ".join(server.last_words() for server in servers)
        raise ServerFailed(f"roomload ended with status {process.returncode}: {last}; servers: {words}")
    run.roomload = json.loads(printed)
    run.rss_bytes = sum(server.rss() for server in servers)
    judge(run)
    if {"measuring", "measured"} <= at.keys():
        _note_figures(run, at["measuring"], at["measured"])


def judge(run: RoomRun) -> None:
    """Says in the run whether every message came where it was to come."""
    faults = [f"{run.roomload[name]} {name}" for name in ("lost", "missing", "twice", "altered", "strange")]
    faults = [fault for fault in faults if not fault.startswith("0 ")]
    if run.roomload["stalled"]:
        faults.append("stalled")
    serving = len(run.roomload["processes"])
    if serving != PROCESSES:
        faults.append(f"{serving} processes had subscribers")
    # Ours keep the order of each publisher; not all peers say so of theirs.
    if run.roomload["out_of_order"] and ROOM_CONTENDERS[run.server].ours:
        faults.append(f"{run.roomload['out_of_order']} out of order")
    if faults:
        run.outcome, run.remark = "wrong", ", ".join(faults)


def _note_figures(run: RoomRun, first: tuple[float, float, float], last: tuple[float, float, float]) -> None:
    span, servers, valkey = (after - before for before, after in zip(first, last, strict=True))
    told = run.roomload
    run.rate, run.p50_us, run.p99_us = told["deliveries_per_s"], told["p50_us"], told["p99_us"]
    run.client_cpu = told["client_cpu"]
    run.server_cpu, run.valkey_cpu = servers / span, valkey / span
    if servers:
        run.rate_of_cpu = told["deliveries"] / servers
    if told["publishes"]:
        run.valkey_us = valkey / told["publishes"] * 1e6


def medians(runs: list[RoomRun]) -> dict[str, Any]:
    """The median of each figure over the right rounds of one contender at one work, and what went wrong."""
    right = [run for run in runs if run.outcome == "right"]
    result: dict[str, Any] = {}
    for name in _FIGURES:
        values = [value for run in right if (value := getattr(run, name)) is not None]
        result[name] = median(values) if values else None
    rates = [run.rate for run in right if run.rate]
    result["spread"] = (max(rates) - min(rates)) / median(rates) if rates else None
    outcomes = [run.outcome for run in runs]
    result["faults"] = [
        f"{name.upper()} in {outcomes.count(name)} of {len(runs)}" for name in ("wrong", "failed") if name in outcomes
    ]
    result["marks"] = []
    if (result["client_cpu"] or 0) >= CLIENT_IS_FULL:
        result["marks"].append("the client is the limit")
    if any(run.roomload["late"] for run in right):
        result["marks"].append("can't keep the rate")
    if any(run.roomload["out_of_order"] for run in right):
        result["marks"].append("messages overtake others")
    return result
