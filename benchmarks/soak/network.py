"""A server behind a bad link: python network.py [loss] [slow] [cut] --out FOLDER.

``loss``: 5 % of the packets are lost, the others delayed by 100 ms, more or less 50 ms, and 10 % overtake (T23).
``slow``: a link of 64 kbit/s carries messages of 1 MB (T24). ``cut``: the link is down for 10 seconds, which sessions
outlive, and then for longer than ``ping_interval`` and ``timeout`` together, after which nothing may be left of them.

It needs root and Linux: server and clients live in network namespaces of their own, between which ``link.py`` carries
the packets. Namespaces and devices are gone when it ends. The exit status is 1 where a session ended that should not
have, a byte was wrong, or something was left over.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gevent
from client import BINARY, Client, Closed, Lost, Wrong, frame
from gevent.event import Event
from machine import machine
from payloads import pushed

HERE = Path(__file__).resolve().parent
SERVER, CLIENT = "10.99.0.1", "10.99.0.2"
PORT = 8000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
CLONE_NEWNET = 0x40000000
TRACEBACK = "Traceback (most recent call last)"
MB = 1_000_000


class Network:
    """Two namespaces and the devices between which the link carries; gone with the ``with`` block."""

    def __init__(self) -> None:
        self.server = f"soak-server-{os.getpid()}"
        self.client = f"soak-client-{os.getpid()}"
        self.devices: list[int] = []

    def __enter__(self) -> Network:
        try:
            for namespace, name, address in ((self.server, "link0", SERVER), (self.client, "link1", CLIENT)):
                run("ip", "netns", "add", namespace)
                # A device keeps its descriptor when it moves.
                here = f"soak{len(self.devices)}p{os.getpid()}"
                self.devices.append(open_tun(here))
                run("ip", "link", "set", here, "netns", namespace, "name", name)
                run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", name)
                run("ip", "-n", namespace, "link", "set", name, "up")
                run("ip", "-n", namespace, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices:
            os.close(device)
        for namespace in (self.server, self.client):
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Moves this process to where the clients are: the sockets that it makes meanwhile belong there."""
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.client}", os.O_RDONLY)
        try:
            set_namespace(there)
            yield
        finally:
            set_namespace(here)
            os.close(here)
            os.close(there)

    def set_link(self, state: str) -> None:
        """Sets the clients' end up or down."""
        run("ip", "-n", self.client, "link", "set", "link1", state)


def open_tun(name: str) -> int:
    """A new TUN device."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def set_namespace(descriptor: int) -> None:
    """Moves this process to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def run(*command: str) -> None:
    """Runs a command, which must succeed."""
    subprocess.run(command, check=True)


class Server:
    """The server in its namespace, its log, and what it holds."""

    def __init__(self, kind: str, namespace: str, folder: Path, settings: dict[str, Any]) -> None:
        self.stats = folder / "stats"
        # Of an earlier run.
        shutil.rmtree(self.stats, ignore_errors=True)
        self.stats.mkdir(parents=True)
        self.log = folder / "server.log"
        if kind == "worker":
            options = (
                f"-m gunicorn -k geventws.Worker --no-control-socket -b {SERVER}:{PORT} --access-logfile - app:app"
            )
        else:
            options = f"{HERE / 'app.py'} {PORT} {SERVER}"
        # Of each session: how long it was, and its close code.
        log_format = '%(t)s "%(r)s" %(s)s %(L)s s, close code %({geventws.close_code}e)s'
        format_of_log = ["--access-logformat", log_format] if kind == "worker" else []
        place = os.pathsep.join((str(HERE), str(HERE.parents[1])))
        environment = {"SOAK_STATS": str(self.stats), "SOAK_SETTINGS": json.dumps(settings), "PYTHONPATH": place}
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, *options.split(), *format_of_log],
            cwd=HERE,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
        )
        until = time.monotonic() + 30
        while not (seen := list(self.stats.glob("*.json"))):
            if time.monotonic() > until or self.process.poll() is not None:
                self.stop()
                raise SystemExit(f"the server does not start: look into {self.log}")
            time.sleep(0.1)
        self.pid = int(seen[0].stem)
        # It looks before it listens.
        time.sleep(1)

    def fds(self) -> int:
        """The worker's open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def look(self) -> dict[str, Any]:
        """What the application saw of itself lately."""
        return dict(json.loads((self.stats / f"{self.pid}.json").read_text()))

    def stop(self) -> None:
        """Ends the server."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Figures:
    """What clients have seen."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.seconds: list[float] = []
        self.false_closes: list[str] = []
        self.protocol_errors: list[str] = []
        self.connects = 0
        self.connect_seconds: list[float] = []
        self.pings = 0

    def guard(self, name: str, play: Callable[..., None], *arguments: Any) -> None:
        """Plays a client to its end, and notes where that was not its own."""
        begun = time.monotonic()
        try:
            play(self, *arguments)
        except (Closed, Lost) as error:
            after = time.monotonic() - begun
            self.false_closes.append(f"{name}: {type(error).__name__}{error.args!r} after {after:.1f} s")
        except Wrong as error:
            self.protocol_errors.append(f"{name}: {error}")

    def open(self, path: str, deflate: bool = False) -> Client:
        """Opens a session. The client waits without end: what ends is the server's affair."""
        begun = time.monotonic()
        self.connects += 1
        client = Client((SERVER, PORT), timeout=120)
        client.open(path, deflate)
        client.socket.settimeout(None)
        self.connect_seconds.append(time.monotonic() - begun)
        return client

    def echo(self, client: Client, message: bytes, timed: bool = True) -> None:
        """Has a message echoed."""
        begun = time.monotonic()
        client.send(client.encode(message, False))
        if client.receive()[0] != message:
            raise Wrong("a message came back altered")
        self.messages += 1
        self.bytes += len(message)
        if timed:
            self.seconds.append(time.monotonic() - begun)

    def told(self) -> dict[str, Any]:
        """All of it."""
        return {
            "connects": self.connects,
            "messages": self.messages,
            "bytes": self.bytes,
            "pings answered": self.pings,
            "p50 s": percentile(self.seconds, 0.5),
            "p99 s": percentile(self.seconds, 0.99),
            "connect p99 s": percentile(self.connect_seconds, 0.99),
            "false closes": self.false_closes,
            "protocol errors": self.protocol_errors,
        }


