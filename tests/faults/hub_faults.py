"""A program that makes what the hub calls raise, at one place after another, and prints what became of it.

``python -m tests.faults.hub_faults`` prints one JSON object a line; GEVENT_LOOP and GEVENTWS_PURE choose the loop and
the build. On the compiled build only what the connection is given can raise: its transport, extension and session. The
uncompiled one has methods that can be replaced, and so each step of each callback raises, before and after it has done
its work. ``python -m tests.faults.hub_faults exit NAME`` lets a SystemExit or KeyboardInterrupt rise from the hub.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import Event

import geventws
import geventws.call
from geventws import Frame, WebSockets
from geventws.connection import Connection, State
from geventws.transport import Transport
from tests.peer import Peer, serving
from tests.wire import BINARY, PONG, TEXT, close_frame, frame, server_frames

ERRORS: tuple[type[BaseException], ...] = (ValueError, MemoryError, UnicodeError, gevent.GreenletExit)
#: Seconds that a connection has to end in; the sessions' own timeout is shorter.
PATIENCE = 2.0


class Fault:
    """What is to be raised, where, and how often."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Raises nothing any more."""
        self.step = ""
        self.error: type[BaseException] | None = None
        self.always = False
        self.struck = 0

    def arm(self, step: str, error: type[BaseException], always: bool) -> None:
        """Has ``step`` raise ``error``, once or each time."""
        self.step, self.error, self.always, self.struck = step, error, always, 0

    def strike(self, step: str) -> None:
        """Raises, where it is this step's turn."""
        if step == self.step and self.error is not None and (self.always or not self.struck):
            self.struck += 1
            raise self.error("injected")


FAULT = Fault()


class FaultyTransport(Transport):
    """A socket whose calls raise what no socket raises."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.victim = False

    def receive(self, target: bytearray) -> int:
        if self.victim:
            FAULT.strike("transport.receive")
        return super().receive(target)

    def send(self, source: Any) -> bool:
        if self.victim:
            FAULT.strike("transport.send")
            if gevent.getcurrent() is gevent.get_hub():
                FAULT.strike("transport.send in the hub")
        return super().send(source)

    def shut_down(self) -> None:
        if self.victim:
            FAULT.strike("transport.shut_down")
        super().shut_down()

    def close(self) -> None:
        super().close()
        if self.victim:
            FAULT.strike("transport.close")


class FaultyExtension:
    """An extension that changes nothing, and fails on what comes in."""

    name = "x-faulty"
    rsv = 0

    def accept(self, parameters: Any) -> Any:
        return {}, self

    def decode(self, received: Frame, limit: int | None) -> Frame:
        FAULT.strike("extension.decode")
        return received

    def encode(self, sent: Frame) -> Frame:
        return sent


class FaultySession:
    """Stands between a connection and its session."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def pong_came(self, payload: bytes) -> None:
        FAULT.strike("session.pong_came")
        self._session.pong_came(payload)

    def ended(self) -> None:
        self._session.ended()
        FAULT.strike("session.ended")


#: The victims' connections, of which there is one at a time.
victims: list[Connection] = []


def replace_methods() -> list[str]:
    """Lets each step of the callbacks raise; gives their names. Only the uncompiled build has what can be replaced."""

    def wrap(name: str) -> None:
        original = getattr(Connection, name)

        def faulty(self: Connection, *arguments: Any) -> Any:
            victim = self in victims
            if victim:
                FAULT.strike(f"before {name}")
            result = original(self, *arguments)
            if victim:
                FAULT.strike(f"after {name}")
            return result

        setattr(Connection, name, faulty)

    names = list(TRIGGERS)
    for name in names:
        wrap(name)
    return [f"{when} {name}" for name in names for when in ("before", "after")]


# -- What makes each step happen ---------------------------------------------------------------------------------------


def say(peer: Peer) -> None:
    """A message, which is echoed."""
    peer.send(frame(TEXT, b"hello"))


def pong(peer: Peer) -> None:
    """A pong that is waited for."""
    peer.send(frame(TEXT, b"ping"))
    first, payload = peer.frame()
    while first != 0x89:
        first, payload = peer.frame()
    peer.send(frame(PONG, payload))


