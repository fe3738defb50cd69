"""Topics within one process, over real sockets."""

from __future__ import annotations

import gc
import json
import os
import weakref
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import gevent
import gevent.monkey
import pytest
from gevent.event import Event

from geventws import ConnectionClosed, PermessageDeflate, Position, Topics, UsageError, WebSockets
from geventws.topics import Gap, Member, Presence
from geventws.topics.audience import Audience
from geventws.topics.history import History, HistorySizes
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.test_broadcasting import NotedTransport, Room, elsewhere, noted, refuses_all
from tests.test_forks import forked
from tests.wire import close_frame, frame

__all__ = ["noted"]

TEXT, BINARY = 0x81, 0x82


def texts(peer: Peer, count: int) -> list[str]:
    """The next messages of a peer, which are text."""
    frames = [peer.frame() for _ in range(count)]
    assert all(first == TEXT for first, _ in frames), frames
    return [payload.decode() for _, payload in frames]


def nothing_more(peer: Peer, session: Any) -> None:
    """Asserts that nothing but this is on its way to the peer."""
    session.send("the end")
    assert peer.frame() == (TEXT, b"the end")


class TestSubscribing:
    def test_only_subscribers_get_it(self) -> None:
        topics = Topics()
        with Room() as room:
            peers = [room.join() for _ in range(3)]
            first, second, third = room.sessions
            topics.subscribe(first, "a")
            topics.subscribe(second, "a")
            topics.subscribe(third, "b")
            topics.publish("a", "to a")
            topics.publish("b", b"to b")
            topics.publish("c", "to nobody")
            assert [peer.frame() for peer in peers] == [(TEXT, b"to a"), (TEXT, b"to a"), (BINARY, b"to b")]
            assert (topics.count("a"), topics.count("b"), topics.count("c")) == (2, 1, 0)
            assert set(topics.sessions("a")) == {first, second}
            for peer, session in zip(peers, room.sessions, strict=True):
                nothing_more(peer, session)

    def test_it_opens_the_session(self) -> None:
        topics = Topics()
        app = topics_app(lambda session: topics.subscribe(session, "a"))
        with serving(app) as server, Peer(server) as peer:
            peer.accepted()
            wait_until(lambda: topics.count("a") == 1)
            topics.publish("a", "hello")
            assert peer.frame() == (TEXT, b"hello")

    def test_unsubscribe(self) -> None:
        topics = Topics()
        with Room() as room:
            peer = room.join()
            (session,) = room.sessions
            topics.subscribe(session, "a")
            assert topics.unsubscribe(session, "a") is True
            assert topics.unsubscribe(session, "a") is False
            assert topics.unsubscribe(session, "never") is False
            topics.publish("a", "missed")
            nothing_more(peer, session)

    def test_twice_is_once(self) -> None:
        topics = Topics()
        with Room() as room:
            peer = room.join()
            (session,) = room.sessions
            topics.subscribe(session, "a")
            topics.subscribe(session, "a")
            assert topics.count("a") == 1
            topics.publish("a", "once")
            assert peer.frame() == (TEXT, b"once")
            nothing_more(peer, session)
            topics.unsubscribe(session, "a")
            assert topics.count("a") == 0

    @pytest.mark.parametrize("way", ["close", "reset", "terminate", "server"])
    def test_who_leaves_is_unsubscribed(self, way: str) -> None:
        topics = Topics()
        with Room() as room:
            leaving, stays = room.join(), room.join()
            for session in room.sessions:
                for topic in ("a", "b", "c"):
                    topics.subscribe(session, topic, member="somebody")
            if way == "close":
                leaving.send(close_frame())
                leaving.closed_with(1000)
            elif way == "reset":
                leaving.reset()
            elif way == "terminate":
                room.sessions[0].terminate()
            else:
                room.sessions[0].start_close(4000)
                leaving.closed_with(4000)
            wait_until(lambda: topics.count("b") == 1)
            assert [topics.count(topic) for topic in ("a", "b", "c")] == [1, 1, 1]
            assert [len(topics.presence(topic)) for topic in ("a", "b", "c")] == [1, 1, 1]
            topics.publish("a", "still here")
            assert stays.frame() == (TEXT, b"still here")

    def test_one_that_has_ended(self) -> None:
        topics = Topics()
        with Room() as room:
            room.join()
            (session,) = room.sessions
            session.terminate()
            with pytest.raises(ConnectionClosed):
                topics.subscribe(session, "a")
            assert topics.count("a") == 0

    def test_nothing_is_left_behind(self) -> None:
        """A topic that everybody has left takes no memory, nor do sessions that have gone."""
        topics = Topics()
        with Room() as room:
            room.join()
            (session,) = room.sessions
            for number in range(1000):
                topics.subscribe(session, f"topic {number}", member="m", on_presence=str, on_gap=str)
                topics.unsubscribe(session, f"topic {number}")
            topics.subscribe(session, "last", member="m")
            assert len(topics._local.topics) == 1
            session.terminate()
            wait_until(lambda: not topics._local.topics)
            assert session.connection.subscriptions is None

    def test_many_topics_of_a_session_in_any_order(self) -> None:
        topics = Topics()
        with Room() as room:
            peer = room.join()
            (session,) = room.sessions
            names = [f"topic {number}" for number in range(50)]
            for name in names:
                topics.subscribe(session, name)
            for name in names[::3]:
                topics.unsubscribe(session, name)
            for name in names:
                topics.publish(name, name)
            left = [name for name in names if name not in names[::3]]
            assert texts(peer, len(left)) == left

    @pytest.mark.parametrize(
        ("topic", "error"),
        [("", ValueError), ("x" * 256, ValueError), ("é" * 128, ValueError), ("\udc80", ValueError), (b"a", TypeError)],
    )
    def test_what_is_no_topic(self, topic: Any, error: type[Exception]) -> None:
        topics = Topics()
        with Room() as room:
            room.join()
            with pytest.raises(error, match="topic"):
                topics.subscribe(room.sessions[0], topic)
            with pytest.raises(error, match="topic"):
                topics.publish(topic, "message")

    def test_names_are_only_names(self) -> None:
        topics = Topics()
        names = ["*", "x*", "[a]", "a\r\nb", "nul\0", "x" * 255, "a:b", "{a}", " "]
        with Room() as room:
            peer = room.join()
            for name in names:
                topics.subscribe(room.sessions[0], name)
            for number, name in enumerate(names):
                topics.publish(name, str(number))
            assert texts(peer, len(names)) == [str(number) for number in range(len(names))]

    def test_raw_sessions_are_not_for_topics(self) -> None:
        topics = Topics()
        with Room(raw=True) as room:
            room.join()
            with pytest.raises(TypeError, match="session must be a default session"):
                topics.subscribe(room.sessions[0], "a")
        with pytest.raises(TypeError, match="session must be a default session"):
            topics.subscribe("session", "a")  # type: ignore[arg-type]

    def test_a_session_of_another_thread(self) -> None:
        topics = Topics()

        def subscribe() -> None:
            topics.subscribe(room.sessions[0], "a")

        with Room() as room:
            room.join()
            with elsewhere(subscribe) as caught:
                pass
            assert isinstance(caught[0], UsageError)
            topics.subscribe(room.sessions[0], "a")
            with elsewhere(lambda: topics.unsubscribe(room.sessions[0], "a")) as caught:
                pass
            assert isinstance(caught[0], UsageError)
            assert topics.count("a") == 1

    def test_subscribing_while_it_is_closed(self) -> None:
        topics = Topics(history=5)
        with Room(write_limit=1000) as room:
            for _ in range(5):
                topics.publish("a", b"x" * 1_000_000)
            peer = room.join()
            subscribing = gevent.spawn(topics.subscribe, room.sessions[0], "a", recent=5)
            gevent.sleep(0)
            topics.close()
            for _ in range(5):
                peer.frame()
            with pytest.raises(UsageError, match="closed"):
                subscribing.get()
            assert topics._local.topics == {}
            assert room.sessions[0].connection.subscriptions is None


