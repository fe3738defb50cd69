"""One message to many sessions of a process: its frame is made once, and nobody waits for a slow peer.

Small messages are put into the outputs of all sessions and sent when the hub has its turn, so that several broadcasts
by one handler leave in one system call a session. broadcasting.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gevent import get_hub, sleep

from geventws.connection import Connection
from geventws.errors import UsageError
from geventws.frames import CloseCode, CloseReason
from geventws.protocol.buffer import Buffer
from geventws.session import DefaultWebSocketSession, WebSocketSession
from geventws.switching import current
from geventws.transport import monotonic

__all__ = ["broadcast"]

#: Messages up to this size wait in the outputs for the hub's turn; beyond it they would take much memory there.
SMALL_SIZE = 4 * 1024
#: Seconds of sending at a stretch, before other connections have their turn.
SLICE_SECONDS = 0.005
#: Sessions after which the clock is looked at.
SESSIONS_BETWEEN_LOOKS = 64
#: Seconds of a sleep that lets the hub look at its sockets; without any it would not.
A_MOMENT = 1e-6

#: What `Connection.offer` says of a message that is in the output, and of one that too much waits before.
TAKEN, LAGS = 1, 2


class Flusher:
    """Sends, in the hub and in slices, what broadcasts have put into outputs."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.connections: list[Connection] = []
        self.position = 0
        self.timer: Any = None

    def add(self, connection: Connection) -> None:
        """Has ``connection`` flushed when the hub has its turn."""
        if not self.connections:
            self.hub.loop.run_callback(self.run)
        self.connections.append(connection)

    def run(self) -> None:
        """The hub's callback."""
        connections = self.connections
        ends = 0.0
        try:
            while self.position < len(connections):
                connection = connections[self.position]
                self.position += 1
                connection.flush_in_hub()
                if self.position % SESSIONS_BETWEEN_LOOKS == 0:
                    now = monotonic()
                    if not ends:
                        ends = now + SLICE_SECONDS
                    elif now > ends:
                        break
        finally:
            # A signal's exception ends the call, not the turns of the rest.
            if self.position < len(connections):
                self._run_later()
            else:
                self._rest()

    def _rest(self) -> None:
        self.connections.clear()
        self.position = 0
        if self.timer is not None:
            self.timer.close()
            self.timer = None

    def _run_later(self) -> None:
        # Not by run_callback: the hub looks at its sockets only after fifty of these.
        if self.timer is None:
            self.timer = self.hub.loop.timer(0.0)
        self.timer.start(self.run)


def broadcast(
    sessions: Iterable[DefaultWebSocketSession], message: str | bytes | bytearray | memoryview, *, slow: str = "skip"
) -> int:
    """Sends one message, str as text and bytes-like as binary, to all ``sessions``; gives how many take it.

    Sessions that are not open are passed over. One that lags behind, with more than its ``write_limit`` waiting for its
    peer, is left out with ``slow="skip"``, and closed with 1013 by ``slow="close"``. Messages of one greenlet arrive in
    the order in which it sent them.

    Never waits for a peer; a broadcast that takes longer than 5 ms lets other greenlets have their turn meanwhile.
    Raises ``TypeError`` for what is no message or no default session, ``ValueError`` for another ``slow``, and
    ``UsageError`` for sessions of another thread.
    """
    if slow != "skip" and slow != "close":
        raise ValueError(f'slow must be "skip" or "close", not {slow!r}')
    hub = get_hub()
    flusher = hub.__dict__.get("geventws_flusher")
    if flusher is None:
        flusher = hub.__dict__["geventws_flusher"] = Flusher(hub)
    opcode, payload = _payload(message)
    return _send_to_all(flusher, _checked(sessions, hub), opcode, payload, slow == "close")


def _send_to_all(
    flusher: Flusher, sessions: list[DefaultWebSocketSession], opcode: int, payload: bytes, closes: bool
) -> int:
    small = len(payload) <= SMALL_SIZE
    frame = b""
    ends = 0.0
    if small:
        buffer = Buffer()
        buffer.append_frame(0x80 | opcode, payload)
        frame = buffer.take_bytes()
    else:
        ends = monotonic() + SLICE_SECONDS
    count = 0
    for number, session in enumerate(sessions, 1):
        connection = session.connection
        result = connection.offer(opcode, payload, frame)
        if result == LAGS and connection.write_watcher is None:
            # What waits may be this turn's own broadcasts, which the peer had no chance to take yet.
            connection.flush_in_hub()
            result = connection.offer(opcode, payload, frame)
        if result == TAKEN:
            count += 1
            if not small:
                connection.flush_in_hub()
            elif not connection.awaits_flush and connection.write_watcher is None:
                connection.awaits_flush = True
                flusher.add(connection)
        elif result == LAGS and closes:
            connection.start_close(CloseReason(CloseCode.TRY_AGAIN_LATER, "too slow for what is broadcast"))
        # A large message may take long at each session, a small one only where many compress it.
        if not small or number % SESSIONS_BETWEEN_LOOKS == 0:
            now = monotonic()
            if not ends:
                ends = now + SLICE_SECONDS
            elif now > ends and number < len(sessions) and current() is not flusher.hub:
                sleep(A_MOMENT)
                ends = monotonic() + SLICE_SECONDS
    return count


def _payload(message: Any) -> tuple[int, bytes]:
    if isinstance(message, str):
        return 1, message.encode()
    # Of a subclass too it is plain bytes that the compiled build takes.
    if type(message) is bytes:
        return 2, message
    try:
        return 2, bytes(memoryview(message))
    except TypeError:
        raise TypeError(f"a message is str or bytes-like, not {type(message).__name__}") from None


def _checked(sessions: Iterable[DefaultWebSocketSession], hub: Any) -> list[DefaultWebSocketSession]:
    """The sessions that were opened in this thread, all of them looked at before the first gets anything."""
    if isinstance(sessions, WebSocketSession):
        # To iterate over it would be to receive.
        raise TypeError("broadcast takes an iterable of sessions, not a session: put it into a list")
    checked = list(sessions)
    opening = False
    for item in checked:
        if not isinstance(item, DefaultWebSocketSession):
            raise TypeError(f"broadcast takes default sessions, not {type(item).__name__}")
        # A name of its own, whose type the compiled build knows.
        session = item
        connection = session.connection
        if connection.hub is not hub:
            if connection.hub is not None:
                raise UsageError("a session of another thread is among those of a broadcast: broadcast in its own")
            opening = True
    return [session for session in checked if session.connection.hub is hub] if opening else checked
