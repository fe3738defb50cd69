"""Honest clients in a process of their own: each echoes at a steady rate, and what they see is told at the end.

The process is ``python -m tests.faults.witness HOST PORT CLIENTS RATE SIZE PATH PROBES``: it prints "ready" when all
are connected, goes on until its standard input ends, and then prints what it saw as one line of JSON.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Witness"]

ROOT = Path(__file__).parent.parent.parent
#: Seconds that an echo may be out before its client gives up, and that the clients have to connect.
PATIENCE = 10.0
KEY = b"\x37\xfa\x21\x3d"


class Witness:
    """Honest clients, as long as a ``with`` block; they say "ready" before it begins.

    After the block ``p50_ms`` and ``p99_ms`` tell how long echoes took, ``messages`` how many there were, and
    ``errors`` what went wrong. With ``probes`` so many new connections a second ask for /health in turn;
    ``probe_p99_ms`` tells how long they took from the connect to the answer, and ``probed`` how many there were.
    """

    def __init__(
        self,
        address: tuple[str, int],
        clients: int = 50,
        rate: float = 20,
        size: int = 128,
        path: str = "/echo",
        probes: float = 0,
    ) -> None:
        self._arguments = [*map(str, address), str(clients), str(rate), str(size), path, str(probes)]
        self.p50_ms = self.p99_ms = self.max_ms = self.probe_p99_ms = 0.0
        self.messages = self.probed = 0
        self.errors: list[str] = []

    def __enter__(self) -> Witness:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.witness", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != b"ready\n":
            self._end()
            raise AssertionError(f"the honest clients could not connect: {line.decode()}")
        self._began = time.monotonic()
        return self

    def wait(self, seconds: float) -> None:
        """Lets the clients go on until they have done so for ``seconds`` in all."""
        time.sleep(max(0.0, self._began + seconds - time.monotonic()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = self._end()
        if not told and error is not None:
            return
        seen = json.loads(told)
        self.errors = seen["errors"]
        self.messages = seen["messages"]
        self.p50_ms, self.p99_ms, self.max_ms = seen["p50_ms"], seen["p99_ms"], seen["max_ms"]
        self.probe_p99_ms, self.probed = seen["probe_p99_ms"], seen["probed"]

    def _end(self) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            told = self._process.stdout.read()
            self._process.wait(2 * PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
        return told


class _Client:
    """One honest client."""

    def __init__(self, address: tuple[str, int], path: str, size: int, number: int) -> None:
        self.socket = socket.create_connection(address, PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self._size = size
        self._count = 0
        self._buffer = bytearray()
        #: When what is not yet back was sent, with what is to come back.
        self.out: list[tuple[float, bytes]] = []
        self.socket.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            piece = self.socket.recv(4096)
            if not piece:
                raise ConnectionError(f"ended in the handshake, after {bytes(self._buffer)!r}")
            self._buffer += piece
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(f"got {bytes(head)!r}")
        self._buffer = rest
        self.socket.setblocking(False)

    def send(self) -> None:
        """Sends a message that no other client sends, and that this one sends only once."""
        self._count += 1
        payload = b"%d:%d:" % (self.number, self._count)
        payload += b"." * (self._size - len(payload))
        head = (
            bytes((0x82, 0x80 | len(payload))) if len(payload) < 126 else b"\x82\xfe" + len(payload).to_bytes(2, "big")
        )
        mask = KEY * (len(payload) // 4 + 1)
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(mask[: len(payload)], "big")).to_bytes(
            len(payload), "big"
        )
        self.out.append((time.monotonic(), payload))
        if self.socket.send(head + KEY + masked) != len(head) + 4 + len(payload):
            raise ConnectionError("the server reads too slowly")

    def receive(self) -> list[float]:
        """Reads what is here; gives the seconds that each echo took."""
        piece = self.socket.recv(65536)
        now = time.monotonic()
        if not piece:
            raise ConnectionError("the server ended the connection")
        self._buffer += piece
        took = []
        while len(self._buffer) >= 2:
            first, length, start = self._buffer[0], self._buffer[1], 2
            if length == 126:
                length, start = int.from_bytes(self._buffer[2:4], "big"), 4
            if len(self._buffer) < max(start, 2) + length:
                break
            payload = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            if first == 0x89:
                # No payload of a ping is over 125 bytes, and a mask of zeros leaves it as it is.
                self.socket.send(bytes((0x8A, 0x80 | length)) + b"\0\0\0\0" + payload)
            elif first == 0x82 and self.out and payload == self.out[0][1]:
                took.append(now - self.out.pop(0)[0])
            else:
                raise ConnectionError(f"got {first:#x} {payload[:60]!r}, and waited for {len(self.out)} echoes")
        return took


class _Probes(threading.Thread):
    """New connections that ask for a page, one after the other."""

    def __init__(self, address: tuple[str, int], rate: float) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._rate = rate
        self._over = threading.Event()
        self.took: list[float] = []
        self.errors: list[str] = []

    def run(self) -> None:
        while not self._over.wait(1 / self._rate):
            began = time.monotonic()
            answer = b""
            try:
                with socket.create_connection(self._address, PATIENCE) as probe:
                    probe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    while not answer.endswith(b"ok") and (piece := probe.recv(4096)):
                        answer += piece
            except OSError as error:
                self.errors.append(f"a probe: {error}")
                continue
            if answer.startswith(b"HTTP/1.1 200 "):
                self.took.append(time.monotonic() - began)
            else:
                self.errors.append(f"a probe got {answer[:60]!r}")

    def end(self) -> None:
        """Waits for the last one."""
        self._over.set()
        self.join(2 * PATIENCE)


def _run(address: tuple[str, int], number: int, rate: float, size: int, path: str, probe_rate: float) -> dict[str, Any]:
    clients = {}
    for index in range(number):
        client = _Client(address, path, size, index)
        clients[client.socket.fileno()] = client
    probes = _Probes(address, probe_rate) if probe_rate else None
    if probes is not None:
        probes.start()
    print("ready", flush=True)
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    for descriptor in clients:
        poll.register(descriptor, select.EPOLLIN)
    took: list[float] = []
    errors: list[str] = []
    began = time.monotonic()
    # Spread over the period, so that no two send at once.
    due = [(began + index / (rate * number), descriptor) for index, descriptor in enumerate(clients)]
    ending: float | None = None

    def lost(descriptor: int, error: str) -> None:
        client = clients.pop(descriptor)
        errors.append(f"{time.monotonic() - began:.3f} s: client {client.number}: {error}")
        poll.unregister(descriptor)
        client.socket.close()

    while clients:
        now = time.monotonic()
        if ending is not None and (now > ending or not any(client.out for client in clients.values())):
            break
        timeout = 0.05 if ending is not None else max(0.0, due[0][0] - now)
        for descriptor, _ in poll.poll(timeout):
            if descriptor == 0:
                os.read(0, 1)
                poll.unregister(0)
                ending = time.monotonic() + PATIENCE
                continue
            try:
                took += clients[descriptor].receive()
            except OSError as error:
                lost(descriptor, str(error))
        now = time.monotonic()
        while ending is None and due and due[0][0] <= now:
            when, descriptor = heapq.heappop(due)
            if descriptor not in clients:
                continue
            # What a busy machine made late is not made up for by a burst.
            heapq.heappush(due, (max(when + 1 / rate, now), descriptor))
            client = clients[descriptor]
            try:
                if client.out and now - client.out[0][0] > PATIENCE:
                    raise ConnectionError(f"no echo within {PATIENCE:g} s")
                client.send()
            except OSError as error:
                lost(descriptor, str(error))
    for descriptor, client in list(clients.items()):
        if client.out:
            lost(descriptor, f"no echo of {len(client.out)} messages")
        else:
            client.socket.close()
    probed: list[float] = []
    if probes is not None:
        probes.end()
        errors += probes.errors
        probed = probes.took

    def percentile(times: list[float], part: float) -> float:
        return sorted(times)[min(len(times) - 1, int(len(times) * part))] * 1000 if times else float("inf")

    return {
        "messages": len(took),
        "errors": errors,
        "p50_ms": percentile(took, 0.5),
        "p99_ms": percentile(took, 0.99),
        "max_ms": percentile(took, 1),
        "probed": len(probed),
        "probe_p99_ms": percentile(probed, 0.99),
    }


if __name__ == "__main__":
    _host, _port, _clients, _rate, _size, _path, _probes = sys.argv[1:]
    try:
        print(json.dumps(_run((_host, int(_port)), int(_clients), float(_rate), int(_size), _path, float(_probes))))
    except OSError as failure:
        print(f"{type(failure).__name__}: {failure}")
