"""Topics over a real Redis or Valkey, with sessions: several `Topics` of one process stand for several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.monkey
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

pytest.importorskip("redis")

from geventws import Position, Topics, UsageError
from geventws.topics import Gap, Presence, threads
from tests import redis_server
from tests.patched import end_process, patched
from tests.peer import Peer, wait_until
from tests.redis_server import RedisServer, any_kind, cuttable, running
from tests.test_broadcasting import Room, elsewhere, refuses_all

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


@contextmanager
def lagging(server: RedisServer) -> Iterator[tuple[str, Event]]:
    """The URL of a way to a server, on which what is published comes only while the event is set."""
    goes_on = Event()
    goes_on.set()

    def bring(backend: Any, client: Any) -> None:
        listens = False
        while data := backend.recv(65536):
            listens = listens or b"subscribe" in data
            if listens:
                goes_on.wait()
            client.sendall(data)

    def handle(client: Any, address: Any) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as backend:
            back = gevent.spawn(bring, backend, client)
            while data := client.recv(65536):
                backend.sendall(data)
            back.kill()

    front = StreamServer(("127.0.0.1", 0), handle)
    front.start()
    try:
        yield f"redis://127.0.0.1:{front.server_port}/0", goes_on
    finally:
        goes_on.set()
        front.stop(timeout=1)


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
def test_who_comes_to_a_process_that_lags_behind() -> None:
    """It has seen more than this process has: nothing comes twice, nothing is missing, and it is told so."""
    with (
        running(any_kind()) as server,
        lagging(server) as (url, goes_on),
        shared(server, 1, history=100) as (quick,),
        Room() as room,
    ):
        slow = Topics(url, history=100)
        try:
            stays, moves, returns = (room.join() for _ in range(3))
            start = slow.subscribe(room.sessions[0], "a").position
            assert start is not None
            quick.publish("a", "one")
            assert texts(stays, 1) == ["one"]
            goes_on.clear()
            for text in ("two", "three", "four"):
                quick.publish("a", text)
            quick.flush(10)
            assert slow.position("a") == start._replace(offset=1)
            seen = start._replace(offset=3)
            assert slow.subscribe(room.sessions[1], "a", since=seen) == (seen, True, 0)
            # Redis has no such message either.
            future = slow.subscribe(room.sessions[2], "a", since=start._replace(offset=5))
            assert future == (start._replace(offset=1), False, 0)
            goes_on.set()
            quick.publish("a", "five")
            assert texts(stays, 4) == texts(returns, 4) == ["two", "three", "four", "five"]
            assert texts(moves, 2) == ["four", "five"]
            nothing_more(room, moves, 1)
            assert slow._local.topics["a"]._ahead is None
        finally:
            slow.close()


@patched
def test_who_comes_to_a_process_that_lags_behind_a_new_history() -> None:
    """What it has seen is of an epoch that this process has not heard of; it is not sent what came before that."""
    with (
        running(any_kind()) as server,
        lagging(server) as (url, goes_on),
        shared(server, 1, history=100) as (quick,),
        Room() as room,
        server.client() as client,
    ):
        slow = Topics(url, history=100)
        try:
            stays, moves = (room.join() for _ in range(2))
            start = slow.subscribe(room.sessions[0], "a").position
            goes_on.clear()
            quick.publish("a", "old")
            quick.flush(10)
            client.delete("geventws:{a}:log")
            quick.publish("a", "new")
            quick.publish("a", "newer")
            quick.flush(10)
            latest = quick.position("a")
            assert latest is not None
            assert start is not None
            assert (latest.epoch != start.epoch, latest.offset) == (True, 2)
            seen = latest._replace(offset=1)
            assert slow.subscribe(room.sessions[1], "a", since=seen) == (seen, True, 0)
            goes_on.set()
            assert texts(stays, 3) == ["old", "new", "newer"]
            assert texts(moves, 1) == ["newer"]
            nothing_more(room, moves, 1)
        finally:
            slow.close()


@patched
def test_another_thread_publishes() -> None:
    """While Redis stalls: in its order, and with no more in memory than two limits say."""
    size = 10_000
    taken, heard = list[int](), list[Any]()
    with running(any_kind()) as server, shared(server) as (one, two):
        two.listen("a", heard.append)
        one.publish("a", b"%06d" % 0)
        wait_until(lambda: len(heard) == 1)
        server.signal(signal.SIGSTOP)

        def publish() -> None:
            for number in range(1, 1000):
                one.publish("a", b"%06d" % number + b"x" * size)
                taken.append(number)

        publishing = gevent.get_hub().threadpool.spawn(publish)
        wait_until(lambda: one._home._blocked or publishing.ready())
        assert len(taken) * size < 4 * 1024 * 1024
        server.signal(signal.SIGCONT)
        publishing.get()
        one.flush(10)
        wait_until(lambda: len(heard) == 1000)
        assert [int(message[:6]) for message in heard] == list(range(1000))
        assert two.statistics().lost == 0


@patched
def test_a_fork_does_not_publish_what_another_thread_has_handed_over() -> None:
    get_original = gevent.monkey.get_original
    with running(any_kind()) as server, shared(server) as (one, two):
        heard: list[str | bytes] = []
        two.listen("a", heard.append)
        one.flush()
        handed_over = get_original("_thread", "allocate_lock")()
        handed_over.acquire()

        def publish() -> None:
            one.publish("a", "from a thread")
            handed_over.release()

        get_original("_thread", "start_new_thread")(publish, ())
        handed_over.acquire()
        child = os.fork()
        if child == 0:
            try:
                gevent.reinit()
                gevent.sleep(0.1)
            finally:
                assert one._broker is not None
                os._exit(one._broker.started is not None)
        assert os.waitpid(child, 0)[1] == 0
        one.flush()
        one.publish("a", "the end")
        wait_until(lambda: "the end" in heard)
        assert heard == ["from a thread", "the end"]


@patched
def test_the_first_use_is_in_another_thread() -> None:
    with running(any_kind()) as server, shared(server) as (one, two), Room() as room:
        peers = [room.join() for _ in range(2)]
        two.subscribe(room.sessions[1], "a")
        gevent.get_hub().threadpool.apply(lambda: one.publish("a", "from a thread"))
        assert texts(peers[1], 1) == ["from a thread"]
        one.subscribe(room.sessions[0], "a", member="Ada")
        gevent.get_hub().threadpool.apply(lambda: one.publish("a", "again"))
        one.publish("a", "from here")
        assert [sorted(texts(peer, 2)) for peer in peers] == [["again", "from here"]] * 2
        assert [member.name for member in one.presence("a")] == ["Ada"]
        one.flush(10)

        def flush() -> None:
            with pytest.raises(UsageError, match="thread"):
                one.flush()

        gevent.get_hub().threadpool.apply(flush)


@patched
def test_the_first_use_is_in_another_thread_while_the_first_one_is_busy() -> None:
    """Nothing is taken of which nobody knows who would send it."""
    refused = list[BaseException]()

    def publish() -> None:
        try:
            one.publish("a", "from a thread")
        except BaseException as error:
            refused.append(error)

    before, threads.ANSWER_SECONDS = threads.ANSWER_SECONDS, 0.05
    try:
        with running(any_kind()) as server, shared(server, 1) as (one,):
            thread = gevent.monkey.get_original("_thread", "start_new_thread")
            thread(publish, ())
            while not refused:
                pass
            assert isinstance(refused[0], UsageError)
            assert "flush()" in str(refused[0])
            one.flush()
            gevent.get_hub().threadpool.apply(publish)
            one.flush(10)
            assert (len(refused), one.statistics().published) == (1, 1)
    finally:
        threads.ANSWER_SECONDS = before


def test_a_script_that_tries_to_listen_can_still_publish() -> None:
    """This process is not patched: all its threads publish, each by itself."""
    with running(any_kind()) as server, server.client() as client, shared(server, 1, history=5) as (topics,):
        with pytest.raises(UsageError, match="patched"):
            topics.listen("a", print)
        with elsewhere(lambda: topics.publish("a", "from a thread")) as caught:
            pass
        topics.publish("a", "from here")
        assert caught == []
        assert client.xlen("geventws:{a}:log") == 2


@patched
def test_who_is_woken_and_killed_leaves_no_channel() -> None:
    with running(any_kind()) as server, shared(server, 1) as (topics,), Room() as room, server.client() as client:
        room.join()
        topics.subscribe(room.sessions[0], "stays")
        for number in range(20):
            go = Event()

            def subscribe(go: Event = go, number: int = number) -> None:
                go.wait()
                topics.subscribe(room.sessions[0], f"topic {number}")

            greenlet = gevent.spawn(subscribe)
            gevent.sleep(0)
            go.set()
            greenlet.kill(block=False)
            greenlet.join()
        topics.subscribe(room.sessions[0], "last")
        topics.unsubscribe(room.sessions[0], "last")
        wait_until(lambda: client.pubsub_channels() == [b"geventws:{stays}"])
        assert list(topics._local.topics) == ["stays"]


@patched
def test_a_listener_that_publishes() -> None:
    """All get the messages in their order, here and elsewhere, and nobody the answer before the question."""
    with running(any_kind()) as server, Room() as room:
        for history in (0, 10):
            with shared(server, history=history, namespace=f"n{history}") as (one, two):
                heard, heard_elsewhere = list[Any](), list[Any]()

                def answer(message: Any, one: Topics = one, heard: list[Any] = heard) -> None:
                    heard.append(message)
                    if len(heard) < 4:
                        one.publish("a", str(len(heard)))

                peers = [room.join() for _ in range(2)]
                for topics, session in zip((one, two), room.sessions[-2:], strict=True):
                    topics.subscribe(session, "a")
                one.listen("a", answer)
                two.listen("a", heard_elsewhere.append)
                one.publish("a", "0")
                expected = ["0", "1", "2", "3"]
                assert [texts(peer, 4) for peer in peers] == [expected] * 2
                wait_until(lambda heard=heard_elsewhere: len(heard) == 4)  # type: ignore[misc]
                assert heard == heard_elsewhere == expected


@patched
def test_an_envelope_that_fails_keeps_nothing_from_other_processes() -> None:
    def fail(*_: Any) -> str:
        raise ValueError

    with running(any_kind()) as server, Room() as room:
        for history in (0, 10):
            options: dict[str, Any] = {"history": history, "namespace": f"n{history}"}
            with (
                shared(server, 1, envelope=fail, **options) as (one,),
                shared(server, 1, **options) as (two,),
            ):
                peers = [room.join() for _ in range(2)]
                for topics, session in zip((one, two), room.sessions[-2:], strict=True):
                    topics.subscribe(session, "a")
                one.publish("a", "x")
                assert texts(peers[1], 1) == ["x"]
                one.flush(10)
                nothing_more(room, peers[0], -2)


@patched
def test_a_closed_one() -> None:
    with running(any_kind()) as server, shared(server, 1) as (topics,), Room() as room:
        room.join()
        topics.subscribe(room.sessions[0], "a", member="Ada")
        topics.close()
        refuses_all(topics, room.sessions[0])
        room.sessions[0].terminate()


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
        wait_until(lambda: not one._broker.here().available and not two._broker.here().available)  # type: ignore[union-attr]
        for topic in ("plain", "history"):
            one.publish(topic, f"only here: {topic}")
        assert texts(peers[0], 2) == ["only here: plain", "only here: history"]
        late = room.join()
        assert one.subscribe(room.sessions[2], "history", since=Position(1, 1)).recovered is False
        with pytest.raises(ConnectionError):
            one.flush(5)
        assert one.statistics().unsent == 2
        server.start()
        wait_until(lambda: one._broker.here().available and two._broker.here().available)  # type: ignore[union-attr]
        # Others are also told how many are missing: of the history in any case, as that stands in it.
        assert sorted(texts(peers[0], 2)) == ["gap in history", "gap in plain"]
        seen = texts(peers[1], 3)
        wait_until(lambda: not one._broker.here().unsettled)  # type: ignore[union-attr]
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
def test_a_process_that_only_listens_counts_that_its_connection_was_made_again() -> None:
    with running(any_kind()) as server, shared(server) as (publisher, listener), Room() as room:
        peer = room.join()
        listener.subscribe(room.sessions[0], "a")
        assert listener._broker is not None
        publisher.publish("a", "before")
        assert texts(peer, 1) == ["before"]
        server.kill()
        here = listener._broker.here()
        wait_until(lambda: not here.available)
        server.start()
        wait_until(lambda: here.available)
        wait_until(lambda: listener.statistics().reconnects == 1)


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
        wait_until(lambda: one._broker.here().link(0).commands.refuses)  # type: ignore[union-attr]
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
        link = one._broker.here().link(0)  # type: ignore[union-attr]
        way.cut(listening=True)
        one.publish("a", "1")
        assert texts(peers[1], 1) == ["1"]
        way.cut(listening=False)
        wait_until(lambda: link.commands.refuses)
        one.publish("a", "2")
        assert texts(peers[0], 2) == ["1", "2"]
        way.is_open = True
        wait_until(lambda: one._broker.here().available)  # type: ignore[union-attr]
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
        assert topics._local.topics == {}
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
        before = topics.position("h")
        assert run(*url, "--history", "5", "h", "kept").returncode == 0
        # Without being told of the history too, where there is one.
        assert run(*url, "h", "kept as well").returncode == 0
        assert texts(peer, 2) == ["kept", "kept as well"]
        wait_until(lambda: (topics.position("h") or Position(0, 0)).offset == 2)
        assert topics.subscribe(room.sessions[0], "h", since=before)[1:] == (True, 2)
        assert texts(peer, 2) == ["kept", "kept as well"]
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