def topics_app(handler: Callable[[Any], Any]) -> Any:
    """An app of one route, which reads on after ``handler``."""
    app = WebSockets()

    @app.route("/")
    def serve(session: Any) -> None:
        handler(session)
        for _ in session:
            pass

    return app


class TestPublishing:
    def test_order(self) -> None:
        topics = Topics()
        with Room() as room:
            peers = [room.join() for _ in range(3)]
            for session in room.sessions:
                topics.subscribe(session, "a")
            for number in range(200):
                topics.publish("a", str(number))
            for peer in peers:
                assert texts(peer, 200) == [str(number) for number in range(200)]

    def test_from_another_thread(self) -> None:
        topics = Topics()
        with Room() as room:
            peer = room.join()
            topics.subscribe(room.sessions[0], "a")

            def publish() -> None:
                for number in range(100):
                    topics.publish("a", str(number))

            thread = gevent.monkey.get_original("threading", "Thread")(target=publish)
            thread.start()
            assert texts(peer, 100) == [str(number) for number in range(100)]
            gevent.get_hub().threadpool.apply(thread.join)

    def test_a_thread_waits_while_too_much_does(self) -> None:
        """Its messages stay in their order, and take no more memory than a limit says."""
        topics, heard, taken = Topics(), list[Any](), list[int]()
        topics.listen("a", heard.append)
        size = 10_000

        def publish() -> None:
            for number in range(1000):
                topics.publish("a", b"%06d" % number + b"x" * size)
                taken.append(number)

        thread = gevent.monkey.get_original("threading", "Thread")(target=publish)
        thread.start()
        # The hub has no turn here.
        while not topics._home._blocked:
            assert len(taken) * size < 2 * 1024 * 1024
        assert heard == []
        wait_until(lambda: len(heard) == 1000)
        assert [int(message[:6]) for message in heard] == list(range(1000))
        gevent.get_hub().threadpool.apply(thread.join)

    def test_flush_waits_for_other_threads(self) -> None:
        topics, heard = Topics(), list[Any]()
        topics.listen("a", heard.append)
        with elsewhere(lambda: [topics.publish("a", str(number)) for number in range(100)]) as caught:
            pass
        assert (caught, heard) == ([], [])
        topics.flush()
        assert heard == [str(number) for number in range(100)]

    def test_a_thread_that_waits_when_it_is_closed(self) -> None:
        topics = Topics()
        topics.listen("a", lambda message: None)

        def publish() -> None:
            while True:
                topics.publish("a", b"x" * 500_000)

        with elsewhere(publish) as caught:
            while not topics._home._blocked:
                pass
            topics.close()
        assert isinstance(caught[0], UsageError)

    def test_from_the_hub(self) -> None:
        topics = Topics()
        with Room() as room:
            peer = room.join()
            topics.subscribe(room.sessions[0], "a")
            gevent.get_hub().loop.run_callback(topics.publish, "a", "from the hub")
            assert peer.frame() == (TEXT, b"from the hub")

    @pytest.mark.parametrize("slow", ["skip", "close"])
    def test_who_lags_behind_is_counted(self, slow: Any) -> None:
        topics = Topics(slow=slow)
        with Room(write_limit=64 * 1024) as room:
            stuck, good = room.join(), room.join()
            for session in room.sessions:
                topics.subscribe(session, "a")
            sent = 0
            while not topics.statistics().slow:
                topics.publish("a", b"f" * 60_000)
                assert good.frame() == (BINARY, b"f" * 60_000)
                sent += 1
                assert sent < 1000, "the kernel takes everything"
            statistics = topics.statistics()
            assert (statistics.published, statistics.delivered, statistics.slow) == (sent, 2 * sent - 1, 1)
            assert room.sessions[0].closed is (slow == "close")
            assert room.sessions[1].closed is False
            for _ in range(sent - 1):
                assert stuck.frame() == (BINARY, b"f" * 60_000)
            if slow == "close":
                stuck.closed_with(1013)
                wait_until(lambda: topics.count("a") == 1)

    def test_who_is_closed_for_lagging_is_no_subscriber_any_more(self) -> None:
        """Though its connection is there for up to ``timeout`` seconds more: nothing is put into it."""
        topics = Topics(slow="close")
        with Room(write_limit=64 * 1024) as room:
            room.join()
            topics.subscribe(room.sessions[0], "a")
            sent = 0
            while not topics.statistics().slow:
                topics.publish("a", b"f" * 60_000)
                sent += 1
                assert sent < 1000, "the kernel takes everything"
            assert room.sessions[0].closed
            assert (topics.count("a"), topics.sessions("a")) == (0, [])

    @pytest.mark.parametrize("message", [5, None, ["a"], {"a": 1}])
    def test_what_is_no_message(self, message: Any) -> None:
        with pytest.raises(TypeError, match="message must be str or bytes-like"):
            Topics().publish("a", message)

    def test_a_message_that_is_too_large(self) -> None:
        topics = Topics(max_message_size=10)
        topics.publish("a", "é" * 5)
        with pytest.raises(ValueError, match="max_message_size"):
            topics.publish("a", "é" * 6)
        Topics(max_message_size=None).publish("a", b"x" * 2_000_000)

    def test_envelope(self) -> None:
        calls = []

        def envelope(topic: str, message: Any, position: Position | None) -> str:
            calls.append((topic, message, position))
            return json.dumps([topic, message if isinstance(message, str) else message.decode()])

        topics = Topics(envelope=envelope)
        with Room() as room:
            peers = [room.join() for _ in range(3)]
            for session in room.sessions:
                topics.subscribe(session, "a")
            topics.publish("a", "text")
            topics.publish("a", b"bytes")
            topics.publish("nobody", "listens")
            for peer in peers:
                assert texts(peer, 2) == ['["a", "text"]', '["a", "bytes"]']
            assert calls == [("a", "text", None), ("a", b"bytes", None)]

    @pytest.mark.parametrize("history", [0, 10])
    @pytest.mark.parametrize("wrong", [lambda *_: 1 / 0, lambda *_: 5, lambda *_: "\ud800"])
    def test_an_envelope_that_fails(self, history: int, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Sessions miss the message, and others get it."""
        topics = Topics(history=history, envelope=lambda *of: wrong(*of) if of[1] == "wrong" else of[1])
        heard = list[Any]()
        topics.listen("a", heard.append)
        with Room() as room:
            peer = room.join()
            topics.subscribe(room.sessions[0], "a")
            topics.publish("a", "wrong")
            topics.publish("a", "right")
            assert texts(peer, 1) == ["right"]
            assert heard == ["wrong", "right"]
            if history:
                again = room.join()
                assert topics.subscribe(room.sessions[1], "a", recent=2).missed == 1
                assert texts(again, 1) == ["right"]
        assert "the envelope of topics failed" in caplog.text

    def test_compressed_sessions(self) -> None:
        topics = Topics()
        with Room(extensions=[PermessageDeflate(server_no_context_takeover=True)]) as room:
            compressed = room.join(Sec_WebSocket_Extensions="permessage-deflate")
            plain = room.join()
            for session in room.sessions:
                topics.subscribe(session, "a")
            text = "to be compressed " * 20
            topics.publish("a", text)
            assert plain.frame() == (TEXT, text.encode())
            first, payload = compressed.frame()
            assert first == 0xC1
            assert zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") == text.encode()

    def test_a_handler_that_publishes_to_its_own_topic(self) -> None:
        topics = Topics()

        def echo_to_all(session: Any) -> None:
            topics.subscribe(session, "all")
            for message in session:
                topics.publish("all", message)

        with serving(topics_app(echo_to_all)) as server, Peer(server) as one, Peer(server) as other:
            one.accepted()
            other.accepted()
            wait_until(lambda: topics.count("all") == 2)
            one.send(frame(TEXT, b"hello"))
            assert one.frame() == other.frame() == (TEXT, b"hello")


class TestHistory:
    def join(self, topics: Topics, room: Room, since: Any, **options: Any) -> tuple[Peer, Any]:
        """A new session of the room, subscribed; gives what `subscribe` did."""
        peer = room.join()
        return peer, topics.subscribe(room.sessions[-1], "a", since=since, **options)

    def test_who_comes_back_gets_what_it_missed(self) -> None:
        topics = Topics(history=10)
        with Room() as room:
            peer, subscribed = self.join(topics, room, None)
            assert subscribed.recovered
            assert subscribed.missed == 0
            assert subscribed.position is not None
            topics.publish("a", "one")
            topics.publish("a", b"two")
            since = subscribed.position._replace(offset=1)
            returned, again = self.join(topics, room, since)
            assert again == (subscribed.position._replace(offset=2), True, 1)
            topics.publish("a", "three")
            assert [returned.frame() for _ in range(2)] == [(BINARY, b"two"), (TEXT, b"three")]
            assert [peer.frame() for _ in range(3)] == [(TEXT, b"one"), (BINARY, b"two"), (TEXT, b"three")]
            assert topics.position("a") == since._replace(offset=3)

    def test_positions_count_up_by_one_in_what_is_sent(self) -> None:
        def envelope(topic: str, message: Any, position: Position | None) -> str:
            return f"{position} {message}"

        topics = Topics(history=100, envelope=envelope)
        with Room() as room:
            live, subscribed = self.join(topics, room, None)
            for number in range(20):
                topics.publish("a", str(number))
            returned, again = self.join(topics, room, str(subscribed.position))
            assert again.missed == 20
            epoch = again.position.epoch
            expected = [f"{epoch}-{number + 1} {number}" for number in range(20)]
            assert texts(live, 20) == texts(returned, 20) == expected

    @pytest.mark.parametrize(
        "since",
        ["nonsense", "", "1-", "1-2-3", "-1-5", "1" * 40 + "-1", Position(1, 0), "\u0661-\u0662"],
    )
    def test_positions_that_say_nothing(self, since: Any) -> None:
        topics = Topics(history=10)
        with Room() as room:
            topics.publish("a", "before")
            peer, subscribed = self.join(topics, room, since)
            assert not subscribed.recovered
            assert subscribed.missed == 0
            topics.publish("a", "after")
            assert peer.frame() == (TEXT, b"after")

    def test_what_has_been_dropped(self) -> None:
        topics = Topics(history=5)
        with Room() as room:
            _, subscribed = self.join(topics, room, None)
            for number in range(6):
                topics.publish("a", str(number))
            peer, again = self.join(topics, room, subscribed.position)
            assert (again.recovered, again.missed) == (False, 0)
            peer, again = self.join(topics, room, subscribed.position._replace(offset=1))
            assert (again.recovered, again.missed) == (True, 5)
            assert texts(peer, 5) == ["1", "2", "3", "4", "5"]
            # A position of the future is of another history.
            _, again = self.join(topics, room, subscribed.position._replace(offset=7))
            assert not again.recovered

    def test_without_a_history(self) -> None:
        topics = Topics()
        with Room() as room:
            _, subscribed = self.join(topics, room, Position(1, 1))
            assert subscribed == (None, False, 0)
            assert topics.position("a") is None
            _, subscribed = self.join(topics, room, None)
            assert subscribed == (None, True, 0)

    def test_nothing_is_missed_or_doubled_while_messages_come(self) -> None:
        """The one who comes back takes long to take what it missed, and more comes meanwhile."""
        topics = Topics(history=1000)
        with Room(write_limit=1000) as room:
            _, subscribed = self.join(topics, room, None)
            for number in range(100):
                topics.publish("a", f"{number:010}" * 1000)
            peer = room.join()
            result = gevent.spawn(topics.subscribe, room.sessions[-1], "a", since=subscribed.position)
            seen = []
            for number in range(100, 200):
                seen.append(peer.frame()[1][:10])
                topics.publish("a", f"{number:010}")
            seen += [peer.frame()[1][:10] for _ in range(100)]
            assert seen == [b"%010d" % number for number in range(200)]
            assert result.get().recovered
            nothing_more(peer, room.sessions[-1])

    def test_who_subscribes_again_while_messages_go_out(
        self, noted: type[NotedTransport], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it is about to get of them it gets from the history alone."""
        topics = Topics(history=10)
        with Room() as room:
            peers = [room.join() for _ in range(100)]
            for session in room.sessions:
                start = topics.subscribe(session, "a").position
            # Each step takes long, and so each of these takes several slices.
            monkeypatch.setattr(noted, "slow", True)
            for number in range(3):
                gevent.get_hub().loop.run_callback(topics.publish, "a", str(number) + "x" * 5000)
            gevent.sleep(0)
            last = topics._local.topics["a"].connections[-1]
            index = [session.connection for session in room.sessions].index(last)
            assert topics.statistics().delivered == 0
            assert topics.subscribe(room.sessions[index], "a", since=start)[1:] == (True, 3)
            topics.publish("a", "3")
            for peer in peers:
                assert [text[0] for text in texts(peer, 4)] == ["0", "1", "2", "3"]
            nothing_more(peers[index], room.sessions[index])

    def test_one_that_is_too_slow_for_the_history(self) -> None:
        topics = Topics(history=10)
        with Room(write_limit=1000) as room:
            _, subscribed = self.join(topics, room, None)
            for _ in range(10):
                topics.publish("a", b"x" * 1_000_000)
            peer = room.join()
            result = gevent.spawn(topics.subscribe, room.sessions[-1], "a", since=subscribed.position)
            gevent.sleep(0)
            for number in range(20):
                topics.publish("a", str(number))
            for _ in range(10):
                assert len(peer.frame()[1]) == 1_000_000
            assert result.get().recovered is False

    def test_recent_messages_for_somebody_new(self) -> None:
        topics = Topics(history=10)
        with Room() as room:
            start = topics.subscribe(room.join() and room.sessions[0], "a").position
            peer, subscribed = self.join(topics, room, None, recent=5)
            assert subscribed == (start, True, 0)
            for number in range(30):
                topics.publish("a", str(number))
            assert texts(peer, 30) == [str(number) for number in range(30)]
            for since, recent, recovered, expected in (
                (None, 5, True, range(25, 30)),
                (None, 50, True, range(20, 30)),
                (start, 3, False, range(27, 30)),
                ("nonsense", 3, False, range(27, 30)),
                (start._replace(offset=28), 5, True, range(28, 30)),
                (start._replace(offset=30), 5, True, ()),
                (start._replace(offset=31), 2, False, range(28, 30)),
                (start._replace(epoch=7), 2, False, range(28, 30)),
            ):
                peer, subscribed = self.join(topics, room, since, recent=recent)
                assert (subscribed.recovered, subscribed.missed) == (recovered, len(expected)), since
                assert texts(peer, len(expected)) == [str(number) for number in expected]
                nothing_more(peer, room.sessions[-1])
            for wrong in (-1, True, 1.5, None):
                with pytest.raises(ValueError, match="recent"):
                    self.join(topics, room, None, recent=wrong)

    def test_kept_without_subscribers(self) -> None:
        topics = Topics(history=10)
        topics.publish("a", "one")
        position = topics.position("a")
        assert position is not None
        topics.publish("a", "two")
        with Room() as room:
            peer, subscribed = self.join(topics, room, position)
            assert subscribed.missed == 1
            assert peer.frame() == (TEXT, b"two")

    def test_dropped_when_it_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr("geventws.topics.local.monotonic", lambda: now[0])
        monkeypatch.setattr("geventws.topics.history.monotonic", lambda: now[0])
        topics = Topics(history=10, history_seconds=60)
        with Room() as room:
            topics.publish("old", "one")
            topics.subscribe(room.join() and room.sessions[0], "kept")
            position = topics.position("kept")
            now[0] += 59
            topics.publish("new", "two")
            assert topics.position("old")
            now[0] += 11
            topics.publish("newest", "three")
            assert topics.position("old") is None
            assert topics.position("new")
            # Somebody is there.
            now[0] += 100
            topics.publish("newest", "four")
            assert topics.position("kept") == position

    def test_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr("geventws.topics.local.monotonic", lambda: now[0])
        topics = Topics(history=10, history_seconds=None)
        topics.publish("old", "one")
        now[0] += 1e9
        topics.publish("new", "two")
        assert topics.position("old")

    def test_by_topic(self) -> None:
        sizes = HistorySizes({"prices": 3, "room/*": 5, "room/private/*": 0, "*": 1})
        assert [sizes.of(name) for name in ("prices", "prices2", "room/7", "room/private/1", "room", "")] == [
            3, 1, 5, 0, 1, 1,
        ]  # fmt: skip
        assert HistorySizes(7).of("any") == 7
        assert HistorySizes({"a": 1}).of("b") == 0

    @pytest.mark.parametrize("history", [-1, 1.5, True, "all", None, {"a": -1}, {"a": "b"}, {5: 1}, {"": 1}])
    def test_what_is_no_history(self, history: Any) -> None:
        with pytest.raises(ValueError, match="history"):
            Topics(history=history)

    def test_positions_in_words(self) -> None:
        assert Position.parse(str(Position(7, 12))) == (7, 12)
        for text in ("7", "7-", "-12", "a-b", "7-12 ", "", "7_0-1"):
            with pytest.raises(ValueError, match="hyphen"):
                Position.parse(text)

    def test_no_two_histories_share_an_epoch(self) -> None:
        assert len({History(1).position.epoch for _ in range(10_000)}) == 10_000

    def test_what_one_history_says(self) -> None:
        history = History(2)
        start = history.position
        for number in range(3):
            history.append(1, b"%d" % number)
        end = history.position
        assert end == start._replace(offset=3)
        assert history.missed(start, end) is None
        assert history.missed(start._replace(offset=1), end) == [
            (start._replace(offset=2), 1, b"1"),
            (start._replace(offset=3), 1, b"2"),
        ]
        assert history.missed(end, end) == []
        assert history.missed(start._replace(epoch=5), end) is None


class TestPresence:
    def test_who_is_there(self) -> None:
        topics = Topics()
        with Room() as room:
            for name in ("Ada", "Bob", None, "Ada"):
                room.join()
                topics.subscribe(room.sessions[-1], "a", member=name)
            members = topics.presence("a")
            assert [member.name for member in members] == ["Ada", "Bob", "Ada"]
            assert len({member.key for member in members}) == 3
            assert topics.presence("nobody") == []
            assert topics.count("a") == 4

    def test_events_are_messages_in_order(self) -> None:
        def told(event: Presence) -> str:
            return f"{event.topic}: {event.event} {event.member.name}"

        topics = Topics()
        with Room() as room:
            asks, silent = room.join(), room.join()
            topics.subscribe(room.sessions[0], "a", member="Ada", on_presence=told)
            topics.publish("a", "first")
            topics.subscribe(room.sessions[1], "a", member="Bob")
            topics.publish("a", "second")
            topics.unsubscribe(room.sessions[1], "a")
            topics.publish("a", "third")
            assert texts(asks, 6) == ["a: join Ada", "first", "a: join Bob", "second", "a: leave Bob", "third"]
            assert texts(silent, 1) == ["second"]
            nothing_more(silent, room.sessions[1])

    def test_one_call_for_all_who_share_it(self) -> None:
        calls: list[Presence] = []

        def told(event: Presence) -> str | None:
            calls.append(event)
            return None if event.event == "leave" else event.member.name

        topics = Topics()
        with Room() as room:
            peers = [room.join() for _ in range(5)]
            for session in room.sessions:
                topics.subscribe(session, "a", on_presence=told)
            peer = room.join()
            topics.subscribe(room.sessions[-1], "a", member="Eve")
            room.sessions[-1].terminate()
            wait_until(lambda: topics.count("a") == 5)
            assert [texts(each, 1) for each in peers] == [["Eve"]] * 5
            assert [event.event for event in calls] == ["join", "leave"]
            assert peer.rest() == b""

    def test_a_fault_of_the_users_function_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def told(event: Presence) -> Any:
            return 5 if event.event == "join" else event.member.nonsense  # type: ignore[attr-defined]

        topics = Topics()
        with Room() as room:
            peer = room.join()
            room.join()
            topics.subscribe(room.sessions[0], "a", on_presence=told)
            topics.subscribe(room.sessions[1], "a", member="Ada")
            topics.unsubscribe(room.sessions[1], "a")
            topics.publish("a", "goes on")
            assert peer.frame() == (TEXT, b"goes on")
        faults = [record for record in caplog.records if record.exc_info]
        assert [record.message for record in faults] == ["what topics call for a presence failed"] * 2

    @pytest.mark.parametrize(
        ("member", "error"),
        [(5, TypeError), (b"Ada", TypeError), (["Ada"], TypeError), ("\ud800", ValueError), ("é" * 2049, ValueError)],
    )
    def test_what_is_no_member(self, member: Any, error: type[Exception]) -> None:
        topics = Topics()
        with Room() as room:
            room.join()
            with pytest.raises(error, match="member"):
                topics.subscribe(room.sessions[0], "a", member=member)
            assert topics.count("a") == 0
            topics.subscribe(room.sessions[0], "a", member="é" * 2048)

    @pytest.mark.parametrize("option", ["on_presence", "on_gap"])
    def test_what_can_not_be_called(self, option: str) -> None:
        topics = Topics()
        with Room() as room:
            room.join()
            with pytest.raises(ValueError, match=option):
                topics.subscribe(room.sessions[0], "a", **{option: "text"})
            assert topics.count("a") == 0


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("namespace", ""),
            ("namespace", "a:b"),
            ("namespace", "a{"),
            ("namespace", "x" * 65),
            ("namespace", None),
            ("slow", "drop"),
            ("history_seconds", 0),
            ("history_seconds", "1"),
            ("max_message_size", 0),
            ("max_message_size", 1.5),
            ("envelope", "text"),
        ],
    )
    def test_bad_values_are_named(self, option: str, value: Any) -> None:
        with pytest.raises(ValueError, match=option):
            Topics(**{option: value})

    def test_close(self) -> None:
        with Room() as room:
            peer = room.join()
            topics = Topics(history=5)
            topics.subscribe(room.sessions[0], "a", member="Ada")
            with elsewhere(topics.close) as caught:
                pass
            assert isinstance(caught[0], UsageError)
            assert topics.count("a") == 1
            topics.close()
            topics.close()
            refuses_all(topics, room.sessions[0])
            nothing_more(peer, room.sessions[0])
            assert room.sessions[0].connection.subscriptions is None


