"""Clients of topics that know of each message whom it reached: subscribers, and a publisher of each topic."""

from __future__ import annotations

import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

__all__ = ["Crowd", "Publisher", "Subscriber"]

_PATIENCE = 30.0
_SIZE = 125
_FILLER = "abcdefghijklmnopqrstuvwxyz" * 5


class _Client:
    """One connection; its handshake is over and it has been told of its process when this is made."""

    def __init__(self, port: int, topic: int, query: str) -> None:
        self.topic = topic
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(
            f"GET /topic?topic=room-{topic}{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "\r\n".encode()
        )
        self._input = bytearray()
        #: What came before it was told of its process, and was read with that.
        self.early: list[bytes] = []
        self.alive = True
        self.process = self._greeting()
        self.sock.setblocking(False)

    def _greeting(self) -> int:
        """The process that this is connected to."""
        while b"\r\n\r\n" not in self._input:
            self._input += self._read()
        head, _, rest = self._input.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"refused: {head[:80]!r}")
        self._input = bytearray(rest)
        while True:
            self.early += self._texts()
            for text in self.early:
                if text.startswith(b"ready "):
                    self.early.remove(text)
                    return int(text[6:])
            self._input += self._read()

    def _read(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed in the handshake")
        return data

    def receive(self) -> list[bytes]:
        """The text messages that are there. A connection that ended is not alive afterwards."""
        try:
            data = self.sock.recv(262144)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.alive = False
            return []
        self._input += data
        return self._texts()

    def _texts(self) -> list[bytes]:
        """Takes the text messages out of the input."""
        used, data, texts = 0, self._input, []
        while len(data) - used >= 2:
            length, head = data[used + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[used + 2 : used + 4], "big"), 4
            end = used + head + length
            if len(data) < end:
                break
            first, payload = data[used], bytes(data[used + head : end])
            used = end
            if first == 0x81:
                texts.append(payload)
            elif first == 0x89:
                self.send(payload, 0x8A)
            elif first == 0x88:
                self.alive = False
        del data[:used]
        return texts

    def send(self, payload: bytes, first: int = 0x81) -> None:
        """Sends a short frame. A connection that ended is not alive afterwards; a full one raises."""
        try:
            # The mask is zero: the masked payload is the payload.
            self.sock.sendall(bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload)
        except BlockingIOError:
            raise
        except OSError:
            self.alive = False


class Subscriber(_Client):
    """A subscriber of one topic, and what it got."""

    def __init__(self, port: int, topic: int) -> None:
        super().__init__(port, topic, "")
        #: How many were published when it was subscribed: nothing of these is owed to it.
        self.since = 0
        self.got: set[int] = set()
        self.twice = 0
        self.altered = 0
        #: What is no message of the topic.
        self.other: list[bytes] = []


class Publisher(_Client):
    """The publisher of one topic. Its messages are numbered from 0."""

    def __init__(self, port: int, topic: int) -> None:
        super().__init__(port, topic, "&publish=1")
        self.published = 0

    def publish(self) -> None:
        """Sends the next message."""
        self.send(_message(self.topic, self.published))
        if self.alive:
            self.published += 1


@dataclass
class Crowd:
    """All clients of one server. One thread."""

    port: int
    topics: int
    subscribers: list[Subscriber] = field(default_factory=list)
    publishers: list[Publisher] = field(default_factory=list)
    #: When a message came first, since `listen_anew`, from another process, by process and topic.
    first: dict[tuple[int, int], float] = field(default_factory=dict)
    #: Those whose connection ended, with the time.
    ended: list[tuple[_Client, float]] = field(default_factory=list)
    #: Seconds for which it has published.
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        #: The topic that is published on next, and when.
        self._next = 0
        self._due = 0.0

    def open(self, subscribers: int) -> None:
        """Opens so many subscribers, spread over the topics, and a publisher of each topic."""
        # Many at a time: of connections that come one after the other, a worker that is awake takes most.
        with ThreadPoolExecutor(32) as pool:
            self.publishers += pool.map(partial(Publisher, self.port), range(self.topics))
            topics = [number % self.topics for number in range(subscribers)]
            self.subscribers += pool.map(partial(Subscriber, self.port), topics)
        for client in (*self.publishers, *self.subscribers):
            self._selector.register(client.sock, selectors.EVENT_READ, client)

    def subscribe(self, topic: int) -> Subscriber:
        """Opens one more subscriber, to which everything is owed that is published after this returns."""
        subscriber = Subscriber(self.port, topic)
        subscriber.since = self.publishers[topic].published
        self.subscribers.append(subscriber)
        self._selector.register(subscriber.sock, selectors.EVENT_READ, subscriber)
        self._take(subscriber, subscriber.early)
        return subscriber

    def listen_anew(self) -> None:
        """Forgets when messages came first."""
        self.first.clear()

    def run(self, seconds: float, rate: float) -> None:
        """Publishes so many messages a second, to each topic in turn, and takes what comes.

        What was due between two runs, in half a second at most, is made up for.
        """
        start = time.monotonic()
        due = max(self._due or start, start - 0.5)
        while (now := time.monotonic()) < start + seconds:
            while due <= now:
                publisher = self.publishers[self._next]
                if publisher.alive:
                    publisher.publish()
                self._next = (self._next + 1) % self.topics
                due += 1 / rate
            self.turn(0.0005)
        self._due = due
        self.seconds += time.monotonic() - start

    def run_until_quiet(self, seconds: float) -> None:
        """Takes what comes until nothing does for so long."""
        deadline = time.monotonic() + _PATIENCE
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < min(deadline, quiet_since + seconds):
            if self.turn(0.05):
                quiet_since = now

    def turn(self, seconds: float) -> int:
        """Waits so long at most for something to come, and takes it; gives the number of messages."""
        taken = 0
        for key, _ in self._selector.select(seconds):
            client: _Client = key.data
            texts = client.receive()
            taken += len(texts)
            if isinstance(client, Subscriber):
                self._take(client, texts)
            if not client.alive:
                self._selector.unregister(client.sock)
                client.sock.close()
                self.ended.append((client, time.monotonic()))
        return taken

    def _take(self, subscriber: Subscriber, texts: list[bytes]) -> None:
        for text in texts:
            number = _number(subscriber.topic, text)
            if number is None:
                subscriber.other.append(text)
                subscriber.altered += not text.startswith(b"{")
            elif number in subscriber.got:
                subscriber.twice += 1
            else:
                subscriber.got.add(number)
                place = (subscriber.process, subscriber.topic)
                if place not in self.first and self.publishers[subscriber.topic].process != subscriber.process:
                    self.first[place] = time.monotonic()

    def ask(self, subscriber: Subscriber) -> bytes:
        """What its process answers to a question. Raises ``ConnectionError``."""
        subscriber.other.clear()
        subscriber.send(b"statistics")
        deadline = time.monotonic() + _PATIENCE
        while not subscriber.other:
            if not subscriber.alive or time.monotonic() > deadline:
                raise ConnectionError(f"process {subscriber.process} does not answer")
            self.turn(0.05)
        return subscriber.other.pop()

    def close(self) -> None:
        """Ends all connections."""
        for client in (*self.subscribers, *self.publishers):
            client.sock.close()
        self._selector.close()


def _message(topic: int, number: int) -> bytes:
    return f"{topic:06x} {number:012x} {_FILLER}"[:_SIZE].encode()


def _number(topic: int, text: bytes) -> int | None:
    """The number of a message of a topic; None where it is none, or not as it was published."""
    try:
        number = int(text[7:19], 16)
    except ValueError:
        return None
    return number if text == _message(topic, number) else None