def flood(peer: Peer) -> None:
    """More than the read limit, while the handler sleeps for a moment."""
    peer.send(frame(TEXT, b"sleep") + frame(BINARY, bytes(1000)) * 100)


def load(peer: Peer) -> None:
    """A reply that the socket does not take at once."""
    peer.send(frame(TEXT, b"load"))


def close(peer: Peer) -> None:
    """The peer's Close frame."""
    peer.send(frame(TEXT, b"hello") + close_frame(1000))


def end(peer: Peer) -> None:
    """The peer's end of output."""
    peer.send(frame(TEXT, b"hello"))
    peer.socket.shutdown(1)


def violate(peer: Peer) -> None:
    """A frame that breaks the protocol."""
    peer.send(frame(3))


def told_to_close(peer: Peer) -> None:
    """A message on which another greenlet closes, while the handler waits for a message."""
    peer.send(frame(TEXT, b"close"))


#: The steps of the callbacks on the uncompiled build, with what makes them happen.
TRIGGERS: dict[str, Callable[[Peer], None]] = {
    "_read": say,
    "_feed": say,
    "_deliver": say,
    "flush": say,
    "_pong": pong,
    "_pause": flood,
    "_resume": flood,
    "_write": load,
    "_stop_writing": load,
    "_start_writing": load,
    "_peer_closed": close,
    "_send_close": close,
    "_limit_closing": violate,
    "_flush_closing": close,
    "_flushed": close,
    "_wake_soon": close,
    "ending": end,
    "_end_of_input": end,
    "fail": violate,
    "_stop_input": violate,
}

#: The steps of what a connection is given.
PARTS: dict[str, Callable[[Peer], None]] = {
    "transport.receive": say,
    "transport.send": say,
    "transport.send in the hub": load,
    "transport.shut_down": violate,
    "transport.close": close,
    "extension.decode": say,
    "session.pong_came": pong,
    "session.ended": close,
}


# -- The server --------------------------------------------------------------------------------------------------------


def make_app(ended: list[str]) -> WebSockets:
    """An echo, with commands for what a message alone does not bring about."""
    app = WebSockets(timeout=0.4, read_limit=2000, write_limit=None, ping_interval=None, extensions=[FaultyExtension()])

    def serve(session: Any) -> None:
        for message in session:
            if message == "ping":
                gevent.spawn(ping, session)
            elif message == "sleep":
                gevent.sleep(0.02)
            elif message == "load":
                session.send(bytes(6_000_000))
            elif message == "close":
                gevent.spawn(session.start_close, 4000)
            else:
                session.send(message)

    def ping(session: Any) -> None:
        with suppress(geventws.ConnectionClosed, TimeoutError):
            session.ping()

    @app.route("/witness")
    def witness(session: Any) -> None:
        serve(session)

    @app.route("/victim")
    def victim(session: Any) -> None:
        session.accept()
        connection = session.connection
        connection.session = FaultySession(session)
        connection.transport.victim = True
        victims.append(connection)
        ready.set()
        try:
            serve(session)
        finally:
            ended.append("victim")

    return app


ready = Event()


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], Any]) -> bool:
    """Waits for what other greenlets do; tells whether it happened."""
    with gevent.Timeout(PATIENCE, False):
        while not condition():
            gevent.sleep(0.001)
    return bool(condition())


def attempt(server: Any, witness: Peer, step: str, trigger: Callable[[Peer], None], ended: list[str]) -> list[str]:
    """Lets one step fail on one connection; gives what is wrong afterwards."""
    wrong = []
    ended.clear()
    victims.clear()
    ready.clear()
    before, sessions = descriptors(), len(server.sessions)
    offer = {"Sec-WebSocket-Extensions": "x-faulty"}
    with Peer(server, "/victim", **offer) as peer:
        peer.socket.settimeout(PATIENCE)
        peer.accepted()
        assert ready.wait(PATIENCE)
        data = b""
        try:
            trigger(peer)
            data = peer.rest()
        except (OSError, EOFError) as error:
            # A reset is an end too; a timeout is none.
            if isinstance(error, TimeoutError):
                wrong.append("the connection does not end")
        if not FAULT.struck:
            wrong.append("the step was not reached")
        if step not in CUTS and trigger is not load:
            try:
                server_frames(data)
            except (AssertionError, IndexError):
                wrong.append(f"what is no frame came: {data[:50]!r}")
    if not eventually(lambda: ended):
        wrong.append("the handler does not end")
    FAULT.clear()
    if not eventually(lambda: len(server.sessions) <= sessions):
        wrong.append("the session is still there")
    if not eventually(lambda: descriptors() <= before):
        wrong.append(f"{descriptors() - before} descriptors are left")
    if victims[0].state != State.CLOSED:
        wrong.append(f"the state is {State(victims[0].state).name}")
    witness.send(frame(TEXT, b"are you there"))
    if witness.frame() != (0x81, b"are you there"):
        wrong.append("another connection is disturbed")
    return wrong


