"""Topics over real servers of Redis and Valkey: what goes from process to process, and what is told of the rest."""

from __future__ import annotations

import ast
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

import gevent
from gevent.event import Event

import geventws
from geventws.errors import UsageError
from geventws.topics import redis_presence
from geventws.topics.nouns import Member, Position
from geventws.topics.redis_broker import RedisBroker
from geventws.topics.wire import Names, encode_plain, encode_source
from tests import redis_server
from tests.patched import PatchedProcess, end_process, patched
from tests.peer import PATIENCE, wait_until
from tests.redis_server import RedisServer, any_kind, cuttable, kinds, running

pytestmark = pytest.mark.skipif(not redis_server.SERVERS, reason=redis_server.NO_SERVER)

on_each_kind = pytest.mark.parametrize("kind", kinds())


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    end_process(__name__)


# -- What the tests use, in the patched processes
# ---------------------------------------------------------------------------------------------------------------------

_servers: dict[str, RedisServer] = {}
_stack = ExitStack()


def shared_server(kind: str) -> RedisServer:
    """A server that all tests share, emptied."""
    if kind not in _servers:
        import atexit

        _servers[kind] = _stack.enter_context(running(kind))
        atexit.register(_stack.close)
    with _servers[kind].client() as client:
        client.flushall()
    return _servers[kind]


class Recorder:
    """A receiver that notes all it gets."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, bytes, Position | None]] = []
        self.changes: list[tuple[str, str, str]] = []
        self.gaps: list[tuple[str, int | None]] = []
        #: Seconds that each message takes at most.
        self.holds = 0.0
        self._going_on = Event()

    def message(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        self.messages.append((topic, opcode, payload, position))
        if self.holds:
            self._going_on.wait(self.holds)

    def go_on(self) -> None:
        """Ends what `holds` has begun."""
        self.holds = 0.0
        self._going_on.set()

    def presence(self, topic: str, event: str, member: Member) -> None:
        self.changes.append((topic, event, member.name))

    def gap(self, topic: str, lost: int | None) -> None:
        self.gaps.append((topic, lost))

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for name, _, payload, _ in self.messages if name == topic]


def sizes(topic: str) -> int:
    """The history of a topic, from its name: "h100..." keeps 100 messages."""
    found = re.match(r"h([0-9]+)", topic)
    return int(found[1]) if found else 0


def redis_broker(url: Any, receiver: Any, namespace: str = "test", **options: Any) -> RedisBroker:
    """A broker that keeps histories of the topics that `sizes` says."""
    defaults = {"max_message_size": None, "history": sizes, "history_seconds": 3600.0}
    return RedisBroker(url, Names(namespace), receiver, **{**defaults, **options})


@contextmanager
def brokers(url: str, count: int = 1, **options: Any) -> Iterator[list[Any]]:
    """What runs here of brokers, and their receivers, in turn."""
    made: list[Any] = []
    with ExitStack() as stack:
        for _ in range(count):
            receiver = Recorder()
            broker = redis_broker(url, receiver, **options)
            stack.callback(broker.close)
            made += [broker.here(), receiver]
        yield made


@contextmanager
def logged() -> Iterator[list[str]]:
    """What geventws logs."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.levelno == logging.WARNING, record.getMessage()
            lines.append(record.getMessage())

    log, handler = logging.getLogger("geventws"), Handler()
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def numbers(payloads: list[bytes]) -> list[int]:
    return [int(payload) for payload in payloads]


def entry(sequence: int, payload: bytes) -> dict[Any, Any]:
    """An entry of a history, of a process that is none."""
    return {"k": "t", "s": encode_source(b"8 bytes.", sequence), "p": payload}


_kept: dict[str, Any] = {}


def publish_numbers(url: str, topics: list[str], count: int) -> None:
    """In another process: publishes numbers to each topic."""
    with brokers(url) as (broker, _):
        for number in range(count):
            for topic in topics:
                assert broker.publish(topic, 1, b"%d" % number)
        broker.flush(20)


def open_broker(url: str, topics: list[str], lease: int = 4000) -> str:
    """In another process: has a broker that stays, and gives its worker's name."""
    set_lease(lease)
    receiver = Recorder()
    redis = redis_broker(url, receiver)
    broker = redis.here()
    _kept.update(redis=redis, broker=broker, receiver=receiver)
    for topic in topics:
        broker.subscribe(topic)
    return broker.worker_id


def set_lease(milliseconds: int) -> None:
    """How long the leases of this process run."""
    redis_presence.LEASE_MILLISECONDS = b"%d" % milliseconds
    redis_presence.HEARTBEAT_SECONDS = milliseconds / 4000


def join(topic: str, name: str) -> None:
    """In another process: a member joins."""
    _kept["broker"].join(topic, Member(name, f"{_kept['broker'].worker_id}.{name}"))


def leave(topic: str, name: str) -> None:
    """In another process: a member leaves."""
    _kept["broker"].leave(topic, Member(name, f"{_kept['broker'].worker_id}.{name}"))


def member_names(topic: str) -> list[str]:
    """In another process: who is on a topic."""
    return [member.name for member in _kept["broker"].members(topic)]


def changes() -> list[list[str]]:
    """In another process: the members that came and left."""
    return [list(change) for change in _kept["receiver"].changes]


def gaps() -> list[list[Any]]:
    """In another process: what was told of gaps."""
    return [list(gap) for gap in _kept["receiver"].gaps]