class TestAudience:
    def test_copies_what_is_lent(self) -> None:
        with Room() as room:
            for _ in range(4):
                room.join()
            one, two, three, four = (session.connection for session in room.sessions)
            audience = Audience()
            for connection in (one, two, three):
                audience.add(connection)
            lent = audience.lend()
            before = list(lent)
            audience.remove(one)
            audience.add(four)
            assert lent == before
            assert set(lent) == {one, two, three}
            assert set(audience.connections) == {two, three, four}
            assert audience.remove(one) is False
            assert [connection in audience for connection in (one, two, three, four)] == [False, True, True, True]

    def test_any_order_of_coming_and_going(self) -> None:
        random = Random(5)
        with Room() as room:
            for _ in range(8):
                room.join()
            connections = [session.connection for session in room.sessions]
            audiences = [Audience() for _ in range(5)]
            expected: list[set[Any]] = [set() for _ in audiences]
            for _ in range(3000):
                index = random.randrange(5)
                connection = random.choice(connections)
                if connection in expected[index]:
                    assert audiences[index].remove(connection)
                    expected[index].discard(connection)
                else:
                    audiences[index].add(connection)
                    expected[index].add(connection)
                assert set(audiences[index].connections) == expected[index]
            room.sessions[0].terminate()
            for audience, members in zip(audiences, expected, strict=True):
                members.discard(connections[0])
                assert set(audience.connections) == members
            for audience in audiences:
                for connection in list(audience.connections):
                    audience.remove(connection)
            assert all(connection.subscriptions is None for connection in connections)


