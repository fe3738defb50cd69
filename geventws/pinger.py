"""Keepalive: pings that must be answered (RFC 6455 5.5.2). pinger.pxd gives the types to the compiled build."""

from __future__ import annotations

from os import urandom
from typing import TYPE_CHECKING

from geventws.arguments import check_seconds
from geventws.connection import Connection, State
from geventws.errors import ProtocolError
from geventws.frames import CloseCode, Frame
from geventws.schedule import Entry
from geventws.transport import monotonic

if TYPE_CHECKING:
    from geventws.session import WebSocketSession

__all__ = ["Pinger", "pinger"]


class Pinger:
    """Pings a connection every ``period`` seconds; closes it with 1011 if an answer takes over ``timeout`` seconds.

    With ``any_input`` any progress counts as an answer, so that a slow transfer in either direction isn't taken for a
    missing pong.
    """

    __slots__ = (
        "_ahead", "_connection", "_entry", "_payload", "_sent_at", "_taken", "any_input", "latency", "period", "timeout"
    )  # fmt: skip

    def __init__(self, connection: Connection, period: float, timeout: float, any_input: bool) -> None:
        self._connection = connection
        self.period = period
        self.timeout = timeout
        self.any_input = any_input
        #: Seconds between the last ping and its pong; None before the first.
        self.latency: float | None = None
        self._payload: bytes | None = None
        self._sent_at = monotonic()
        #: Bytes that were to go out before the last ping, and those that the peer had taken when this was asked last.
        self._ahead = 0
        self._taken = 0
        self._entry: Entry | None = connection.schedule.after(period, self._due)

    def pong(self, frame: Frame) -> None:
        """Takes a pong from the peer; one that doesn't answer a ping of this pinger is ignored."""
        if frame.payload == self._payload:
            self._payload = None
            self.latency = monotonic() - self._sent_at

    @property
    def waiting(self) -> bool:
        """Whether a ping is not answered yet."""
        return self._payload is not None

    def stop(self) -> None:
        """Stops pinging."""
        self._connection.schedule.cancel(self._entry)
        self._entry = None

    def _due(self) -> None:
        connection = self._connection
        self._entry = None
        if connection.state != State.OPEN or connection.close_sent:
            return
        if connection.paused and connection.transport.error():
            connection.terminate()
            return
        now = monotonic()
        if self._payload is not None and not (self.any_input and connection.alive):
            if now < self._sent_at + self.timeout:
                self._wake_at(self._sent_at + self.timeout, now)
                return
            if self.any_input and self._drains():
                self._wake_at(now + self.timeout, now)
                return
            connection.fail(ProtocolError(CloseCode.INTERNAL_ERROR, f"no pong came within {self.timeout:g} s"))
            connection.terminate()
            return
        self._payload = None
        if now < self._sent_at + self.period:
            self._wake_at(self._sent_at + self.period, now)
            return
        self._payload = urandom(4)
        self._sent_at = now
        connection.alive = False
        transport = connection.transport
        self._taken = transport.sent - transport.queued()
        self._ahead = transport.sent + connection.output.length()
        connection.expect_pong()
        connection.ping(self._payload)
        self._wake_at(now + min(self.period, self.timeout), now)

    def _drains(self) -> bool:
        """Whether the peer, since this was asked last or since the ping, has taken bytes that were to go before it.

        One on a slow link gets to the ping late. That the ping itself is taken says nothing: the kernel does that.
        """
        transport, before = self._connection.transport, self._taken
        self._taken = transport.sent - transport.queued()
        return before < self._ahead and before < self._taken

    def _wake_at(self, when: float, now: float) -> None:
        self._entry = self._connection.schedule.after(when - now, self._due)


def pinger(session: WebSocketSession, period: float, timeout: float) -> Pinger:
    """Keeps a raw session alive: pings it every ``period`` seconds, and closes it if a pong takes over ``timeout``
    seconds.

    Pass it the pongs: ``if frame.opcode == Opcode.PONG: keepalive.pong(frame)``. It ends with the session, or with
    ``stop()``. It never blocks. Raises ``ValueError`` for a period or timeout that isn't above 0, ``TypeError`` for
    anything but a raw session.
    """
    check_seconds("period", period)
    check_seconds("timeout", timeout)
    connection = getattr(session, "connection", None)
    if not isinstance(connection, Connection):
        raise TypeError(f"session must be a raw session, not {type(session).__name__}")
    if not connection.raw:
        raise TypeError("pinger is for raw sessions: a default one pings by itself, see its ping_interval")
    session.accept_if_needed()
    return Pinger(connection, period, timeout, False)