def end() -> None:
    """In another process: ends it at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(process: PatchedProcess, function: Callable[..., Any], *arguments: Any, until: Any) -> None:
    """Calls a function in a process until it gives a value."""
    wait_until(lambda: process.call(function, *arguments) == until)


# -- Messages
# ---------------------------------------------------------------------------------------------------------------------


@on_each_kind
@patched
def test_messages_of_another_process_arrive_in_order_each_once(kind: str) -> None:
    url = shared_server(kind).url
    with brokers(url) as (broker, receiver), PatchedProcess() as other:
        assert broker.subscribe("a") is None
        position = broker.subscribe("h5000")
        assert position.offset == 0
        broker.subscribe("b")
        other.begin(publish_numbers, url, ["a", "h5000", "elsewhere"], 1000)
        for number in range(1000):
            assert broker.publish("b", 2, b"%d" % number)
            assert broker.publish("h5000", 2, b"own")
            if number % 100 == 0:
                gevent.sleep()
        broker.flush(20)
        other.result()
        wait_until(lambda: len(receiver.messages) == 3000)
        assert numbers(receiver.payloads("a")) == list(range(1000))
        # What this process publishes comes back with a position, and else not at all.
        assert receiver.payloads("b") == []
        history = [message for message in receiver.messages if message[0] == "h5000"]
        assert [message[3] for message in history] == [Position(position.epoch, n) for n in range(1, 2001)]
        assert numbers([message[2] for message in history if message[1] == 1]) == list(range(1000))
        assert [message[1] for message in history].count(2) == 1000
        statistics = broker.statistics
        assert (statistics.received, statistics.lost, statistics.gaps, statistics.unsent) == (3000, 0, 0, 0)
        # A second flush has nothing to wait for, and what is published to nobody is no error.
        broker.flush()


@patched
def test_topics_of_any_name_are_kept_apart() -> None:
    url = shared_server(any_kind()).url
    topics = ["*", "x*", "x", "?", "[a]", "é" * 127 + "x", "\r\n", "a\r\nSUBSCRIBE x", "\0", "{}", "}", "{", "%7D", "%"]
    topics += ["a:b", "a", "b", "workers", "worker:1", " ", "{x}", "x}:log"]
    with (
        brokers(url, namespace="a") as (one, here),
        brokers(url, namespace="a.b") as (other, there),
        brokers(url, namespace="a") as (broker, _),
    ):
        for topic in topics:
            one.subscribe(topic)
            other.subscribe(topic)
        for topic in topics:
            broker.publish(topic, 1, topic.encode())
            broker.publish("-" + topic[:100], 1, b"of nobody")
        broker.flush(20)
        wait_until(lambda: len(here.messages) >= len(topics))
        gevent.sleep(0.05)
        assert [(message[0], message[2].decode()) for message in here.messages] == [(topic, topic) for topic in topics]
        assert there.messages == []
        for topic in ("", "x" * 256):
            with pytest.raises(ValueError, match="topic must have 1 to 255 bytes in UTF-8, not"):
                one.subscribe(topic)
            with pytest.raises(ValueError, match="topic must have 1 to 255 bytes in UTF-8, not"):
                one.publish(topic, 1, b"")


@patched
def test_garbage_is_counted_and_dropped() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, max_message_size=100) as (broker, receiver), server.client() as client:
        broker.subscribe("x")
        broker.subscribe("h10")
        origin = b"a b c d "
        for data in (
            b"",
            b"hello",
            pickle.dumps({"event": "x"}),
            os.urandom(1000),
            b"\x02T" + origin * 2 + b"a later version",
            b"\x01J\xff",
            encode_plain(1, origin, 0, b"\xff\xfe"),
            encode_plain(1, origin, 1, b"\xed\xa0\x80"),
            encode_plain(1, origin, 2, b"x" * 101),
            encode_plain(2, origin, 3, b"x" * 101),
            encode_plain(1, origin, 4, b"a message"),
        ):
            client.publish("test:{x}", data)
        wait_until(lambda: receiver.messages)
        assert receiver.messages == [("x", 1, b"a message", None)]
        statistics = broker.statistics
        assert (statistics.malformed, statistics.oversize, statistics.received) == (8, 2, 1)
        assert (statistics.lost, receiver.gaps) == (0, [])
        # Of a topic with history the positions go on over what is dropped.
        with brokers(server.url) as (other, _):
            for payload in (b"x" * 101, b"\xff", b"fine"):
                other.publish("h10", 1, payload)
            other.flush(20)
        client.publish("test:{h10}", b"\x01t1-1")
        wait_until(lambda: len(receiver.messages) == 2)
        assert receiver.messages[1][2:] == (b"fine", broker.position("h10"))
        wait_until(lambda: statistics.malformed == 10)
        assert (statistics.malformed, statistics.oversize, receiver.gaps) == (10, 3, [])


@patched
def test_subscriptions_leave_nothing_behind() -> None:
    """A4, 51."""
    server = shared_server(any_kind())
    with brokers(server.url) as (broker, receiver), server.client() as client:
        broker.subscribe("stays")
        for round in range(20):
            for number in range(500):
                gevent.spawn(broker.subscribe, f"t{number}")
            if round % 2:
                gevent.sleep()
            for number in range(500):
                broker.unsubscribe(f"t{number}")
        broker.subscribe("last")
        broker.unsubscribe("last")
        broker.unsubscribe("never subscribed")
        link = broker.link(0)
        wait_until(lambda: not link.channels.expected and not link.channels.changed)
        wait_until(lambda: client.pubsub_channels("*") == [b"test:{stays}"])
        assert len(link.channels.wanted) == len(link.channels.sent) == len(broker.subscriptions) == 1
        assert not link.channels.behind
        assert client.execute_command("PUBSUB", "NUMPAT") == 0
        # One that comes while the other goes is told from when on it gets all.
        for number in range(200):
            broker.unsubscribe("stays")
            broker.subscribe("stays")
            client.publish("test:{stays}", encode_plain(1, b"8 bytes.", number, b"%d" % number))
            wait_until(lambda: receiver.messages and receiver.messages[-1][2] == b"%d" % number)  # noqa: B023
        assert len(receiver.messages) == 200
        assert receiver.gaps == []


@patched
def test_a_greenlet_that_is_killed_leaves_all_in_order() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _):
        broker.subscribe("h10")
        other.publish("h10", 1, b"x")
        other.flush(20)
        since = Position(broker.position("h10").epoch, 0)
        calls = [
            lambda: broker.subscribe("x"),
            lambda: broker.publish("y", 1, b"x"),
            lambda: broker.missed("h10", since, Position(since.epoch, 1)),
            lambda: broker.members("y"),
            lambda: broker.position("h10"),
            lambda: broker.flush(),
        ]
        for moment in range(6):
            greenlets = [gevent.spawn(call) for call in calls]
            for _ in range(moment):
                gevent.sleep(0)
            for greenlet in greenlets:
                greenlet.kill()
            with gevent.Timeout(0.0001, False):
                for call in calls:
                    call()
        # All of it works as before.
        broker.subscribe("x")
        other.publish("x", 1, b"1")
        assert broker.missed("h10", since, Position(since.epoch, 1)) == [(Position(since.epoch, 1), 1, b"x")]
        assert broker.members("y") == []
        wait_until(lambda: receiver.payloads("x") == [b"1"])
        assert receiver.gaps == []
        assert broker.available


# -- Servers that go and come
# ---------------------------------------------------------------------------------------------------------------------


def publish_until_told(url: str, path: str) -> dict[str, int]:
    """In another process: publishes numbers, 2,000 a second, until a file is there; gives what was counted."""
    with brokers(url) as (broker, _):
        published = 0
        while not os.path.exists(path):
            for _ in range(20):
                broker.publish(f"t{published % 50}", 1, b"%d" % published)
                published += 1
            gevent.sleep(0.01)
        # The last one of each topic shows what is missing before it.
        wait_until(lambda: broker.available)
        for number in range(50):
            assert broker.publish(f"t{number}", 1, b"-1")
        broker.flush(20)
        statistics = broker.statistics
        return {
            "published": published + 50,
            "unsent": statistics.unsent,
            "unconfirmed": statistics.unconfirmed,
            "reconnects": statistics.reconnects,
        }


@on_each_kind
@patched
def test_a_server_that_is_killed_and_comes_back(kind: str) -> None:
    with running(kind) as server, brokers(server.url) as (broker, receiver), PatchedProcess() as other, logged() as log:
        for number in range(50):
            broker.subscribe(f"t{number}")
        stop = os.path.join(server.directory, "stop")
        other.begin(publish_until_told, server.url, stop)
        wait_until(lambda: len(receiver.messages) > 500)
        server.kill()
        wait_until(lambda: not broker.available)
        assert broker.subscribe("while it is away") is None
        assert not broker.publish("t0", 1, b"own")
        with pytest.raises(ConnectionError):
            broker.flush(20)
        # Long enough for attempts to have the longest delays.
        gevent.sleep(1.5)
        before = len(receiver.messages)
        server.start()
        began = time.monotonic()
        with server.client() as client:
            wait_until(lambda: len(client.pubsub_channels("*")) == 51)
        wait_until(lambda: broker.available)
        assert time.monotonic() - began < 2.0
        wait_until(lambda: len(receiver.messages) > before + 500)
        Path(stop).touch()
        counted = other.result()
        wait_until(lambda: receiver.messages.count(("t49", 1, b"-1", None)) == 1)
        wait_until(lambda: len([message for message in receiver.messages if message[2] == b"-1"]) == 50)
        # Each one that was not received is known to be lost, and each was told.
        missing = counted["published"] - len(receiver.messages)
        assert 0 < missing == broker.statistics.lost == sum(lost for _, lost in receiver.gaps if lost)
        assert {topic for topic, lost in receiver.gaps if lost is None} >= {f"t{number}" for number in range(50)}
        # What was not sent is missing, and with it what was sent while nobody was subscribed.
        assert 0 < counted["unsent"] <= missing
        assert counted["reconnects"] == 1
        for topic in range(50):
            payloads = numbers(receiver.payloads(f"t{topic}"))[:-1]
            assert payloads == sorted(set(payloads))
        # One line when it was lost, and one when all was well again.
        assert len(log) == 2, log
        assert re.fullmatch(r"Redis at 127.0.0.1:\d+ is lost, sessions stay: .*", log[0])
        assert re.fullmatch(
            r"Redis at 127.0.0.1:\d+ is back after [\d.]+ s: 51 topics subscribed, 1 messages not sent, "
            r"0 perhaps, \d+ not received",
            log[1],
        )


@patched
def test_a_subscriber_that_is_cut_misses_nothing_of_a_history() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _), server.client() as client:
        broker.subscribe("h100000")
        broker.subscribe("x")
        for number in range(3000):
            other.publish("h100000", 1, b"%d" % number)
            other.publish("x", 1, b"%d" % number)
            if number % 600 == 300:
                other.flush(20)
                wait_until(lambda: client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
        other.flush(20)
        wait_until(lambda: len(receiver.payloads("h100000")) == 3000)
        assert numbers(receiver.payloads("h100000")) == list(range(3000))
        positions = [message[3] for message in receiver.messages if message[0] == "h100000"]
        assert [position.offset for position in positions] == list(range(1, 3001))
        # Of the other one it is told that something may be missing, and how much once the next one shows it.
        wait_until(lambda: broker.available)
        other.publish("x", 1, b"3000")
        wait_until(lambda: receiver.payloads("x")[-1] == b"3000")
        assert ("x", None) in receiver.gaps
        assert all(topic == "x" for topic, _ in receiver.gaps)
        assert 3001 - len(receiver.payloads("x")) == broker.statistics.lost
        assert sum(lost for _, lost in receiver.gaps if lost) == broker.statistics.lost


@patched
def test_a_subscriber_that_is_too_slow_for_redis() -> None:
    """T26, and A4 50."""
    limit = ("--client-output-buffer-limit", "pubsub 1mb 1mb 1")
    with running(any_kind(), *limit) as server, brokers(server.url, 2) as (broker, receiver, other, _), logged() as log:
        broker.subscribe("h100000")
        broker.subscribe("x")
        # Longer than any machine takes to fill what the kernel holds for the two of them.
        receiver.holds = PATIENCE
        count = 0
        with server.client() as client:
            while client.client_list(_type="pubsub"):
                assert count < 10_000
                for _ in range(100):
                    for topic in ("h100000", "x"):
                        other.publish(topic, 1, b"%08d" % count + b"x" * 50_000)
                    count += 1
                other.flush(20)
        receiver.go_on()
        wait_until(lambda: len(receiver.payloads("h100000")) == count)
        assert [int(payload[:8]) for payload in receiver.payloads("h100000")] == list(range(count))
        wait_until(lambda: broker.available)
        other.publish("x", 1, b"%08d" % count)
        wait_until(lambda: receiver.payloads("x")[-1] == b"%08d" % count)
        assert ("x", None) in receiver.gaps
        assert 0 < count + 1 - len(receiver.payloads("x")) == broker.statistics.lost
        assert "is lost" in log[0]
        assert "is back" in log[-1]
        assert len(log) % 2 == 0


@patched
def test_what_can_be_sent_is_not_lost_with_a_connection_that_was_idle() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _), server.client() as client:
        broker.subscribe("x")
        for number in range(3):
            other.publish("x", 1, b"%d" % number)
            other.flush(20)
            gevent.sleep(0.15)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        other.publish("x", 1, b"3")
        other.flush(20)
        wait_until(lambda: len(receiver.messages) == 4)
        assert numbers(receiver.payloads("x")) == [0, 1, 2, 3]
        assert (other.statistics.unsent, other.statistics.unconfirmed) == (0, 0)


@patched
def test_a_server_that_answers_no_more() -> None:
    from geventws.topics import redis_channels

    seconds = redis_channels.PING_SECONDS
    redis_channels.PING_SECONDS = 0.2
    try:
        with running(any_kind()) as server, brokers(server.url) as (broker, receiver), logged() as log:
            broker.subscribe("x")
            server.signal(signal.SIGSTOP)
            wait_until(lambda: not broker.available)
            server.signal(signal.SIGCONT)
            wait_until(lambda: broker.available)
            assert receiver.gaps == [("x", None)]
            assert "no answer for 0.4 s" in log[0]
            assert "is back" in log[1]
    finally:
        redis_channels.PING_SECONDS = seconds


@patched
def test_publishing_waits_while_too_much_waits() -> None:
    with running(any_kind()) as server, brokers(server.url, 2) as (broker, _, other, receiver):
        other.subscribe("x")
        broker.publish("x", 2, b"")
        broker.flush(20)
        link = broker.link(0)
        server.signal(signal.SIGSTOP)

        def publish() -> None:
            for _ in range(100):
                broker.publish("x", 2, b"x" * 100_000)

        greenlet = gevent.spawn(publish)
        wait_until(lambda: link.commands.is_full)
        gevent.sleep(0.05)
        assert not greenlet.dead
        assert link.commands.waiting < 1_200_000
        server.signal(signal.SIGCONT)
        greenlet.join()
        broker.flush(20)
        wait_until(lambda: len(receiver.messages) == 101)
        assert not link.commands.waiting
        assert not link.commands.is_busy


@patched
def test_what_was_on_its_way_may_have_arrived() -> None:
    with running(any_kind()) as server, brokers(server.url) as (broker, receiver), logged() as log:
        broker.subscribe("h10")
        broker.publish("x", 1, b"")
        broker.flush(20)
        link = broker.link(0)
        server.signal(signal.SIGSTOP)
        assert broker.publish("x", 1, b"in flight")
        assert broker.publish("h10", 1, b"in flight")
        wait_until(lambda: len(link.commands.in_flight) == 2)
        assert broker.publish("x", 1, b"waiting")
        assert broker.publish("h10", 1, b"waiting")
        flushed = gevent.spawn(broker.flush, 20)
        missed = gevent.spawn(broker.missed, "h10", Position(1, 1), Position(1, 2))
        gevent.sleep(0.01)
        server.kill()
        with pytest.raises(ConnectionError):
            flushed.get()
        assert missed.get() is None
        assert (broker.statistics.unconfirmed, broker.statistics.unsent) == (2, 2)
        # Whether it has reached the others or not, it is delivered here all the same.
        assert receiver.messages == [("h10", 1, b"in flight", None), ("h10", 1, b"waiting", None)]
        assert not broker.publish("h10", 1, b"later")
        assert (broker.statistics.unconfirmed, broker.statistics.unsent) == (2, 3)
        server.start()
        wait_until(lambda: broker.available)
        assert "3 messages not sent, 2 perhaps" in log[-1]


@on_each_kind
@patched
def test_all_are_told_of_what_redis_never_got_of_a_history(kind: str) -> None:
    server = shared_server(kind)
    with (
        cuttable(server) as way,
        brokers(way.url, 2) as (broker, receiver, another, cut),
        brokers(server.url) as (other, stayed),
    ):
        for each in (broker, another, other):
            start = each.subscribe("h100")
        broker.publish("h100", 1, b"before")
        broker.flush(20)
        for each in (receiver, cut, stayed):
            wait_until(lambda: each.messages)  # noqa: B023
        way.cut()
        wait_until(lambda: broker.link(0).commands.refuses and not another.available)
        for number in range(10):
            assert not broker.publish("h100", 1, b"%d" % number)
        other.publish("h100", 1, b"of another")
        way.is_open = True
        # Nothing more has to be published for that.
        for each in (cut, stayed):
            wait_until(lambda: each.gaps)  # noqa: B023
        broker.publish("h100", 1, b"after")
        for each in (receiver, cut, stayed):
            wait_until(lambda: len(each.messages) == 3)  # noqa: B023
            assert each.payloads("h100") == [b"before", b"of another", b"after"]
            assert each.gaps == ([] if each is receiver else [("h100", 10)])
        assert (another.statistics.lost, other.statistics.lost, broker.statistics.lost) == (10, 10, 0)
        # What came before the gap, and what after it, are not taken for one.
        since, end = start._replace(offset=1), other.position("h100")
        assert end == start._replace(offset=4)
        missed = [(position.offset, payload) for position, _, payload in other.missed("h100", since, end)]
        assert missed in ([(2, b"of another"), (4, b"after")], [(3, b"of another"), (4, b"after")])
        # It is told once.
        broker.publish("h100", 1, b"more")
        wait_until(lambda: len(stayed.messages) == 4)
        assert stayed.messages[-1][3] == start._replace(offset=5)
        assert broker.unsettled == {}


@patched
def test_what_a_replica_has_refused_is_counted_once() -> None:
    with running(any_kind()) as server, brokers(server.url) as (broker, _), server.client() as client:
        broker.publish("h100", 1, b"before")
        broker.flush(20)
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert broker.publish("h100", 1, b"refused")
        wait_until(lambda: not broker.available)
        assert (broker.statistics.unsent, broker.statistics.unconfirmed) == (1, 0)


@patched
def test_who_publishes_past_a_history_is_told_to_the_operator() -> None:
    with running(any_kind()) as server, logged() as log, brokers(server.url) as (broker, receiver):
        with brokers(server.url, history=lambda topic: 0) as (other, _):
            broker.subscribe("h100")
            for number in range(10):
                other.publish("h100", 1, b"%d" % number)
            wait_until(lambda: len(receiver.messages) == 10)
        assert all(position is None for _, _, _, position in receiver.messages)
        assert log == [
            "topic h100 has a history here, and another process publishes without: its Topics need the same history="
        ]


@patched
def test_all_are_told_of_what_redis_has_refused_of_a_history() -> None:
    with running(any_kind()) as server, brokers(server.url, 2) as (broker, receiver, other, there):
        for each in (broker, other):
            each.subscribe("h100")
        with server.client() as client, logged() as log:
            broker.publish("h100", 1, b"before")
            broker.flush(20)
            client.config_set("maxmemory", "1")
            for number in range(5):
                assert broker.publish("h100", 1, b"%d" % number)
            with pytest.raises(ConnectionError, match=r"Redis has refused messages: .*maxmemory"):
                broker.flush(20)
            client.config_set("maxmemory", "0")
            wait_until(lambda: there.gaps == [("h100", 5)])
            broker.publish("h100", 1, b"after")
            wait_until(lambda: len(there.messages) == 2)
            assert len(log) == 1
        wait_until(lambda: len(receiver.messages) == 7)
        assert receiver.payloads("h100") == [b"before", *(b"%d" % number for number in range(5)), b"after"]
        assert receiver.gaps == []
        assert (broker.statistics.unsent, other.statistics.lost) == (5, 5)


@patched
def test_what_was_on_its_way_is_looked_for_in_the_history() -> None:
    with (
        running(any_kind()) as server,
        cuttable(server) as way,
        brokers(way.url) as (broker, receiver),
        brokers(server.url) as (other, there),
    ):
        for each in (broker, other):
            each.subscribe("h100")
        broker.publish("h100", 1, b"0")
        wait_until(lambda: len(receiver.messages) == len(there.messages) == 1)
        link = broker.link(0)
        passed = way.passed
        server.signal(signal.SIGSTOP)
        for number in (1, 2, 3):
            assert broker.publish("h100", 1, b"%d" % number)
        wait_until(lambda: len(link.commands.in_flight) == 3 and way.passed > passed)
        way.cut()
        wait_until(lambda: link.commands.refuses)
        for number in (4, 5):
            assert not broker.publish("h100", 1, b"%d" % number)
        server.signal(signal.SIGCONT)
        way.is_open = True
        # The three have arrived, and the two have not.
        wait_until(lambda: there.gaps)
        broker.publish("h100", 1, b"6")
        wait_until(lambda: len(there.messages) == 5)
        assert there.payloads("h100") == [b"0", b"1", b"2", b"3", b"6"]
        assert there.gaps == [("h100", 2)]
        assert (broker.statistics.unconfirmed, broker.statistics.unsent, other.statistics.lost) == (3, 2, 2)
        # Here they were delivered at once, and not again. The broker's caller delivers those that it did not take.
        wait_until(lambda: receiver.messages[-1][2] == b"6")
        assert receiver.payloads("h100") == [b"0", b"1", b"2", b"3", b"6"]
        assert [message[3] is None for message in receiver.messages] == [False, True, True, True, False]
        assert receiver.gaps == []


@patched
def test_all_are_told_of_what_redis_never_got_without_a_history() -> None:
    """Although its publisher publishes no more on this topic."""
    server = shared_server(any_kind())
    with (
        cuttable(server) as way,
        brokers(way.url) as (broker, receiver),
        brokers(server.url, 2) as (other, there, late, unknowing),
    ):
        for each in (broker, other):
            each.subscribe("x")
        broker.publish("x", 1, b"before")
        wait_until(lambda: there.messages)
        late.subscribe("x")
        way.cut()
        wait_until(lambda: broker.link(0).commands.refuses)
        for _ in range(5):
            assert not broker.publish("x", 1, b"lost")
        way.is_open = True
        wait_until(lambda: there.gaps and unknowing.gaps)
        assert (there.gaps, other.statistics.lost) == ([("x", 5)], 5)
        # It had never heard of this publisher.
        assert unknowing.gaps == [("x", None)]
        wait_until(lambda: not broker.unsettled)
        broker.publish("x", 1, b"after")
        wait_until(lambda: len(there.messages) == 2 and unknowing.messages)
        assert (len(there.gaps), len(unknowing.gaps)) == (1, 1)
        # Of its own it has missed nothing, but something of others may be missing.
        wait_until(lambda: broker.available)
        assert receiver.gaps == [("x", None)]
        assert (receiver.messages, broker.statistics.lost) == ([], 0)


@patched
def test_a_broker_that_is_closed_tells_no_more() -> None:
    with running(any_kind()) as server, brokers(server.url) as (broker, receiver):
        broker.subscribe("h10")
        server.kill()
        wait_until(lambda: broker.link(0).commands.refuses)
        assert not broker.publish("h10", 1, b"lost")
        settling = broker._settling
        assert not settling.dead
        broker.close()
        wait_until(lambda: settling.dead)
        assert receiver.messages == []


def publish_until_stopped(url: str, topics: list[str], path: str) -> dict[str, Any]:
    """In another process: publishes numbers to topics with a history that it hears itself, until a file is there."""
    with brokers(url) as (broker, receiver):
        for topic in topics:
            broker.subscribe(topic)
        count = 0
        while not os.path.exists(path):
            for topic in topics:
                if not broker.publish(topic, 1, b"%d" % count):
                    receiver.message(topic, 1, b"%d" % count, None)
            count += 1
            gevent.sleep(0.005)
        wait_until(lambda: broker.available)
        for topic in topics:
            assert broker.publish(topic, 1, b"%d" % count)
        broker.flush(20)
        wait_until(lambda: not broker.unsettled)
        for topic in topics:
            wait_until(lambda: receiver.payloads(topic)[-1:] == [b"%d" % count])  # noqa: B023
            assert numbers(receiver.payloads(topic)) == list(range(count + 1))
        assert broker.statistics.lost == 0
        return {"published": count + 1, "unsent": broker.statistics.unsent}


@pytest.mark.parametrize("kept", [False, True], ids=["empty", "with its data"])
@patched
def test_each_loss_of_a_history_is_counted(kept: bool) -> None:
    # By default a disk that is slow to sync has writes put off, while clients are told that all is well.
    options = ("--appendonly", "yes", "--appendfsync", "no") if kept else ()
    topics = [f"h5000-{number}" for number in range(5)]
    with (
        running(any_kind(), *options) as server,
        PatchedProcess() as other,
        brokers(server.url) as (broker, receiver),
    ):
        for topic in topics:
            broker.subscribe(topic)
        stop = os.path.join(server.directory, "stop")
        other.begin(publish_until_stopped, server.url, topics, stop)
        wait_until(lambda: len(receiver.messages) > 100)
        for _ in range(2):
            server.kill()
            wait_until(lambda: not broker.available)
            gevent.sleep(0.3)
            server.start()
            wait_until(lambda: broker.available)
            before = len(receiver.messages)
            wait_until(lambda: len(receiver.messages) > before + 100)  # noqa: B023
        Path(stop).touch()
        counted = other.result()
        last = b"%d" % (counted["published"] - 1)
        for topic in topics:
            wait_until(lambda: receiver.payloads(topic)[-1] == last)  # noqa: B023
            payloads = numbers(receiver.payloads(topic))
            assert payloads == sorted(set(payloads))
        missing = counted["published"] * len(topics) - len(receiver.messages)
        assert 0 < missing == broker.statistics.lost == sum(lost for _, lost in receiver.gaps if lost)
        assert counted["unsent"] > 0
        if kept:
            assert None not in [lost for _, lost in receiver.gaps]


@patched
def test_another_thread_is_refused() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 1) as (broker, _):
        broker.subscribe("x")

        def subscribe() -> None:
            with pytest.raises(UsageError, match="another thread"):
                broker.subscribe("y")

        gevent.get_hub().threadpool.apply(subscribe)


def test_a_script_tells_of_what_redis_has_refused() -> None:
    with running(any_kind()) as server, brokers(server.url) as (broker, _), PatchedProcess() as other:
        other.call(open_broker, server.url, ["h100"])
        with server.client() as client:
            assert broker.publish("h100", 1, b"before")
            client.config_set("maxmemory", "1")
            for _ in range(3):
                assert not broker.publish("h100", 1, b"lost")
            client.config_set("maxmemory", "0")
            assert broker.publish("h100", 1, b"after")
            wait_for(other, gaps, until=[["h100", 3]])
            assert broker.publish("h100", 1, b"more")
            assert broker.position("h100").offset == 4
            assert broker.unsettled == {}


@patched
def test_scripts_that_are_flushed_are_loaded_again() -> None:
    server = shared_server(any_kind())
    with brokers(server.url) as (broker, receiver), server.client() as client:
        broker.subscribe("h1000")
        for number in range(500):
            broker.publish("h1000", 1, b"%d" % number)
            if number % 100 == 50:
                gevent.sleep()
                client.script_flush()
        broker.flush(20)
        wait_until(lambda: len(receiver.messages) == 500)
        assert numbers(receiver.payloads("h1000")) == list(range(500))


# -- Which servers, and how they are reached
# ---------------------------------------------------------------------------------------------------------------------


def heard(url: str) -> None:
    """Sends a message over a server, with and without history."""
    with brokers(url, 2) as (broker, receiver, other, _):
        broker.subscribe("x")
        broker.subscribe("h10")
        assert other.publish("x", 1, b"hello")
        assert other.publish("h10", 1, b"hello")
        wait_until(lambda: len(receiver.messages) == 2)


@on_each_kind
@patched
def test_a_password(kind: str) -> None:
    with running(kind, password="pa/ss@w:rd%") as server, logged() as log:
        right = f"redis://:pa%2Fss%40w%3Ard%25@127.0.0.1:{server.port}"
        heard(right)
        heard(right.replace("redis://", "valkey://") + "/3")
        assert log == []
        with brokers(f"redis://:wrongsecret@127.0.0.1:{server.port}") as (broker, receiver):
            assert broker.subscribe("x") is None
            assert not broker.publish("x", 1, b"")
            gevent.sleep(0.3)
            assert len(log) == 1
            assert "is there, but can't be used, sessions stay: it refuses the user or the password" in log[0]
            # It restarts with the password that was thought right; in between it is just not there.
            server.kill()
            gevent.sleep(0.2)
            server.password = "wrongsecret"
            server.start()
            wait_until(lambda: broker.available)
            with brokers(server.url) as (other, _):
                other.publish("x", 1, b"hello")
                wait_until(lambda: receiver.messages)
        assert len(log) == 2, log
        assert "1 topics subscribed" in log[1]
        assert "secret" not in "".join(log)


@patched
def test_a_user_with_few_rights() -> None:
    with running(any_kind()) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "ws", "on", ">secret", "~ws:*", "&ws:*", "+@all", "-@dangerous")
            client.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~ws:*", "&ws:*", "+@all", "-publish")
            client.execute_command("ACL", "SETUSER", "other", "on", ">secret", "~*", "&other:*", "+@all")
            client.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "&*", "+@all", "-subscribe")
            client.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~other:*", "&*", "+@all")
        with brokers(f"redis://ws:secret@127.0.0.1:{server.port}", 2, namespace="ws") as made, logged() as log:
            broker, receiver, other, _ = made[0], made[1], made[0], None
            broker.subscribe("h10")
            other.publish("h10", 1, b"hello")
            wait_until(lambda: receiver.messages)
            assert log == []
        with brokers(f"redis://mute:secret@127.0.0.1:{server.port}", namespace="ws") as (broker, _), logged() as log:
            for _ in range(10):
                broker.publish("x", 1, b"hello")
            with pytest.raises(ConnectionError, match="Redis has refused messages: "):
                broker.flush(20)
            assert broker.statistics.unsent == 10
            assert len(log) == 1
            assert "refuses messages" in log[0]
        with (
            brokers(f"redis://other:secret@127.0.0.1:{server.port}", namespace="ws") as (broker, receiver),
            logged() as log,
        ):
            assert broker.subscribe("x") is None
            assert broker.subscribe("y") is None
            assert receiver.gaps == [("x", None), ("y", None)]
            assert len(log) == 1
            assert "refuses subscriptions" in log[0]
            assert broker.available
        with (
            brokers(f"redis://deaf:secret@127.0.0.1:{server.port}", namespace="ws") as (broker, receiver),
            logged() as log,
        ):
            assert broker.subscribe("h10") is None
            for number in range(3):
                assert broker.publish("h10", 1, b"%d" % number)
            broker.flush(20)
            # It can't come back, but who is here gets it all the same.
            assert numbers(receiver.payloads("h10")) == [0, 1, 2]
            assert receiver.gaps == [("h10", None)]
            assert len(log) == 1
        with brokers(f"redis://blind:secret@127.0.0.1:{server.port}", namespace="ws") as (broker, _), logged() as log:
            assert broker.subscribe("h10") is None
            assert broker.position("h10") is None
            assert broker.members("x") == []
            assert len(log) == 1
            assert "refuses histories" in log[0]


@patched
def test_tls() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = shared_server(any_kind())
    with redis_server.behind_tls(server, authority.issue_cert("127.0.0.1", "localhost")) as port:
        path = os.path.join(server.directory, "ca.pem")
        authority.cert_pem.write_to_path(path)
        heard(f"rediss://localhost:{port}/0?ssl_ca_certs={path}")
        heard(f"valkeys://127.0.0.1:{port}?ssl_ca_certs={path}")
        with brokers(f"rediss://127.0.0.1:{port}") as (broker, _), logged() as log:
            assert broker.subscribe("x") is None
            assert "certificate verify failed" in log[0].lower()


@patched
def test_what_is_no_redis() -> None:
    """It is told apart from one that was there, and from one that is not."""
    with gevent.socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = gevent.spawn(answer)
        port = listener.getsockname()[1]
        with brokers(f"redis://127.0.0.1:{port}") as (broker, _), logged() as log:
            assert broker.subscribe("x") is None
            assert log[0].startswith(
                f"Redis at 127.0.0.1:{port} is there, but can't be used, sessions stay: "
                "it does not speak the protocol of Redis: "
            )
            with pytest.raises(ConnectionError, match=f"Redis at 127.0.0.1:{port} is away: the log says why"):
                broker.flush(1)
        answering.get()
    with brokers(f"redis://127.0.0.1:{port}") as (broker, _), logged() as log:
        assert broker.subscribe("x") is None
        assert log[0].startswith(f"Redis at 127.0.0.1:{port} can't be reached, sessions stay: ")


@patched
def test_a_unix_domain_socket() -> None:
    server = shared_server(any_kind())
    heard(f"unix://{server.path}")
    heard(f"unix://{server.path}?db=2")


@patched
def test_a_server_that_is_too_old_or_a_replica() -> None:
    from gevent.server import StreamServer

    def answer(version: bytes, role: bytes) -> Callable[[Any, Any], None]:
        hello = [b"server", b"redis", b"version", version, b"proto", b":2", b"mode", b"standalone", b"role", role]

        def handle(client: Any, address: Any) -> None:
            while data := client.recv(4096):
                for _ in range(data.count(b"SETINFO")):
                    client.sendall(b"-ERR unknown subcommand\r\n")
                if b"HELLO" in data:
                    parts = [
                        b"$%d\r\n%b\r\n" % (len(part), part) if part[:1] != b":" else part + b"\r\n" for part in hello
                    ]
                    client.sendall(
                        b"*%d\r\n" % len(parts) + b"".join(parts) if version != b"5" else b"-ERR unknown command\r\n"
                    )

        return handle

    for version, role, words in (
        (b"6.2.14", b"master", "version 6.2.14, and Redis 7"),
        (b"5", b"master", "older than Redis 7"),
        (b"8.0.0", b"replica", "it is a replica"),
    ):
        server = StreamServer(("127.0.0.1", 0), answer(version, role))
        server.start()
        with brokers(f"redis://127.0.0.1:{server.server_port}") as (broker, _), logged() as log:
            assert broker.subscribe("x") is None
            gevent.sleep(0.2)
            assert not broker.publish("x", 1, b"")
            assert len(log) == 1, log
            assert words in log[0]
        server.stop()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1", "must begin with redis://"),
        ("127.0.0.1:6379", "must begin with redis://"),
        ("", "must begin with redis://"),
        (None, "url must be a str"),
        ("redis://:secret@host:port", "a port, database or option"),
        ("redis://:sec/ret@host:1", "a port, database or option"),
        ("redis://host?db=secret", "a port, database or option"),
        ("redis://host?no_such_option=1", "an option that can't be: 'no_such_option'"),
    ],
)
def test_urls_that_can_not_be(url: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        redis_broker(url, Recorder())
    assert "secret" not in str(caught.value)
    assert "sec/ret" not in str(caught.value)


def test_nothing_is_connected_before_the_first_use() -> None:
    for url in (
        "redis://127.0.0.1:1",
        "rediss://:x@nowhere.invalid:1/3",
        "unix:///nowhere",
        "valkey://h",
        "valkeys://h",
    ):
        broker = redis_broker(url, Recorder())
        assert broker.started is None
        running = broker.here()
        assert running is broker.started is broker.here()
        assert running.available
        running.flush()
        broker.close()
        assert broker.started is None
        with pytest.raises(UsageError, match="closed"):
            broker.here()


# -- Processes
# ---------------------------------------------------------------------------------------------------------------------


@on_each_kind
def test_a_script_publishes(kind: str) -> None:
    """In a process that is not patched, as this one: from any thread, and waiting for the answer."""
    from concurrent.futures import ThreadPoolExecutor

    with running(kind) as server, PatchedProcess() as other, brokers(server.url) as (broker, _):
        other.call(open_broker, server.url, ["x", "h10"])
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda number: broker.publish("x", 1, b"%d" % number), range(100)))
        assert broker.publish("h10", 2, b"hello")
        broker.flush()
        position = broker.position("h10")
        assert position is not None
        assert broker.missed("h10", Position(position.epoch, 0), position) == [(position, 2, b"hello")]
        assert sorted(other.call(received, 101)) == [-1, *range(100)]
        assert broker.members("x") == []
        with server.client() as client:
            client.script_flush()
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        # It has not noticed that its connection is closed; nothing is lost by that.
        assert broker.publish("h10", 2, b"hello")
        for refused in (lambda: broker.subscribe("x"), lambda: broker.join("x", Member("Ada", "k"))):
            with pytest.raises(UsageError, match=re.escape("monkey.patch_all()")):
                refused()
        server.kill()
        began = time.monotonic()
        for _ in range(100):
            assert not broker.publish("x", 1, b"")
        assert time.monotonic() - began < 5
        assert not broker.available
        assert (broker.statistics.unsent, broker.statistics.unconfirmed) == (100, 0)
        with pytest.raises(ConnectionError, match="refused"):
            broker.flush()


@on_each_kind
def test_a_history_outlives_the_messages_of_scripts_that_know_nothing_of_it(kind: str) -> None:
    """How long it is kept they don't know either: as long as they would keep one, unless that is less."""
    with running(kind) as server, server.client() as client, brokers(server.url, history=lambda topic: 0) as made:
        script = made[0]
        for topic, seconds in (("h10", 60.0), ("h100", 7200.0), ("h1000", None)):
            with brokers(server.url, history_seconds=seconds) as (knowing, _):
                knowing.publish(topic, 1, b"kept")
            script.publish(topic, 1, b"kept as well")
        short, long, endless = (client.pttl(f"test:{{{topic}}}:log") for topic in ("h10", "h100", "h1000"))
        assert 60_000 < short <= 3_600_000 < long <= 7_200_000
        assert endless == -1