def test_many_sessions_leave_at_once() -> None:
    topics = Topics()
    with Room() as room:
        for _ in range(50):
            room.join()
        for session in room.sessions:
            topics.subscribe(session, "a", member="m")
        for session in room.sessions[::2]:
            session.terminate()
        wait_until(lambda: topics.count("a") == 25)
        assert len(topics.presence("a")) == 25
        topics.publish("a", "x")
        assert topics.statistics().delivered == 25


def test_a_slow_topic_holds_nobody_up_and_keeps_its_order() -> None:
    """Two publishers, and so many subscribers that a message takes many slices: all see the same order."""
    topics = Topics(history=100)
    with Room() as room:
        peers = [room.join() for _ in range(40)]
        for session in room.sessions:
            topics.subscribe(session, "a")
        go = Event()

        def publish(name: str) -> None:
            go.wait()
            for number in range(50):
                topics.publish("a", f"{name}{number}")
                gevent.sleep(0)

        publishers = [gevent.spawn(publish, name) for name in ("x", "y")]
        go.set()
        gevent.joinall(publishers)
        seen = [texts(peer, 100) for peer in peers]
        assert all(each == seen[0] for each in seen)
        for name in ("x", "y"):
            assert [text for text in seen[0] if text.startswith(name)] == [f"{name}{number}" for number in range(50)]