def percentile(values: list[float], part: float) -> float | None:
    """A percentile; None of nothing."""
    return sorted(values)[int(len(values) * part)] if values else None


# -- T23 ---------------------------------------------------------------------------------------------------------------


def loss(seconds: float, server: Server, network: Network) -> dict[str, Any]:
    """Clients that talk, that are silent, that send much, and that come and go."""
    figures, until, spread = Figures(), time.monotonic() + seconds, random.Random(1)

    def talk(figures: Figures, deflate: bool) -> None:
        client = figures.open("/deflate" if deflate else "/echo", deflate)
        while time.monotonic() < until:
            figures.echo(client, pushed(spread.randrange(1000), 128))
            gevent.sleep(spread.random())
        client.close()
        figures.pings += client.pings

    def be_silent(figures: Figures) -> None:
        client = figures.open("/echo")
        # It only answers pings, until the echo of its one message.
        timer = gevent.spawn_later(max(0.0, until - time.monotonic()), client.send, client.encode(b"over", False))
        if client.receive()[0] != b"over":
            raise Wrong("a message came back altered")
        timer.get()
        client.close()
        figures.pings += client.pings

    def send_much(figures: Figures) -> None:
        client = figures.open("/echo")
        while time.monotonic() < until:
            figures.echo(client, pushed(spread.randrange(1000), 50_000), timed=False)
            gevent.sleep(1)
        client.close()
        figures.pings += client.pings

    def come_and_go(figures: Figures) -> None:
        with figures.open("/echo") as client:
            figures.echo(client, b"hello")
            client.close()

    clients = [gevent.spawn(figures.guard, "talking", talk, number % 2 == 1) for number in range(20)]
    clients += [gevent.spawn(figures.guard, "silent", be_silent) for _ in range(10)]
    clients += [gevent.spawn(figures.guard, "sending much", send_much) for _ in range(4)]
    while time.monotonic() < until:
        clients.append(gevent.spawn(figures.guard, "coming and going", come_and_go))
        gevent.sleep(1)
    gevent.joinall(clients, timeout=120)
    stuck = sum(not client.ready() for client in clients)
    return {"seconds": seconds, **figures.told(), "stuck": stuck}


# -- T24 ---------------------------------------------------------------------------------------------------------------