def received(count: int) -> list[int]:
    """In another process: what has come in, -1 for what is no number."""
    receiver = _kept["receiver"]
    wait_until(lambda: len(receiver.messages) >= count)
    return [int(message[2]) if message[2].isdigit() else -1 for message in receiver.messages]


SCRIPT = """
from gevent import monkey
if {patched}:
    monkey.patch_all()
from tests.test_redis_broker import redis_broker
broker = redis_broker({url!r}, None)
for number in range(1000):
    broker.here().publish("x", 1, b"%d" % number)
"""


@on_each_kind
@patched
def test_a_process_that_ends_has_sent_all(kind: str) -> None:
    url = shared_server(kind).url
    with brokers(url) as (broker, receiver):
        broker.subscribe("x")
        subprocess.run([sys.executable, "-c", SCRIPT.format(patched=True, url=url)], check=True)
        wait_until(lambda: len(receiver.messages) == 1000)
        assert numbers(receiver.payloads("x")) == list(range(1000))


@patched
def test_a_fork_has_connections_of_its_own() -> None:
    """T33."""
    url = shared_server(any_kind()).url
    receiver = Recorder()
    redis = redis_broker(url, receiver)
    with closing(redis), brokers(url) as (other, there):
        broker = redis.here()
        broker.subscribe("x")
        broker.subscribe("h100")
        other.subscribe("x")
        broker.join("x", Member("Ada", "1"))
        broker.publish("h100", 1, b"0")
        broker.flush(20)
        parents = broker.worker_id, len(receiver.messages)

        def work() -> None:
            # Its parent's greenlets and watchers are here too.
            receiver.messages.clear()
            gevent.sleep(0.2)
            assert redis.started is None
            broker = redis.here()
            assert broker.worker_id != parents[0]
            assert broker.publish("x", 1, b"of the child")
            assert broker.subscribe("y") is None
            broker.flush(20)
            assert [member.name for member in broker.members("x")] == ["Ada"]
            assert (receiver.messages, receiver.gaps) == ([], [])
            redis.close()

        for _ in range(3):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    gevent.reinit()
                    work()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            for number in range(50):
                other.publish("x", 1, b"%d" % number)
                broker.publish("x", 1, b"%d" % number)
                broker.publish("h100", 1, b"%d" % number)
                gevent.sleep(0.005)
            assert os.waitpid(child, 0)[1] == 0
        broker.flush(20)
        other.flush(20)
        wait_until(lambda: len(receiver.messages) >= 1 + 150 + 150 + 3)
        wait_until(lambda: len(there.messages) >= 150 + 3)
        assert [payload for payload in receiver.payloads("x") if payload != b"of the child"] == [
            b"%d" % number for number in range(50)
        ] * 3
        assert numbers(receiver.payloads("h100")) == [0, *[*range(50)] * 3]
        assert receiver.payloads("x").count(b"of the child") == 3
        assert (receiver.gaps, there.gaps, broker.statistics.reconnects) == ([], [], 0)
        assert [member.name for member in broker.members("x")] == ["Ada"]