#: Steps that fail while a frame is on its way out, so that the peer may get half of it.
CUTS = ("transport.send", "transport.send in the hub")


def cases(steps: dict[str, Callable[[Peer], None]]) -> Iterator[tuple[str, type[BaseException], bool]]:
    """All steps with all errors, once and each time."""
    for step in steps:
        # Once the work is done, which error it is makes no difference any more.
        for error in ERRORS[:1] if step.startswith("after") else ERRORS:
            yield step, error, False
        # Where what fails once goes on failing, the error within the handling of the first one is met as well.
        # Two can't be done without: nothing else wakes the handler, or says how the session ended.
        if "_wake_soon" not in step and "ending" not in step:
            yield step, ValueError, True


class Collector(logging.Handler):
    """Keeps what is logged, and blocks as a handler does that writes to a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(0)
        self.lines.append(self.format(record))


def listen_to_hub() -> list[str]:
    """What the hub is told of as an error in one of its callbacks."""
    faults: list[str] = []
    hub = gevent.get_hub()
    original = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, trace: Any) -> None:
        # pywsgi tells of what left a handler, by its environ: that is no callback's.
        if not isinstance(context, dict):
            last = traceback.extract_tb(trace)[-1] if trace is not None else None
            faults.append(f"{kind.__name__}: {value} at {last}")
        if issubclass(kind, (SystemExit, KeyboardInterrupt)):
            original(context, kind, value, trace)

    hub.handle_error = handle_error
    return faults


def main() -> None:
    """Runs all cases; prints a line for each."""
    geventws.call.transport_of = FaultyTransport
    steps = dict(PARTS)
    if geventws.build() == "pure":
        for name in replace_methods():
            steps[name] = TRIGGERS[name.partition(" ")[2]]
    ended: list[str] = []
    collector = Collector()
    logging.getLogger("geventws").addHandler(collector)
    faults = listen_to_hub()
    print(json.dumps({"loop": type(gevent.get_hub().loop).__module__, "build": geventws.build()}), flush=True)
    with serving(make_app(ended)) as server, Peer(server, "/witness") as witness:
        witness.accepted()
        for step, error, always in cases(steps):
            FAULT.arm(step, error, always)
            faults.clear()
            collector.lines.clear()
            wrong = attempt(server, witness, step, steps[step], ended)
            wrong += [f"the hub was told of {fault}" for fault in faults]
            wrong += [line for line in collector.lines if "BlockingSwitchOut" in line]
            print(json.dumps({"step": step, "error": error.__name__, "always": always, "wrong": wrong}), flush=True)


def exits(name: str) -> None:
    """Lets what ends the process rise from a callback of the hub; prints the state that it leaves."""
    error: type[BaseException] = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[name]
    geventws.call.transport_of = FaultyTransport
    faults = listen_to_hub()
    server = geventws.WSGIServer(("127.0.0.1", 0), make_app([]), log=None)
    server.start()
    peer = Peer(server, "/victim")
    peer.accepted()
    assert ready.wait(PATIENCE)
    FAULT.arm("transport.receive", error, False)
    say(peer)
    try:
        server.serve_forever()
    except error:
        connection = victims[0]
        print(json.dumps({"state": State(connection.state).name, "descriptor": connection.transport.descriptor}))
        print(json.dumps({"told": len(faults)}), flush=True)
        sys.exit(7)


if __name__ == "__main__":
    if sys.argv[1:2] == ["exit"]:
        exits(sys.argv[2])
    else:
        main()
