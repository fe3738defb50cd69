"""Topics over a real Redis or Valkey, with sessions: several `Topics` of one process stand for several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

pytest.importorskip("redis")

from geventws import Position, Topics
from geventws.topics import Gap, Presence
from tests import redis_server
from tests.patched import end_process, patched
from tests.peer import Peer, wait_until
from tests.redis_server import RedisServer, any_kind, cuttable, running
from tests.test_broadcasting import Room

pytestmark = pytest.mark.skipif(not redis_server.SERVERS, reason=redis_server.NO_SERVER)

TEXT = 0x81


@pytest.fixture(scope="module", autouse=True)
def _process() -> Iterator[None]:
    yield
    end_process(__name__)


@contextmanager
def shared(server: RedisServer, count: int = 2, **options: Any) -> Iterator[list[Topics]]:
    """As many topics as there would be processes."""
    made = [Topics(server.url, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for topics in made:
            topics.close()


def texts(peer: Peer, count: int) -> list[str]:
    frames = [peer.frame() for _ in range(count)]
    assert all(first == TEXT for first, _ in frames), frames
    return [payload.decode() for _, payload in frames]


def nothing_more(room: Room, peer: Peer, number: int) -> None:
    """Asserts that nothing but this is on its way to a peer."""
    room.sessions[number].send("the end")
    assert peer.frame() == (TEXT, b"the end")


@patched
def test_each_subscriber_gets_each_message_once() -> None:
    with running(any_kind()) as server, shared(server, 3) as (one, two, three), Room() as room:
        peers = [room.join() for _ in range(3)]
        for topics, session in zip((one, two, three), room.sessions, strict=True):
            topics.subscribe(session, "a")
        for number in range(100):
            one.publish("a", f"x{number}")
            two.publish("a", f"y{number}")
        for peer in peers:
            seen = texts(peer, 200)
            for name in "xy":
                assert [text for text in seen if text[0] == name] == [f"{name}{number}" for number in range(100)]
        three.publish("a", b"bytes")
        for number, peer in enumerate(peers):
            assert peer.frame() == (0x82, b"bytes")
            nothing_more(room, peer, number)
        assert [topics.statistics().published for topics in (one, two, three)] == [100, 100, 1]
        wait_until(lambda: [topics.statistics().received for topics in (one, two, three)] == [101, 101, 200])


@patched
def test_with_a_history_all_see_one_order() -> None:
    with running(any_kind()) as server, shared(server, history=1000) as (one, two), Room() as room:
        peers = [room.join() for _ in range(3)]
        for topics, session in zip((one, one, two), room.sessions, strict=True):
            topics.subscribe(session, "a")
        for number in range(100):
            one.publish("a", f"x{number}")
            two.publish("a", f"y{number}")
        seen = [texts(peer, 200) for peer in peers]
        assert seen[0] == seen[1] == seen[2]
        for name in "xy":
            assert [text for text in seen[0] if text[0] == name] == [f"{name}{number}" for number in range(100)]
        one.flush(10)
        assert one.position("a") == two.position("a")
        position = one.position("a")
        assert position is not None
        assert position.offset == 200


@patched
def test_who_comes_back_to_another_process_gets_what_it_missed() -> None:
    def envelope(topic: str, message: Any, position: Position | None) -> str:
        return f"{position} {message}"

    options: dict[str, Any] = {"history": {"room/*": 50}, "envelope": envelope}
    with running(any_kind()) as server, shared(server, **options) as (one, two), Room() as room:
        first = room.join()
        subscribed = one.subscribe(room.sessions[0], "room/7")
        assert subscribed.position is not None
        for number in range(20):
            one.publish("room/7", str(number))
        seen = texts(first, 20)
        last = seen[4].partition(" ")[0]
        room.sessions[0].terminate()
        wait_until(lambda: one.count("room/7") == 0)
        again = room.join()
        result = two.subscribe(room.sessions[1], "room/7", since=last)
        assert (result.recovered, result.missed) == (True, 15)
        two.publish("room/7", "live")
        got = texts(again, 16)
        assert got[:15] == seen[5:]
        assert got[15] == f"{result.position._replace(offset=21)} live"  # type: ignore[union-attr]
        for number in range(60):
            two.publish("room/7", str(number))
        # Until the last one has come back from Redis.
        assert texts(again, 60)[-1].partition(" ")[2] == "59"
        late = room.join()
        assert two.subscribe(room.sessions[2], "room/7", since=last).recovered is False
        assert one.subscribe(room.sessions[2], "elsewhere", since=last) == (None, False, 0)
        assert two.subscribe(room.sessions[2], "room/7", since=last, recent=3)[1:] == (False, 3)
        assert [text.partition(" ")[2] for text in texts(late, 3)] == ["57", "58", "59"]
        nothing_more(room, late, 2)


@patched
def test_recovery_while_others_publish() -> None:
    with running(any_kind()) as server, shared(server, history=2000) as (one, two), Room(write_limit=1000) as room:
        room.join()
        start = one.subscribe(room.sessions[0], "a").position
        for number in range(300):
            two.publish("a", f"{number:05}")
        two.flush(10)

        def publish() -> None:
            for number in range(300, 600):
                two.publish("a", f"{number:05}")
                gevent.sleep(0)

        peer = room.join()
        publisher = gevent.spawn(publish)
        result = one.subscribe(room.sessions[1], "a", since=start)
        assert result.recovered
        publisher.get()
        assert texts(peer, 600) == [f"{number:05}" for number in range(600)]
        nothing_more(room, peer, 1)


@patched
def test_presence_everywhere() -> None:
    def told(event: Presence) -> str:
        return f"{event.event} {event.member.name}"

    with running(any_kind()) as server, shared(server) as (one, two), Room() as room:
        asks, _ = room.join(), room.join()
        one.subscribe(room.sessions[0], "a", on_presence=told)
        two.subscribe(room.sessions[1], "a", member="Bob é 5")
        assert texts(asks, 1) == ["join Bob é 5"]
        one.subscribe(room.sessions[0], "a", member="Ada", on_presence=told)
        assert texts(asks, 1) == ["join Ada"]
        wait_until(lambda: [member.name for member in two.presence("a")] == ["Bob é 5", "Ada"])
        # Its own are known at once, and gone at once.
        assert "Ada" in [member.name for member in one.presence("a")]
        room.sessions[1].terminate()
        assert two.presence("a") == [] or two.count("a") == 0
        assert texts(asks, 1) == ["leave Bob é 5"]
        wait_until(lambda: [member.name for member in two.presence("a")] == ["Ada"])
        one.unsubscribe(room.sessions[0], "a")
        assert one.presence("a") == []
        wait_until(lambda: two.presence("a") == [])


@patched
def test_without_redis_all_goes_on_here_and_later_everywhere() -> None:
    """The server is killed and comes back empty: no session is lost, and all is told and counted."""

    def gap(event: Gap) -> str:
        return f"gap in {event.topic}"

    with running(any_kind()) as server, shared(server, history={"h*": 100}) as (one, two), Room() as room:
        peers = [room.join() for _ in range(2)]
        for topics, session in zip((one, two), room.sessions, strict=True):
            for topic in ("plain", "history"):
                topics.subscribe(session, topic, on_gap=gap)
        one.publish("plain", "before")
        assert [texts(peer, 1) for peer in peers] == [["before"]] * 2
        server.kill()
        wait_until(lambda: not one._broker.available and not two._broker.available)  # type: ignore[union-attr]
        for topic in ("plain", "history"):
            one.publish(topic, f"only here: {topic}")
        assert texts(peers[0], 2) == ["only here: plain", "only here: history"]
        late = room.join()
        assert one.subscribe(room.sessions[2], "history", since=Position(1, 1)).recovered is False
        with pytest.raises(ConnectionError):
            one.flush(5)
        assert one.statistics().unsent == 2
        server.start()
        wait_until(lambda: one._broker.available and two._broker.available)  # type: ignore[union-attr]
        # Others are also told how many are missing: of the history in any case, as that stands in it.
        assert sorted(texts(peers[0], 2)) == ["gap in history", "gap in plain"]
        seen = texts(peers[1], 3)
        wait_until(lambda: not one._broker._running.unsettled)  # type: ignore[union-attr]
        room.sessions[1].send("the end")
        while seen[-1] != "the end":
            seen += texts(peers[1], 1)
        assert seen.count("gap in history") == 2
        assert seen.count("gap in plain") in (1, 2)
        for topic in ("plain", "history"):
            two.publish(topic, f"again: {topic}")
        for peer in peers:
            assert sorted(texts(peer, 2)) == ["again: history", "again: plain"]
        assert texts(late, 1) == ["again: history"]
        statistics = one.statistics()
        assert (statistics.published, statistics.unsent, statistics.gaps) == (3, 2, 2)
        for number in (0, 1):
            nothing_more(room, peers[number], number)


@patched
def test_who_comes_back_over_a_gap_is_told_so() -> None:
    def gap(event: Gap) -> str:
        return f"gap of {event.lost}"

    def envelope(topic: str, message: Any, position: Position | None) -> str:
        return f"{message} {position.offset if position else '-'}"

    options: dict[str, Any] = {"history": 100, "envelope": envelope}
    with (
        running(any_kind()) as server,
        cuttable(server) as way,
        shared(server, 1, **options) as (two,),
        Room() as room,
    ):
        one = Topics(way.url, **options)
        peers = [room.join() for _ in range(3)]
        for topics, session in zip((one, two, two), room.sessions, strict=True):
            start = topics.subscribe(session, "a", on_gap=gap).position
        one.publish("a", "before")
        assert [texts(peer, 1) for peer in peers] == [["before 1"]] * 3
        two.unsubscribe(room.sessions[2], "a")
        way.cut()
        wait_until(lambda: one._broker._running.link(0).commands.refuses)  # type: ignore[union-attr]
        for number in range(10):
            one.publish("a", f"{number}")
        assert texts(peers[0], 10) == [f"{number} -" for number in range(10)]
        way.is_open = True
        assert texts(peers[1], 1) == ["gap of 10"]
        one.publish("a", "after")
        assert texts(peers[0], 1) == texts(peers[1], 1) == ["after 3"]
        assert two.statistics().lost == 10
        # Who was away is sent what there is, and told that this is not all; the last ones too, but not twice.
        assert start is not None
        since = start._replace(offset=1)
        for count, recent in enumerate((0, 50)):
            result = two.subscribe(room.sessions[2], "a", since=since, recent=recent)
            assert result == (start._replace(offset=3), False, 1), count
            assert texts(peers[2], 1) == ["after 3"]
        assert two.subscribe(room.sessions[2], "a", since=result.position) == (result.position, True, 0)
        assert one.subscribe(room.sessions[2], "a", recent=50)[1:] == (True, 2)
        assert texts(peers[2], 2) == ["before 1", "after 3"]
        one.unsubscribe(room.sessions[2], "a")
        for number in range(3):
            nothing_more(room, peers[number], number)
        one.close()


@patched
def test_a_publisher_hears_itself_in_order() -> None:
    """Also where Redis has a message that it could not tell us of before it was lost."""
    with (
        running(any_kind()) as server,
        cuttable(server) as way,
        shared(server, 1, history=100) as (two,),
        Room() as room,
    ):
        one = Topics(way.url, history=100)
        peers = [room.join() for _ in range(2)]
        for topics, session in zip((one, two), room.sessions, strict=True):
            topics.subscribe(session, "a")
        one.publish("a", "0")
        assert [texts(peer, 1) for peer in peers] == [["0"]] * 2
        link = one._broker._running.link(0)  # type: ignore[union-attr]
        way.cut(listening=True)
        one.publish("a", "1")
        assert texts(peers[1], 1) == ["1"]
        way.cut(listening=False)
        wait_until(lambda: link.commands.refuses)
        one.publish("a", "2")
        assert texts(peers[0], 2) == ["1", "2"]
        way.is_open = True
        wait_until(lambda: one._broker.available)  # type: ignore[union-attr]
        one.publish("a", "3")
        assert [texts(peer, 1) for peer in peers] == [["3"]] * 2
        for number in range(2):
            nothing_more(room, peers[number], number)
        one.close()


@patched
def test_channels_are_subscribed_only_while_somebody_listens() -> None:
    with running(any_kind()) as server, shared(server, 1) as (topics,), Room() as room, server.client() as client:
        peers = [room.join() for _ in range(2)]
        assert client.pubsub_channels("*") == []
        for session in room.sessions:
            for number in range(50):
                topics.subscribe(session, f"topic {number}")
        assert len(client.pubsub_channels("*")) == 50
        for number in range(50):
            topics.unsubscribe(room.sessions[0], f"topic {number}")
        assert len(client.pubsub_channels("*")) == 50
        peers[1].reset()
        wait_until(lambda: client.pubsub_channels("*") == [])
        assert topics._topics == {}
        topics.publish("topic 1", "x")
        topics.flush(10)
        # That which listens, that which publishes, and this one.
        assert client.info("clients")["connected_clients"] == 3


@patched
def test_namespaces_are_apart() -> None:
    with (
        running(any_kind()) as server,
        shared(server, 1, namespace="one") as (one,),
        shared(server, 1, namespace="two") as (two,),
        Room() as room,
    ):
        peers = [room.join() for _ in range(2)]
        one.subscribe(room.sessions[0], "a", member="Ada")
        two.subscribe(room.sessions[1], "a", member="Bob")
        one.publish("a", "to one")
        two.publish("a", "to two")
        assert [texts(peer, 1) for peer in peers] == [["to one"], ["to two"]]
        assert [member.name for member in one.presence("a")] == ["Ada"]


@patched
def test_the_command_publishes() -> None:
    def envelope(topic: str, message: Any, position: Position | None) -> str:
        return json.dumps([message, position is not None])

    def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "geventws", "publish", *arguments], input=given, capture_output=True, check=False
        )

    options: dict[str, Any] = {"namespace": "app", "history": {"h": 5}}
    with running(any_kind()) as server, shared(server, 1, **options) as (topics,), Room() as room:
        url = ("--url", server.url, "--namespace", "app")
        peer = room.join()
        topics.subscribe(room.sessions[0], "news")
        topics.subscribe(room.sessions[0], "h")
        assert run(*url, "news", "hello").returncode == 0
        assert texts(peer, 1) == ["hello"]
        assert run(*url, "news", "-", given="from stdin é".encode()).returncode == 0
        assert texts(peer, 1) == ["from stdin é"]
        assert run(*url, "--binary", "news", "-", given=b"\xff\0").returncode == 0
        assert peer.frame() == (0x82, b"\xff\0")
        assert run(*url, "--history", "5", "h", "kept").returncode == 0
        assert texts(peer, 1) == ["kept"]
        wait_until(lambda: (topics.position("h") or Position(0, 0)).offset == 1)
        done = run(*url, "news", "-", given=b"\xff")
        assert (done.returncode, b"not UTF-8" in done.stderr) == (2, True), done.stderr
        server.kill()
        done = run(*url, "news", "lost")
        assert done.returncode == 1
        assert b"not published" in done.stderr
        assert b"Traceback" not in done.stderr


@patched
def test_a_position_of_a_topic_without_subscribers_here() -> None:
    with running(any_kind()) as server, shared(server, history=10) as (one, two):
        one.publish("a", "x")
        one.flush(10)
        position = two.position("a")
        assert position is not None
        assert position.offset == 1
        assert two.position("b") is not None