@patched
def test_a_fork_gets_nothing_that_its_parent_has_read() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _):
        broker.subscribe("x")
        for number in range(300):
            other.publish("x", 1, b"%d" % number)
        while not receiver.messages:
            gevent.sleep()
        # Most of them are read, and not yet handed on.
        assert len(receiver.messages) < 300
        child = os.fork()
        if child == 0:
            try:
                gevent.reinit()
                receiver.messages.clear()
                gevent.sleep(0.1)
            finally:
                os._exit(len(receiver.messages) > 0)
        assert os.waitpid(child, 0)[1] == 0
        wait_until(lambda: numbers(receiver.payloads("x")) == list(range(300)))


# -- Histories
# ---------------------------------------------------------------------------------------------------------------------


@on_each_kind
@patched
def test_positions_and_what_was_missed(kind: str) -> None:
    server = shared_server(kind)
    with brokers(server.url, history_seconds=60.0) as (broker, _), server.client() as client:
        assert broker.position("x") is None
        start = broker.position("h10")
        assert start.offset == 0
        assert start == broker.position("h10")
        for number in range(15):
            broker.publish("h10", 1 + number % 2, b"%d" % number)
        broker.flush(20)
        end = broker.position("h10")
        assert end == Position(start.epoch, 15)
        at = lambda offset: Position(start.epoch, offset)  # noqa: E731
        assert broker.missed("h10", at(5), end) == [(at(n), 1 + (n - 1) % 2, b"%d" % (n - 1)) for n in range(6, 16)]
        assert broker.missed("h10", at(13), at(14)) == [(at(14), 2, b"13")]
        assert broker.missed("h10", end, end) == []
        # Of these, some are gone; or never were; or of another epoch.
        for since, up_to in ((at(4), end), (at(16), at(16)), (at(15), at(16)), (at(9), at(8))):
            assert broker.missed("h10", since, up_to) is None
        assert broker.missed("h10", Position(start.epoch - 1, 5), end) is None
        assert broker.missed("h10", Position(start.epoch - 1, 5), Position(start.epoch - 1, 6)) is None
        assert client.xlen("test:{h10}:log") == 10
        assert 50_000 < client.pttl("test:{h10}:log") <= 60_000
        client.pexpire("test:{h10}:log", 1)
        wait_until(lambda: not client.exists("test:{h10}:log"))
        assert broker.missed("h10", at(13), at(14)) is None
        assert broker.position("h10").epoch > start.epoch
    with brokers(server.url, history_seconds=None) as (broker, _), server.client() as client:
        broker.publish("h5", 1, b"")
        broker.flush(20)
        assert client.ttl("test:{h5}:log") == -1


