"""A server's process that forks: the child has the descriptors and the hub, and must leave the connections alone."""

from __future__ import annotations

import os
import signal
from typing import Any

import gevent
import pytest

from geventws import ConnectionClosed, Frame, Topics, WebSockets
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import TEXT, close_frame, frame


def forked(work: Any) -> int:
    """Runs ``work`` in a fork of this process, which then ends without unwinding; gives its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gevent.reinit()
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended_well(child: int) -> bool:
    """Waits for the end of a child."""
    with gevent.Timeout(PATIENCE):
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            gevent.sleep(0.005)
    return True


def test_a_peer_sees_the_end_although_a_child_has_the_descriptor() -> None:
    """C3, os.fork in a handler."""
    app = WebSockets()
    children = []

    @app.route("/")
    def handler(session: Any) -> None:
        session.receive()
        # The child goes on for longer than the test waits.
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(frame(TEXT, b"fork"))
        try:
            peer.closed_with(1000)
        finally:
            wait_until(lambda: children)
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)


def test_a_child_reads_writes_and_accepts_nothing() -> None:
    app = WebSockets(ping_interval=0.05)
    sessions: list[Any] = []

    @app.route("/")
    def echo(session: Any) -> None:
        sessions.append(session)
        for message in session:
            session.send(message)

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        wait_until(lambda: sessions)

        def work() -> None:
            # The hub of the child has the watchers too; here it runs long enough for some pings to be due.
            gevent.sleep(0.3)

        child = forked(work)
        os.kill(child, signal.SIGSTOP)
        peer.send(frame(TEXT, b"for the parent"))
        assert next_message(peer) == b"for the parent"
        os.kill(child, signal.SIGCONT)
        with Peer(server) as other:
            other.accepted()
            for number in range(30):
                for each in (peer, other):
                    each.send(frame(TEXT, b"%d" % number))
                    assert next_message(each) == b"%d" % number
                gevent.sleep(0.01)
            assert ended_well(child)
            assert len(sessions) == 2
            for each in (peer, other):
                each.send(close_frame())
                while (received := each.frame())[0] == 0x89:
                    pass
                assert received[0] == 0x88


def next_message(peer: Peer) -> bytes:
    """The next data frame's payload; pings are passed over."""
    while (received := peer.frame())[0] == 0x89:
        pass
    assert received[0] == 0x81
    return received[1]


def test_a_child_that_leaves_a_raw_handler_ends_nothing() -> None:
    app = WebSockets()

    @app.route("/", raw=True)
    def handler(session: Any) -> None:
        session.receive()
        # As call_handler does when the handler returns.
        assert ended_well(forked(session.connection.end_output))
        session.send(Frame.text("from the parent"))

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(frame(TEXT, b"go"))
        assert peer.frame() == (0x81, b"from the parent")
        peer.ended()


def test_a_child_that_uses_a_session_is_told_that_it_is_closed() -> None:
    app = WebSockets()
    sessions: list[Any] = []

    @app.route("/")
    def handler(session: Any) -> None:
        session.accept()
        sessions.append(session)
        session.receive()

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        wait_until(lambda: sessions)

        def work() -> None:
            with pytest.raises(ConnectionClosed):
                sessions[0].send("from the child")
            sessions[0].terminate()
            sessions[0].close()

        child = forked(work)
        assert os.waitpid(child, 0)[1] == 0
        peer.send(frame(TEXT, b"the parent's session goes on"))
        peer.closed_with(1000)


def test_topics_of_a_child_are_its_own() -> None:
    topics = Topics(history=5)
    app = WebSockets()

    @app.route("/")
    def handler(session: Any) -> None:
        topics.subscribe(session, "a", member="Ada")
        for _ in session:
            pass

    def in_child() -> None:
        assert topics.count("a") == 0
        assert topics.presence("a") == []
        topics.publish("a", "from the child")
        gevent.sleep(0)

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        wait_until(lambda: topics.count("a") == 1)
        child = forked(in_child)
        _, status = os.waitpid(child, 0)
        assert status == 0
        topics.publish("a", "from the parent")
        assert peer.frame() == (0x81, b"from the parent")
        assert [member.name for member in topics.presence("a")] == ["Ada"]