class TestListening:
    @pytest.mark.parametrize("history", [0, 10])
    def test_what_is_published_is_heard_in_order(self, history: int) -> None:
        topics, heard = Topics(history=history, envelope=lambda *_: "wrapped"), list[Any]()
        stop = topics.listen("a", heard.append)
        with Room() as room:
            peer = room.join()
            topics.subscribe(room.sessions[0], "a")
            for message in ("text", b"bytes"):
                topics.publish("a", message)
            topics.publish("b", "to others")
            # The envelope is the sessions' alone.
            assert texts(peer, 2) == ["wrapped"] * 2
            assert heard == ["text", b"bytes"]
            stop()
            stop()
            topics.publish("a", "unheard")
            assert texts(peer, 1) == ["wrapped"]
            assert len(heard) == 2

    def test_nothing_stays_of_it(self) -> None:
        topics = Topics()
        first, second = topics.listen("a", print), topics.listen("a", print)
        first()
        assert "a" in topics._local.topics
        second()
        assert not topics._local.topics
        topics.listen("a", print)
        topics.close()
        assert not topics._local.topics

    def test_what_can_not_be_called(self) -> None:
        topics = Topics()
        with pytest.raises(TypeError, match="listener"):
            topics.listen("a", 5)  # type: ignore[arg-type]
        assert not topics._local.topics

    @pytest.mark.parametrize("history", [0, 10])
    def test_a_listener_that_publishes(self, history: int) -> None:
        """All get the messages in their order, and nobody the answer before the question."""

        def answer(message: Any) -> None:
            first.append(message)
            if len(first) < 4:
                topics.publish("a", str(len(first)))

        def envelope(topic: str, message: Any, position: Position | None) -> str:
            return f"{message} at {position.offset}" if position is not None else message

        topics = Topics(history=history, envelope=envelope)
        first, second = list[Any](), list[Any]()
        topics.listen("a", answer)
        topics.listen("a", second.append)
        with Room() as room:
            peer = room.join()
            topics.subscribe(room.sessions[0], "a")
            topics.publish("a", "0")
            expected = ["0", "1", "2", "3"]
            assert first == second == expected
            if history:
                expected = [f"{number} at {number + 1}" for number in range(4)]
            assert texts(peer, 4) == expected

    def test_one_that_fails_keeps_nothing_from_the_others(self, caplog: pytest.LogCaptureFixture) -> None:
        topics, heard = Topics(), list[Any]()
        topics.listen("a", lambda message: 1 / 0)
        topics.listen("a", heard.append)
        topics.publish("a", "text")
        assert heard == ["text"]
        assert "what listens to a topic failed" in caplog.text


def test_a_child_counts_anew() -> None:
    topics = Topics()
    topics.publish("a", "x")

    def look() -> None:
        assert topics.statistics().published == 0
        topics.publish("a", "x")
        assert topics.statistics().published == 1

    child = forked(look)
    with gevent.Timeout(PATIENCE):
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            gevent.sleep(0.005)
    assert ended == (child, 0)
    assert topics.statistics().published == 1


def test_dead_sessions_are_not_kept() -> None:
    topics = Topics()
    with Room() as room:
        room.join()
        topics.subscribe(room.sessions[0], "a", member="m", on_presence=str)
        gone = weakref.ref(room.sessions[0])
        room.sessions[0].terminate()
        room.sessions.clear()
        wait_until(lambda: topics.count("a") == 0)
        wait_until(lambda: gc.collect() >= 0 and gone() is None)


def test_what_the_nouns_say() -> None:
    assert Gap("a", None) == ("a", None)
    assert Presence("a", "join", Member("Ada", "x.1")).member.name == "Ada"