@patched
def test_a_history_that_is_begun_anew() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _), server.client() as client:
        first = broker.subscribe("h10")
        other.publish("h10", 1, b"1")
        other.flush(20)
        wait_until(lambda: receiver.messages)
        # It has expired, and nobody has missed anything.
        client.flushall()
        other.publish("h10", 1, b"2")
        wait_until(lambda: len(receiver.messages) == 2)
        second = receiver.messages[1][3]
        assert second.offset == 1
        assert second.epoch > first.epoch
        assert receiver.gaps == []
        # While we were away, and nobody knows what there was.
        link = broker.link(0)
        link_address, link.address = link.address, ("127.0.0.1", 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: not broker.available)
        client.flushall()
        for number in (3, 4):
            other.publish("h10", 1, b"%d" % number)
        other.flush(20)
        link.address = link_address
        wait_until(lambda: len(receiver.messages) == 4)
        assert [message[2] for message in receiver.messages] == [b"1", b"2", b"3", b"4"]
        assert [message[3].offset for message in receiver.messages] == [1, 1, 1, 2]
        assert receiver.gaps == [("h10", None)]
        # More than is kept: how many are gone is known.
        link.address = ("127.0.0.1", 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: not broker.available)
        for number in range(5, 35):
            other.publish("h10", 1, b"%d" % number)
        other.flush(20)
        link.address = link_address
        wait_until(lambda: len(receiver.messages) == 14)
        assert numbers([message[2] for message in receiver.messages[4:]]) == list(range(25, 35))
        assert receiver.gaps == [("h10", None), ("h10", 20)]
        assert broker.statistics.lost == 20


