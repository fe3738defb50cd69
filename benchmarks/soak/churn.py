"""The clients of the soak, good and bad, in a process of their own: each connection plays one part, and then ends.

It is told by lines on its standard input what happens to the servers, and writes its counts into a file every few
seconds. ``python churn.py --rate 50 --out FOLDER worker=PORT standalone=PORT``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Client, Closed, Lost, Wrong, frame
from gevent.fileobject import FileObject
from payloads import LARGEST, Payloads, pushed

#: Seconds that a part may take, beyond which it counts as stalled.
PATIENCE = 90.0
#: Seconds that a client which stops reading waits. The server's pings and its patience with them end before.
DEAF = 25.0
#: Seconds after a kill in which a connection that had not yet learned its worker's pid may be lost.
AFTERMATH = 3.0
#: Errors that are written down with their details.
MOST_DETAILS = 500


class Stalled(Exception):
    """What was waited for did not come."""


class Part:
    """What one kind of client does."""

    def __init__(self, weight: float, play: Callable[[Churn, Client, str], None], path: str | None = "/echo") -> None:
        self.weight = weight
        self.play = play
        #: What it opens; None: it does its own handshake.
        self.path = path


class Churn:
    """All clients of one server."""

    def __init__(self, name: str, port: int, rate: float, residents: int, out: Path, seed: int) -> None:
        self.name = name
        self.address = ("127.0.0.1", port)
        self.rate = rate
        self.out = out
        self.random = random.Random(seed)
        self.payloads = Payloads(self.random)
        self.counts: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.open: set[Any] = set()
        self.paused = True
        self.over = False
        #: Workers that were killed or told to stop, and how.
        self.doomed: dict[int, str] = {}
        self.disturbed = -1e9
        self.disturbance = ""
        self._names = list(PARTS)
        self._weights = [part.weight for part in PARTS.values()]
        gevent.spawn(self._spawn)
        for _ in range(residents):
            gevent.spawn(self._reside)

    # -- What happens

    def doom(self, how: str, workers: list[int]) -> None:
        """Notes that these workers are about to end."""
        self.disturbed, self.disturbance = time.monotonic(), how
        self.doomed.update(dict.fromkeys(workers, how))

    def _spawn(self) -> None:
        while not self.over:
            if self.paused:
                gevent.sleep(0.2)
                continue
            gevent.sleep(self.random.expovariate(self.rate))
            name = self.random.choices(self._names, self._weights)[0]
            self.open.add(greenlet := gevent.spawn(self._run, name))
            greenlet.link(self.open.discard)

    def _run(self, name: str) -> None:
        self.parts[name] += 1
        self._guard(name, PATIENCE, self._play, PARTS[name])

    def _guard(self, name: str, patience: float | None, function: Callable[..., None], *arguments: Any) -> None:
        """Plays, and judges how it ended."""
        client: list[Client] = []
        begun = time.monotonic()
        try:
            with gevent.Timeout(patience, Stalled()):
                function(client, *arguments)
        except (Lost, Closed, Wrong, Stalled) as error:
            self._judge(name, client[0] if client else None, error, begun)
        finally:
            for each in client:
                each.socket.close()

    def _judge(self, name: str, client: Client | None, error: Exception, begun: float) -> None:
        worker = client.worker if client is not None else 0
        how = self.doomed.get(worker, "")
        if not worker and time.monotonic() - self.disturbed < AFTERMATH + (time.monotonic() - begun):
            how = self.disturbance
        if how == "kill" and isinstance(error, Lost):
            self.counts["lost in a kill"] += 1
        elif how == "hup" and isinstance(error, Closed) and error.code in (1001, 1012):
            self.counts["closed by a reload"] += 1
        elif how == "hup" and (isinstance(error, Lost) or error.args[1:] == (503,)):
            self.counts["cut short by a reload" if worker else "turned away in a reload"] += 1
            self._detail(name, worker, error)
        else:
            kinds = {Wrong: "wrong", Stalled: "stalled"}
            self.counts[kinds.get(type(error), "unexpected closes")] += 1
            self._detail(name, worker, error)

    def _detail(self, name: str, worker: int, error: Exception) -> None:
        self.counts["details"] += 1
        if self.counts["details"] <= MOST_DETAILS:
            told = f"{type(error).__name__}{error.args!r}"
            line = {"time": time.time(), "server": self.name, "part": name, "worker": worker, "error": told}
            with (self.out / "errors.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _play(self, client: list[Client], part: Part) -> None:
        self.counts["connects"] += 1
        client.append(Client(self.address, PATIENCE, 8192 if part.play in (stop_reading, read_slowly) else None))
        if part.path is not None:
            client[0].open(part.path, deflate=part.path == "/deflate")
            self.counts["sessions"] += 1
        part.play(self, client[0], part.path or "")

    def _reside(self) -> None:
        """A client that stays, and comes back when it is cut off; it goes on while the others pause."""
        while not self.over:
            self._guard("resident", None, self._stay)
            gevent.sleep(self.random.random())

    def _stay(self, client: list[Client]) -> None:
        path = self.random.choice(("/echo", "/deflate"))
        client.append(Client(self.address, PATIENCE))
        client[0].open(path, deflate=path == "/deflate")
        self.counts["connects"] += 1
        self.counts["sessions"] += 1
        while not self.over:
            self.echo(client[0], size=self.random.randrange(2048), patience=PATIENCE)
            gevent.sleep(self.random.uniform(1, 4))
        client[0].close()

    # -- What parts are made of

    def echo(self, client: Client, size: int | None = None, fragments: int = 1, patience: float | None = None) -> None:
        """Has one message echoed."""
        message, text = self.payloads.message(size)
        begun = time.monotonic()
        with gevent.Timeout(patience, Stalled()):
            client.send(client.encode(message, text, fragments))
            self.check(client, message, text)
        if len(message) < 4096:
            self.latencies.append(time.monotonic() - begun)

    def check(self, client: Client, message: bytes, text: bool | None) -> None:
        """Receives a message, which must be this one."""
        received, kind = client.receive()
        if received != message or (text is not None and kind != text):
            self.counts["wrong echoes"] += 1
            raise Wrong(f"{len(received)} bytes for {len(message)}")
        self.counts["messages"] += 1
        self.counts["bytes"] += len(message)

    def snapshot(self) -> dict[str, Any]:
        """The counts so far, and the percentiles of the small echoes since the last call."""
        latencies, self.latencies = sorted(self.latencies), []
        result: dict[str, Any] = {"counts": dict(self.counts), "parts": dict(self.parts), "open": len(self.open)}
        if latencies:
            result["p50_ms"] = latencies[len(latencies) // 2] * 1000
            result["p99_ms"] = latencies[int(len(latencies) * 0.99)] * 1000
        return result


# -- The parts ---------------------------------------------------------------------------------------------------------


def echo(churn: Churn, client: Client, path: str) -> None:
    """A good client: some messages, whole or in fragments, and a clean close by one side or the other."""
    for _ in range(churn.random.randint(1, 6)):
        churn.echo(client, fragments=churn.random.choice((1, 1, 1, 2, 5)))
    client.close()


def pipeline(churn: Churn, client: Client, path: str) -> None:
    """Sends many messages, then looks at the answers."""
    messages = [churn.payloads.message(churn.random.randrange(2000)) for _ in range(churn.random.randint(2, 25))]
    client.send(b"".join(client.encode(*message) for message in messages))
    for message in messages:
        churn.check(client, *message)
    client.close(4000)


def pushed_to(churn: Churn, client: Client, path: str) -> None:
    """Is sent messages, and then a Close."""
    messages, size = churn.random.randint(1, 20), churn.payloads.size()
    client.open(f"/push?messages={messages}&size={size}")
    for number in range(messages):
        churn.check(client, pushed(number, size), False)
    client.expect_close(1000)


def reset_within_frame(churn: Churn, client: Client, path: str) -> None:
    """RST in the middle of a frame, or of a handshake."""
    if churn.random.random() < 0.7:
        client.open(churn.random.choice(("/echo", "/raw")))
        churn.echo(client, size=100)
        data = frame(BINARY, bytes(churn.random.randrange(1, 100_000)))
    else:
        data = b"GET /echo HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    client.send(data[: churn.random.randrange(1, len(data))])
    gevent.sleep(churn.random.random() * 0.05)
    client.reset()


def reset_while_sent_to(churn: Churn, client: Client, path: str) -> None:
    """RST while the server sends."""
    client.open("/push?messages=1000000000&size=30000")
    for number in range(churn.random.randrange(5)):
        churn.check(client, pushed(number, 30000), False)
    client.reset()


def half_close(churn: Churn, client: Client, path: str) -> None:
    """Ends its output behind a message, whose echo must still come whole."""
    churn.echo(client, size=10)
    message, text = churn.payloads.message()
    client.send(client.encode(message, text))
    client.half_close()
    churn.check(client, message, text)
    try:
        client.receive()
    except (Lost, Closed):
        return
    raise Wrong("a message behind the last")


def stop_reading(churn: Churn, client: Client, path: str) -> None:
    """Stops reading for good; the server must end it."""
    client.open("/push?messages=1000000000&size=60000")
    churn.check(client, pushed(0, 60000), False)
    gevent.sleep(DEAF)
    # What the kernels hold still comes, and then the end.
    try:
        for _ in range(1000):
            client.exactly(60000)
    except Lost:
        return
    raise Wrong(f"a peer that does not read is kept for {DEAF:g} s")


def read_slowly(churn: Churn, client: Client, path: str) -> None:
    """Stops reading for some seconds, and then wants everything."""
    client.open("/push?messages=40&size=50000")
    gevent.sleep(churn.random.uniform(1, 4))
    for number in range(40):
        churn.check(client, pushed(number, 50000), False)
    client.expect_close(1000)


def flood_with_pings(churn: Churn, client: Client, path: str) -> None:
    """Many pings; the last must be answered, and the answers must be in order."""
    payloads = [b"%08d" % number * churn.random.choice((1, 15)) for number in range(1000)]
    sender = gevent.spawn(client.send, b"".join(frame(PING, payload) for payload in payloads))
    position = -1
    while position < len(payloads) - 1:
        first, payload = client.receive_frame()
        if first == 0x80 | PING:
            continue
        if first != 0x80 | PONG or (number := int(payload[:8])) <= position or payloads[number] != payload:
            raise Wrong(f"{first:#x} with {payload!r} behind ping {position}")
        position = number
        churn.counts["pongs"] += 1
    sender.get()
    churn.echo(client, size=20)
    client.close()


def _close(payload: bytes) -> bytes:
    return frame(CLOSE, payload)


#: What breaks the protocol, and the codes that may answer it.
VIOLATIONS: list[tuple[bytes, tuple[int, ...]]] = [
    (frame(TEXT, b"unmasked", mask=False), (1002,)),
    (frame(TEXT, b"rsv", rsv=4), (1002,)),
    (frame(TEXT, b"rsv", rsv=1), (1002,)),
    (frame(0x3, b"opcode"), (1002,)),
    (frame(0xB, b"opcode"), (1002,)),
    (frame(PING, b"fragment", fin=False), (1002,)),
    (frame(PING, bytes(126)), (1002,)),
    (frame(CONTINUATION, b"of nothing"), (1002,)),
    (frame(TEXT, b"begun", fin=False) + frame(TEXT, b"again"), (1002,)),
    (b"\x82\xfe\x00\x05" + bytes(9), (1002,)),
    (b"\x82\xff" + b"\xff" * 8 + bytes(4), (1002, 1009)),
    (b"\x82\xff" + (LARGEST + 1).to_bytes(8, "big") + bytes(40), (1009,)),
    (frame(BINARY, bytes(LARGEST // 2), fin=False) + frame(CONTINUATION, bytes(LARGEST // 2 + 1)), (1009,)),
    (frame(TEXT, b"\xce\xba\xed\xa0\x80"), (1007,)),
    (frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"\x98"), (1007,)),
    (_close(b"\x03"), (1002,)),
    (_close(b"\x03\xed"), (1002,)),
    (_close(b"\x03\xe8\xff"), (1002, 1007)),
    (frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 1100, (1008,)),
]


def violate(churn: Churn, client: Client, path: str) -> None:
    """Breaks the protocol, behind a good message."""
    data, codes = churn.random.choice(VIOLATIONS)
    message, text = churn.payloads.message(50)
    client.send(client.encode(message, text) + data)
    churn.check(client, message, text)
    client.expect_close(*codes)


def violate_deflate(churn: Churn, client: Client, path: str) -> None:
    """Sends what is no deflate stream, or more than a message may have."""
    churn.echo(client, size=2000)
    if churn.random.random() < 0.5:
        client.send(frame(BINARY, b"\xff" * 50, rsv=4))
        client.expect_close(1007)
    else:
        client.send(client.encode(bytes(LARGEST + 1), False))
        client.expect_close(1009)


def _request(line: str, *fields: str, leave_out: str = "") -> bytes:
    sound = {
        "Host": "soak",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    lines = [f"{name}: {value}" for name, value in sound.items() if name != leave_out]
    return "\r\n".join([line, *lines, *fields, "", ""]).encode("latin-1")


_ASK = "GET /echo HTTP/1.1"
#: Handshakes that must fail, and the statuses that may answer them.
BAD_HANDSHAKES: list[tuple[bytes, tuple[int, ...]]] = [
    (_request(_ASK, "Sec-WebSocket-Version: 12", leave_out="Sec-WebSocket-Version"), (400, 426)),
    (_request(_ASK, leave_out="Sec-WebSocket-Key"), (400,)),
    (_request(_ASK, "Sec-WebSocket-Key: c2hvcnQ=", leave_out="Sec-WebSocket-Key"), (400,)),
    (_request(_ASK, "Sec-WebSocket-Key: " + "A" * 3000, leave_out="Sec-WebSocket-Key"), (400,)),
    (_request(_ASK, "Origin: https://evil.example"), (403,)),
    (_request(_ASK, leave_out="Host"), (400,)),
    (_request("GET /nowhere HTTP/1.1"), (404, 200)),
    (_request("POST /echo HTTP/1.1"), (405, 400)),
    (_request(_ASK, *(f"X-{number}: x" for number in range(200))), (400, 431)),
    (_request(_ASK, "X-Long: " + "x" * 100_000), (400, 431)),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", (400,)),
    (b"GET /\x1b[2J\xff\r\n" * 30 + b"\r\n", (400,)),
]


def fail_handshake(churn: Churn, client: Client, path: str) -> None:
    """Asks for a WebSocket in a way that must be refused, with another request behind it that must not be served."""
    data, statuses = churn.random.choice(BAD_HANDSHAKES)
    try:
        client.socket.sendall(data + b"GET /second HTTP/1.1\r\nHost: soak\r\n\r\n")
    except OSError:
        # It may be refused, and the connection reset, before all of it was taken.
        return
    try:
        status, head = client.response()
    except Lost as error:
        if "reset" in str(error):
            return
        raise
    if status not in statuses:
        raise Wrong(f"status {status} for {data[:60]!r}", status)
    with gevent.Timeout(20, Wrong("a refused handshake's connection stays")):
        client.exactly(int(head.get("content-length", 0)))
        client.expect_end()


def say_nothing(churn: Churn, client: Client, path: str) -> None:
    """Connects, and goes away; or says a bit, and goes away."""
    client.send(churn.random.choice((b"", b"G", _request(_ASK)[:70])))
    gevent.sleep(churn.random.uniform(0, 2))


def go_away(churn: Churn, client: Client, path: str) -> None:
    """A client that goes without a Close, in silence."""
    churn.echo(client)


def get_page(churn: Churn, client: Client, path: str) -> None:
    """Plain HTTP."""
    client.send(b"GET / HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
    status, head = client.response()
    if status != 200:
        raise Wrong(f"status {status} for a page", status)
    json.loads(client.exactly(int(head["content-length"])))
    client.expect_end()


PARTS = {
    "echo": Part(24, echo),
    "echo, raw": Part(10, echo, "/raw"),
    "echo, deflate": Part(10, echo, "/deflate"),
    "pipeline": Part(4, pipeline),
    "pipeline, deflate": Part(2, pipeline, "/deflate"),
    "push": Part(8, pushed_to, None),
    "RST within a frame": Part(8, reset_within_frame, None),
    "RST while sent to": Part(4, reset_while_sent_to, None),
    "half-close": Part(6, half_close),
    "half-close, deflate": Part(1, half_close, "/deflate"),
    "stops reading": Part(0.5, stop_reading, None),
    "reads slowly": Part(1, read_slowly, None),
    "ping flood": Part(1, flood_with_pings),
    "violation": Part(8, violate),
    "violation, deflate": Part(1, violate_deflate, "/deflate"),
    "bad handshake": Part(8, fail_handshake, None),
    "says nothing": Part(3, say_nothing, None),
    "goes away": Part(3, go_away),
    "page": Part(0.3, get_page, None),
}


def _obey(churns: dict[str, Churn]) -> None:
    """Obeys lines: ``kill PID``, ``hup PID...``, ``pause``, ``go``, ``stop``; answers when it is so."""
    for line in FileObject(sys.stdin, "r", close=False):
        order, *pids = line.split()
        for churn in churns.values():
            if order in ("kill", "hup") and churn.name == "worker":
                churn.doom(order, [int(pid) for pid in pids])
            elif order in ("pause", "go"):
                churn.paused = order == "pause"
            elif order == "stop":
                churn.over = True
        if order == "pause":
            while any(churn.open for churn in churns.values()):
                gevent.sleep(0.1)
        print("idle" if order == "pause" else order, flush=True)
        if order == "stop":
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="+", help="NAME=PORT")
    parser.add_argument("--rate", type=float, default=50, help="connects a second to each server")
    parser.add_argument("--residents", type=int, default=20, help="connections to each server that stay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.nice(5)
    churns = {}
    for number, server in enumerate(options.servers):
        name, port = server.split("=")
        seed = options.seed * 1000 + number
        churns[name] = Churn(name, int(port), options.rate, options.residents, options.out, seed)
    orders = gevent.spawn(_obey, churns)
    draft, target = options.out / "clients.new", options.out / "clients.json"
    while not orders.ready():
        orders.join(5)
        draft.write_text(json.dumps({name: churn.snapshot() for name, churn in churns.items()}))
        draft.replace(target)


if __name__ == "__main__":
    main()
