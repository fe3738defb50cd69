"""One message to many sessions of a process: its frames are made once, and nobody waits for a slow peer.

broadcasting.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from gevent import get_hub

from geventws.arguments import shown
from geventws.connection import Connection
from geventws.errors import UsageError
from geventws.protocol.shared import SharedMessage
from geventws.session import DefaultWebSocketSession, WebSocketSession
from geventws.switching import current
from geventws.topics.delivery import deliver

__all__ = ["broadcast", "shared_message"]


def broadcast(
    sessions: Iterable[DefaultWebSocketSession],
    message: str | bytes | bytearray | memoryview,
    *,
    slow: Literal["skip", "close"] = "skip",
) -> int:
    """Sends one message, str as text and bytes-like as binary, to all ``sessions``; gives how many take it.

    Sessions that are not open are passed over. One that lags behind, with more than its ``write_limit`` waiting for its
    peer, is left out with ``slow="skip"``, and closed with 1013 by ``slow="close"``. One whose extension fails is
    closed with 1011. Messages of one greenlet arrive in the order in which it sent them.

    Never waits for a peer; a broadcast that takes longer than 5 ms lets other greenlets have their turn meanwhile. It
    is finished in the hub also where its greenlet is killed. In a callback of the hub, which can't wait, it gives how
    many have taken the message so far.
    Raises ``TypeError`` for what is no message or no default session, ``ValueError`` for another ``slow``, and
    ``UsageError`` for sessions of another thread.
    """
    if slow != "skip" and slow != "close":
        raise ValueError(f'slow must be "skip" or "close", not {shown(slow)}')
    shared = shared_message(message)
    hub = get_hub()
    delivery = deliver(_connections(sessions, hub), shared, slow == "close")
    if not delivery.done and current() is not hub:
        delivery.wait()
    return delivery.taken


def shared_message(message: Any) -> SharedMessage:
    """``message`` as one for many sessions: str as text, bytes-like as binary; raises ``TypeError``."""
    if isinstance(message, str):
        return SharedMessage(1, message.encode())
    # Of a subclass too it is plain bytes that the compiled build takes.
    if type(message) is bytes:
        return SharedMessage(2, message)
    try:
        return SharedMessage(2, bytes(memoryview(message)))
    except TypeError:
        raise TypeError(f"message must be str or bytes-like, not {type(message).__name__}") from None


def _connections(sessions: Iterable[DefaultWebSocketSession], hub: Any) -> list[Connection]:
    """Those of the sessions that were opened in this thread, all looked at before the first gets anything."""
    if isinstance(sessions, WebSocketSession):
        # To iterate over it would be to receive.
        raise TypeError("sessions must be an iterable of sessions, not a session: put it into a list")
    if type(sessions) is not list and not isinstance(sessions, Iterable):
        raise TypeError(f"sessions must be an iterable of sessions, not {type(sessions).__name__}")
    connections = []
    fitting: Any = None
    for item in sessions:
        if type(item) is not fitting:
            if not isinstance(item, DefaultWebSocketSession):
                raise TypeError(f"sessions must be default sessions, not {type(item).__name__}")
            fitting = type(item)
        # A name of its own, whose type the compiled build knows.
        session = item
        connection = session.connection
        if connection.hub is hub:
            connections.append(connection)
        elif connection.hub is not None:
            raise UsageError("a session of another thread is among those of a broadcast: broadcast in its own")
    return connections