@patched
def test_positions_that_are_none_are_counted_and_dropped() -> None:
    server = shared_server(any_kind())
    source = encode_source(b"8 bytes.", 0)
    with brokers(server.url, 2) as (broker, receiver, other, _), server.client() as client:

        def readings() -> int:
            return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

        start = broker.subscribe("h100")
        for number in range(3):
            other.publish("h100", 1, b"%d" % number)
        other.flush(20)
        wait_until(lambda: len(receiver.messages) == 3)
        before = readings()
        # Far ahead; the first and another one of an older epoch; and of a newer one.
        false = (start._replace(offset=1000), Position(5, 1), Position(5, 7), Position(start.epoch + 10**9, 1))
        for position in false:
            client.publish("test:{h100}", b"\x01t%b %bfalse" % (str(position).encode(), source))
        client.publish("test:{h100}", b"\x01g%d-1000 %b5" % (start.epoch, source))
        wait_until(lambda: broker.statistics.malformed == len(false) + 1)
        # More than are kept, and than may wait.
        for number in range(3, 2000):
            other.publish("h100", 1, b"%d" % number)
        other.flush(20)
        wait_until(lambda: len(receiver.messages) == 2000)
        assert numbers(receiver.payloads("h100")) == list(range(2000))
        assert [message[3] for message in receiver.messages] == [start._replace(offset=n) for n in range(1, 2001)]
        assert receiver.gaps == []
        assert broker.statistics.malformed == len(false) + 1
        # It has not gone on to read the history.
        assert readings() - before <= 1997 + 2 * len(false) + 2


