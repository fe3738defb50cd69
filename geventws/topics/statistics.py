"""What topics count."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass
class Statistics:
    """Counters of one ``Topics`` in one process, from its first use on."""

    #: Messages that were published here.
    published: int = 0
    #: Of these, what Redis never got, as it was away or has refused it: other processes miss it.
    unsent: int = 0
    #: Of these, what was on its way when the connection broke: other processes may miss it.
    unconfirmed: int = 0
    #: Messages of other processes, and those with a position of all, that came from Redis.
    received: int = 0
    #: Messages of other processes that are known not to have come.
    lost: int = 0
    #: What came from Redis and is no message of geventws.
    malformed: int = 0
    #: What came from Redis and is larger than ``max_message_size``.
    oversize: int = 0
    #: How often a topic may have missed messages.
    gaps: int = 0
    #: How often a connection to Redis was made again.
    reconnects: int = 0
    #: Messages put into sessions' outputs.
    delivered: int = 0
    #: Messages that were not, as their session lagged behind.
    slow: int = 0
