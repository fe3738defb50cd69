"""What a session tells of itself."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SessionStats"]


class SessionStats(NamedTuple):
    """Counters of one session at the time of `WebSocketSession.stats`; all 0 before the 101."""

    #: Seconds since the 101.
    seconds: float = 0.0
    #: Bytes received and sent, with the 101 and frame headers, after compression and without TLS.
    bytes_received: int = 0
    bytes_sent: int = 0
    #: Whole messages; in a raw session frames, except the Close frames that it sends.
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