@patched
def test_messages_that_come_while_others_are_missing_wait_for_these() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 2) as (broker, receiver, other, _), server.client() as client:
        start = broker.subscribe("h5000")
        # These are not told to subscribers, as if they had been lost on the way.
        for number in range(10):
            client.xadd("test:{h5000}:log", entry(number, b"%d" % number), id=f"{start.epoch}-*")
        for number in range(10, 4000):
            other.publish("h5000", 1, b"%d" % number)
            receiver.holds = 0.0001 if number < 200 else 0.0
            if number % 50 == 0:
                gevent.sleep()
            if number == 500:
                client.xadd("test:{h5000}:log", entry(10, b"-1"), id=f"{start.epoch}-*")
        other.flush(20)
        wait_until(lambda: len(receiver.messages) == 4001)
        offsets = [message[3].offset for message in receiver.messages]
        assert offsets == list(range(1, 4002))
        assert [number for number in numbers(receiver.payloads("h5000")) if number >= 0] == list(range(4000))
        assert receiver.gaps == []


# -- Members
# ---------------------------------------------------------------------------------------------------------------------


@on_each_kind
@patched
def test_members_of_two_processes(kind: str) -> None:
    url = shared_server(kind).url
    with brokers(url) as (broker, receiver), PatchedProcess() as other:
        broker.subscribe("x")
        worker = other.call(open_broker, url, ["x"])
        assert worker != broker.worker_id
        ada, eve = Member("Ada Ä\n", "1"), Member("", "2")
        broker.join("x", ada)
        wait_for(other, member_names, "x", until=[ada.name])
        other.call(join, "x", "Bob")
        wait_until(lambda: len(receiver.changes) == 2)
        broker.join("x", eve)
        broker.join("y", eve)
        wait_until(lambda: len(receiver.changes) == 3)
        assert broker.members("x") == [ada, Member("Bob", f"{worker}.Bob"), eve]
        broker.leave("x", ada)
        broker.leave("x", Member("never here", "3"))
        other.call(leave, "x", "Bob")
        wait_until(lambda: len(receiver.changes) == 5)
        assert broker.members("x") == [eve]
        expected = [["x", "join", ada.name], ["x", "join", "Bob"], ["x", "join", ""]]
        assert [list(change) for change in receiver.changes[:3]] == expected
        assert sorted(receiver.changes[3:]) == [("x", "leave", ada.name), ("x", "leave", "Bob")]
        wait_until(lambda: len(other.call(changes)) == 5)
        assert [member.name for member in broker.members("y")] == [""]
        broker.close()
        wait_for(other, member_names, "x", until=[])
        wait_until(lambda: len(other.call(changes)) == 6)


@patched
def test_members_of_a_process_that_dies() -> None:
    server = shared_server(any_kind())
    with brokers(server.url, 3) as (one, first, two, second, three, third), PatchedProcess() as other:
        for broker in (one, two, three):
            broker.subscribe("x")
        one.join("x", Member("Ada", "a"))
        two.watch_members()
        other.call(open_broker, server.url, ["x"])
        for name in ("Bob", "Eve"):
            other.call(join, "x", name)
        for number in range(20):
            other.call(join, f"y{number}", "Bob")
        wait_until(lambda: len(three.members("x")) == 3 and len(three.members("y19")) == 1)
        other.begin(end)
        began = time.monotonic()
        wait_until(lambda: len(three.members("x")) == 1 and len(three.members("y19")) == 0)
        wait_until(lambda: len(third.changes) == 5)
        assert time.monotonic() - began < 6
        with server.client() as client:
            # Nothing is left of it.
            wait_until(lambda: not client.keys("test:{y*"))
            wait_until(lambda: len(client.keys("test:worker:*")) == client.zcard("test:workers") == 1)
        for receiver in (first, second, third):
            assert sorted(receiver.changes[3:]) == [("x", "leave", "Bob"), ("x", "leave", "Eve")]