def slow(seconds: float, server: Server, network: Network) -> dict[str, Any]:
    """A message of 1 MB each way, an idle session and small messages beside it."""
    figures, over = Figures(), Event()
    times: dict[str, float] = {}

    def upload(figures: Figures) -> None:
        client = figures.open("/echo")
        begun = time.monotonic()
        message = pushed(1, MB)
        client.send(client.encode(message, False))
        if client.receive()[0] != message:
            raise Wrong("a message came back altered")
        times["echo of 1 MB, s"] = time.monotonic() - begun
        figures.messages += 1
        figures.bytes += MB
        client.close()
        figures.pings += client.pings

    def download(figures: Figures) -> None:
        begun = time.monotonic()
        client = figures.open(f"/push?messages=1&size={MB}")
        if client.receive()[0] != pushed(0, MB):
            raise Wrong("a message came altered")
        times["push of 1 MB, s"] = time.monotonic() - begun
        figures.messages += 1
        figures.bytes += MB
        client.expect_close(1000)
        figures.pings += client.pings

    def be_silent(figures: Figures) -> None:
        client = figures.open("/echo")
        timer = gevent.spawn(lambda: (over.wait(), client.send(client.encode(b"over", False))))
        if client.receive()[0] != b"over":
            raise Wrong("a message came back altered")
        timer.get()
        client.close()
        figures.pings += client.pings

    def talk(figures: Figures) -> None:
        client = figures.open("/echo")
        while not over.is_set():
            figures.echo(client, pushed(7, 125))
            over.wait(5)
        client.close()
        figures.pings += client.pings

    aside = [gevent.spawn(figures.guard, "silent", be_silent), gevent.spawn(figures.guard, "talking", talk)]
    large = [gevent.spawn(figures.guard, "download", download), gevent.spawn(figures.guard, "upload", upload)]
    gevent.joinall(large, timeout=900)
    over.set()
    gevent.joinall(aside, timeout=120)
    stuck = sum(not client.ready() for client in large + aside)
    return {**times, **figures.told(), "stuck": stuck}


# -- The cut -----------------------------------------------------------------------------------------------------------


def cut(seconds: float, server: Server, network: Network) -> dict[str, Any]:
    """The link is down for 10 seconds, and then for as long as it takes to find that out."""
    figures = Figures()
    base = server.fds()
    patience = SETTINGS["cut"]["ping_interval"] + SETTINGS["cut"]["timeout"]
    idle = [figures.open("/echo") for _ in range(10)]
    half = [figures.open("/echo") for _ in range(5)]
    told_to = [figures.open("/push?messages=1000000000&size=30000") for _ in range(5)]
    everyone = idle + half + told_to
    messages = {client: frame(BINARY, pushed(3, 200_000)) for client in half}
    for client in half:
        client.send(messages[client][:100_000])
    for client in told_to:
        for number in range(3):
            if client.receive()[0] != pushed(number, 30000):
                raise Wrong("a message came altered")
    readers = [gevent.spawn(figures.guard, "pushed to", keep_reading, client) for client in told_to]

    def await_echoes(figures: Figures, client: Client) -> None:
        # Pings are answered all the while.
        expected = [pushed(3, 200_000)] if client in half else []
        for message in [*expected, b"still there"]:
            if client.receive()[0] != message:
                raise Wrong("a message came back altered")
            figures.messages += 1

    waiting = [gevent.spawn(figures.guard, "after 10 s", await_echoes, client) for client in idle + half]
    gevent.sleep(1)
    network.set_link("down")
    gevent.sleep(10)
    network.set_link("up")
    back_at = time.monotonic()
    for client in half:
        client.send(messages[client][100_000:])
    for client in idle + half:
        client.send(client.encode(b"still there", False))
    gevent.joinall(waiting, timeout=60)
    stuck = sum(not client.ready() for client in waiting)
    recovered = time.monotonic() - back_at
    # Long enough for a ping to each, and the answer.
    readers += [gevent.spawn(figures.guard, "later", keep_reading, client) for client in idle + half]
    gevent.sleep(SETTINGS["cut"]["ping_interval"] + 1)
    figures.pings = sum(client.pings for client in everyone)
    held = server.fds() - base
    network.set_link("down")
    down_at = time.monotonic()
    gevent.killall(readers)
    gone: dict[int, float] = {}
    while (now := time.monotonic() - down_at) < patience + 30:
        left = server.fds() - base
        for number in range(left, held):
            gone.setdefault(number, now)
        if left <= 0:
            break
        gevent.sleep(0.1)
    gevent.sleep(6)
    look = server.look()
    network.set_link("up")
    for client in everyone:
        client.reset()
    with figures.open("/echo") as client:
        figures.echo(client, b"a new one")
        client.close()
    return {
        **figures.told(),
        "stuck": stuck,
        "sessions held": held,
        "s until all talk again": recovered,
        "s until the first is found lost": min(gone.values(), default=None),
        "s until all are found lost": max(gone.values(), default=None),
        "s allowed": patience,
        "fds left": max(0, server.fds() - base),
        "sessions left": look["sessions"],
    }


