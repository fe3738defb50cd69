"""What a session tells of itself."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SessionStats"]


class SessionStats(NamedTuple):
    """Figures of one session, as they are when `WebSocketSession.stats` is called; all 0 before the 101."""

    #: Seconds since the 101.
    seconds: float = 0.0
    #: Bytes that the socket took and gave, the 101 and the frames' headers included: compressed, and in TLS as plain.
    bytes_received: int = 0
    bytes_sent: int = 0
    #: Whole messages; of a raw session frames, but for the Close frames that it sends.
    messages_received: int = 0
    messages_sent: int = 0
    #: What waits for the handler: messages (raw: frames), and their bytes, which ``read_limit`` bounds; 0 without one.
    messages_queued: int = 0
    bytes_queued: int = 0
    #: Bytes that wait for the peer, beyond those that the operating system has.
    bytes_buffered: int = 0
    #: Seconds between the last answered ping and its pong; None before the first, and of a raw session.
    latency: float | None = None
    #: How many topics it is subscribed to.
    subscriptions: int = 0