@patched
def test_members_of_a_process_that_was_stopped() -> None:
    server = shared_server(any_kind())
    with brokers(server.url) as (broker, receiver), PatchedProcess() as other:
        broker.subscribe("x")
        broker.watch_members()
        other.call(open_broker, server.url, ["x"], 2000)
        other.call(join, "x", "Bob")
        other.call(join, "y", "Bob")
        wait_until(lambda: receiver.changes == [("x", "join", "Bob")])
        os.kill(other.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: receiver.changes[1:] == [("x", "leave", "Bob")])
            assert broker.members("x") == broker.members("y") == []
        finally:
            os.kill(other.pid, signal.SIGCONT)
        wait_until(lambda: receiver.changes[2:] == [("x", "join", "Bob")])
        wait_until(lambda: len(broker.members("y")) == 1)
        assert other.call(member_names, "x") == ["Bob"]
        # Redis forgets all.
        with server.client() as client:
            client.flushall()
        wait_until(lambda: len(broker.members("x")) == len(broker.members("y")) == 1)


@patched
def test_members_when_redis_was_away() -> None:
    set_lease(4000)
    with running(any_kind()) as server, brokers(server.url, 2) as (broker, receiver, other, _):
        broker.subscribe("x")
        for name in ("Ada", "Bob"):
            broker.join("x", Member(name, name))
        other.join("x", Member("Eve", "Eve"))
        wait_until(lambda: len(broker.members("x")) == 3)
        server.kill()
        wait_until(lambda: not broker.available)
        # Those of this process.
        broker.leave("x", Member("Ada", "Ada"))
        broker.join("x", Member("Tim", "Tim"))
        assert sorted(member.name for member in broker.members("x")) == ["Bob", "Tim"]
        server.start()
        wait_until(lambda: sorted(member.name for member in broker.members("x")) == ["Bob", "Eve", "Tim"])
        # The same when it has kept its data, and only the connections were lost.
        with server.client() as client:
            client.client_pause(300)
            broker.leave("x", Member("Bob", "Bob"))
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: sorted(member.name for member in other.members("x")) == ["Eve", "Tim"])
        wait_until(lambda: receiver.changes.count(("x", "leave", "Bob")) == 1)


# -- A cluster
# ---------------------------------------------------------------------------------------------------------------------


@patched
def test_a_cluster() -> None:
    topics = [f"{prefix}{number}" for number in range(20) for prefix in ("t", "h100-")]
    with redis_server.cluster(any_kind()) as servers:
        with brokers(servers[0].url) as (broker, receiver), brokers(servers[1].url) as (other, _), logged() as log:
            for topic in topics:
                broker.subscribe(topic)
            assert broker.position("h100-1").offset == 0
            for number in range(50):
                for topic in topics:
                    assert other.publish(topic, 1, b"%d" % number)
            other.flush(20)
            wait_until(lambda: len(receiver.messages) == 50 * len(topics))
            for topic in topics:
                assert numbers(receiver.payloads(topic)) == list(range(50))
            counts = []
            for server in servers:
                with server.client() as client:
                    counts.append(len(client.execute_command("PUBSUB", "SHARDCHANNELS")))
                    assert client.pubsub_channels() == []
            assert sum(counts) == len(topics)
            assert all(counts)
            for topic in topics:
                other.join(topic, Member("Bob", "b"))
            wait_until(lambda: all(len(broker.members(topic)) == 1 for topic in topics))
            wait_until(lambda: len(receiver.changes) == len(topics))
            assert receiver.gaps == log == []
            # A node is lost with its slots; the others go on.
            servers[2].kill()
            wait_until(lambda: not broker.available)
            gone = {topic for topic in topics if broker.link(broker.channels.get(topic).slot).is_lost}
            assert 0 < len(gone) < len(topics)
            before = len(receiver.messages)
            for topic in set(topics) - gone:
                assert other.publish(topic, 1, b"50")
            wait_until(lambda: len(receiver.messages) == before + len(topics) - len(gone))
            servers[2].start()
            with servers[2].client() as client:
                wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
            wait_until(lambda: broker.available and other.available)
            for topic in gone:
                assert other.publish(topic, 1, b"51")
            wait_until(lambda: len(receiver.messages) == before + len(topics))
            assert {topic for topic, _ in receiver.gaps} == gone
            # The other one may have been idle.
            assert len([line for line in log if "is lost" in line]) in (1, 2), log
        with brokers(servers[2].url) as (broker, receiver):
            move_a_slot(servers, broker, receiver)
            stop_a_cluster(servers, broker, receiver)


def move_a_slot(servers: list[RedisServer], broker: Any, receiver: Recorder) -> None:
    """Gives a slot to another node while messages are published to its topics."""
    for topic in ("h1000", "t0", "t1", "t2"):
        broker.subscribe(topic)
    slot = broker.channels.get("h1000").slot
    clients = [server.client() for server in servers]
    ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
    owner = next(number for number in range(3) if broker.slots.node(slot)[1] == servers[number].port)
    target = (owner + 1) % 3

    def publish() -> None:
        for number in range(1000):
            assert broker.publish("h1000", 1, b"%d" % number)
            if number % 10 == 0:
                gevent.sleep(0.001)

    greenlet = gevent.spawn(publish)
    gevent.sleep(0.02)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
    clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    for key in clients[owner].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        clients[owner].execute_command("MIGRATE", "127.0.0.1", servers[target].port, key, 0, 5000)
    for client in (clients[target], clients[owner], clients[3 - target - owner]):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    greenlet.get()
    broker.flush(20)
    wait_until(lambda: receiver.messages and receiver.messages[-1][2] == b"999")
    assert broker.slots.node(slot)[1] == servers[target].port
    # Those of a history are read again; nobody has missed any.
    assert numbers(receiver.payloads("h1000")) == list(range(1000)), (broker.statistics, receiver.gaps)
    assert broker.statistics.lost == 0
    for client in clients:
        client.close()


def stop_a_cluster(servers: list[RedisServer], broker: Any, receiver: Recorder) -> None:
    """Has all nodes refuse everything since one is lost."""
    for server in servers:
        with server.client() as client:
            client.config_set("cluster-require-full-coverage", "yes")
    topics = [f"h10-{number}" for number in range(30)]
    for topic in topics:
        broker.subscribe(topic)
    with logged() as log:
        servers[2].kill()
        # What has no position is delivered here, at the latest once the nodes have refused it.
        for topic in topics:
            wait_until(lambda: _published(broker, receiver, topic))  # noqa: B023
        assert len([line for line in log if "is lost" in line]) == 1
        assert len([line for line in log if "refuses messages" in line]) == 2
        servers[2].start()
        wait_until(lambda: broker.available)
        for topic in topics:
            wait_until(lambda: _published(broker, receiver, topic, True))  # noqa: B023
        assert len([line for line in log if "is back" in line]) == 1


def _published(broker: Any, receiver: Recorder, topic: str, positioned: bool = False) -> bool:
    """Whether a message comes back with a position, or without."""
    before = len(receiver.messages)
    if broker.publish(topic, 1, b""):
        wait_until(lambda: topic in [message[0] for message in receiver.messages[before:]])
        last = [message for message in receiver.messages[before:] if message[0] == topic][-1]
        return (last[3] is not None) == positioned
    return not positioned


# -- The package
# ---------------------------------------------------------------------------------------------------------------------


def test_neither_pickle_nor_patterns() -> None:
    """A4, 48 and 49."""
    for path in Path(geventws.__file__).parent.rglob("*.py*"):
        if path.suffix not in (".py", ".pyx", ".pxd"):
            continue
        text = path.read_text()
        assert "psubscribe" not in text.lower(), path
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {"pickle", "marshal", "shelve"} & {name.partition(".")[0] for name in names}, path