def keep_reading(figures: Figures, client: Client) -> None:
    """Takes what it is sent."""
    while True:
        client.receive()
        figures.messages += 1


# -- All of it ---------------------------------------------------------------------------------------------------------

TESTS = {"loss": loss, "slow": slow, "cut": cut}
LINKS = {
    "loss": ("--loss", "0.05", "--delay", "0.1", "--jitter", "0.05", "--reorder", "0.1"),
    "slow": ("--rate", "64000", "--delay", "0.02"),
    "cut": ("--delay", "0.01"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    # Often, for more chances to be wrong.
    "loss": {"ping_interval": 5, "timeout": 15},
    # At 64 kbit/s a megabyte takes 131 seconds; the default for a message's arrival is 60.
    "slow": {"ping_interval": 20, "timeout": 15, "message_timeout": None},
    # So that a ping falls into the 10 seconds.
    "cut": {"ping_interval": 6, "timeout": 15},
}


@contextmanager
def link(network: Network, options: tuple[str, ...], told: dict[str, str]) -> Iterator[None]:
    """Carries packets; afterwards ``told`` has what became of them."""
    devices = [str(device) for device in network.devices]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "link.py"), *devices, *options],
        pass_fds=network.devices,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        process.terminate()
        out, _ = process.communicate()
        told["link"] = "; ".join(out.splitlines())


def failures(name: str, figures: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words."""
    told = [f"{name}: {what}" for what in figures["false closes"] + figures["protocol errors"]]
    told += [
        f"{name}: {figures[key]} {key}"
        for key in ("stuck", "fds left", "sessions left", "tracebacks")
        if figures.get(key)
    ]
    if not figures["messages"]:
        told.append(f"{name}: no message came back")
    if "s allowed" in figures:
        late = figures["s until all are found lost"]
        # The schedule has a slot a second.
        if late is None or late > figures["s allowed"] + 2:
            told.append(f"{name}: peers are found lost after {late} s")
    return told


def table(results: dict[str, dict[str, Any]], server: str) -> str:
    """The figures as Markdown."""
    host = machine()
    day = datetime.now(timezone.utc).date()
    lines = [
        f"{server}, geventws {host['geventws']}, Python {host['python']}, {host['cpu']}, {host['cores']} cores, "
        f"Linux {host['kernel']}, {day}",
        "",
        "| test | figure | |",
        "|---|---|---|",
    ]
    for name, figures in results.items():
        for key, value in figures.items():
            shown = len(value) if isinstance(value, list) else value
            lines.append(f"| {name} | {key} | {f'{shown:.2f}' if isinstance(shown, float) else shown} |")
    lines += ["", *(f"- FAILED: {text}" for name, figures in results.items() for text in failures(name, figures))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Runs; 1 where something is not as it must be, 2 where it can't run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tests", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=300, help="of the test loss")
    parser.add_argument("--server", choices=("worker", "standalone"), default="worker")
    parser.add_argument("--out", type=Path, default=Path("soak-network"), help="a folder for logs and figures")
    options = parser.parse_args()
    names = options.tests or list(TESTS)
    if unknown := set(names) - set(TESTS):
        parser.error(f"there is no test {', '.join(unknown)}")
    if lack := missing():
        print(f"network.py can't run: {lack}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = {}
    for name in names:
        folder = options.out.resolve() / name
        with Network() as network:
            server = Server(options.server, network.server, folder, SETTINGS[name])
            told: dict[str, str] = {}
            try:
                with link(network, LINKS[name], told), network.entered():
                    results[name] = TESTS[name](options.seconds, server, network)
            finally:
                server.stop()
            results[name] |= told
        log = server.log.read_text(errors="replace")
        lines = [line for line in log.splitlines() if "close code" not in line]
        results[name] |= {"log lines": len(lines), "tracebacks": log.count(TRACEBACK)}
    text = table(results, options.server)
    (options.out / "network.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "network.md").write_text(text)
    print(text)
    return 1 if any(failures(name, figures) for name, figures in results.items()) else 0


def missing() -> str | None:
    """Why it can't run here."""
    if os.geteuid() != 0:
        return "it needs root, for it makes network namespaces and devices"
    if shutil.which("ip") is None:
        return "it needs the command ip, of iproute2"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "it needs /dev/net/tun, which this kernel or container does not give"
    return None


if __name__ == "__main__":
    sys.exit(main())
