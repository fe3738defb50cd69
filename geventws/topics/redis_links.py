"""The way to one server: commands go over one connection, messages come in over another.

Each connection has its greenlet, which makes it anew when it is lost. The operator is told once that a server is lost,
and once that all is well again.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from redis.exceptions import ResponseError

from geventws.topics.redis_channels import Channels
from geventws.topics.redis_commands import Commands
from geventws.topics.redis_connections import FAILURES, Address, Refused, current_process, describe, reason
from geventws.topics.statistics import Statistics

if TYPE_CHECKING:
    from geventws.topics.redis_greenlets import Greenlets

__all__ = ["Link"]

log = logging.getLogger("geventws")

#: Seconds between two lines about the same kind of refusal.
REFUSAL_SECONDS = 60.0


class Outage:
    """From when a server was lost until all is well again."""

    def __init__(self, statistics: Statistics) -> None:
        self.began = monotonic()
        self.refusals: set[str] = set()
        self.unsent = statistics.unsent
        self.unconfirmed = statistics.unconfirmed
        self.lost = statistics.lost


class Link:
    """One server, or one node of a cluster."""

    def __init__(self, owner: Greenlets, address: Address) -> None:
        self.address = address
        self.owner = owner
        self.connector = owner.connector
        self._statistics = owner.statistics
        self._outage: Outage | None = None
        self._was_there = False
        self._ended = False
        self._process = current_process()
        self._refusals_logged: dict[str, float] = {}
        self.commands = Commands(self)
        self.channels = Channels(self)

    @property
    def ended(self) -> bool:
        """Whether this link is no more: it is closed, or its greenlets are in a fork of their process."""
        return self._ended or self._process != current_process()

    @property
    def is_lost(self) -> bool:
        """Whether a connection is lost and not all is well again."""
        return self._outage is not None

    def leave_cluster(self) -> None:
        """Ends, since all its slots have gone to other nodes."""
        if self._outage is not None:
            log.warning("Redis at %s has no slots any more: others have its topics", describe(self.address))
        self.end()

    def end(self) -> None:
        """Closes the connections; what waits is lost."""
        self._ended = True
        self.channels.end()
        self.commands.end()

    def connect(self, timeout: float | None) -> Any:
        """A connection on which reads take up to ``timeout`` seconds; raises one of ``FAILURES``."""
        connection, greeting = self.connector.connect(self.address, timeout)
        if greeting.cluster and not self.owner.sharded:
            try:
                self.read_slots(connection)
            except BaseException:
                connection.disconnect()
                raise
        if self.ended:
            connection.disconnect()
            raise gevent.GreenletExit
        self._was_there = True
        return connection

    def read_slots(self, connection: Any) -> None:
        """Reads, over a connection to this node, which node has which slots; everything goes to where it belongs."""
        self.owner.use_slots(self.connector.slots(connection, self.address))

    def commands_connected(self) -> None:
        """Commands can be sent."""
        self.owner.connected()
        for subscription in list(self.channels.behind):
            self.channels.read_history(subscription)
        self.look_whether_over()

    def log_refusal(self, what: str, error: ResponseError) -> None:
        """The server does not let us do something: one line a minute."""
        now = monotonic()
        if now - self._refusals_logged.get(what, -REFUSAL_SECONDS) >= REFUSAL_SECONDS:
            self._refusals_logged[what] = now
            log.warning("Redis at %s refuses %s: %s", describe(self.address), what, reason(error))

    def _log_loss(self, error: BaseException) -> None:
        if self._was_there:
            what = "is lost"
        elif isinstance(error, (Refused, ResponseError)):
            what = "is there, but can't be used"
        else:
            what = "can't be reached"
        log.warning("Redis at %s %s, sessions stay: %s", describe(self.address), what, reason(error))

    def lost(self, error: BaseException) -> None:
        """A connection is lost, or can't be made."""
        if not isinstance(error, FAILURES):
            log.error("the link to Redis at %s failed", describe(self.address), exc_info=error)
        if self._outage is None:
            self._outage = Outage(self._statistics)
            self._log_loss(error)
        elif isinstance(error, Refused) and str(error) not in self._outage.refusals:
            log.warning("Redis at %s is there, but %s", describe(self.address), reason(error))
        if isinstance(error, Refused):
            self._outage.refusals.add(str(error))
        self.owner.lost(self)

    def look_whether_over(self) -> None:
        """Something that was amiss is well again."""
        outage = self._outage
        if outage is None or self.commands.has_failed or not self.channels.all_is_well:
            return
        self._outage = None
        statistics = self._statistics
        statistics.reconnects += 1
        log.warning(
            "Redis at %s is back after %.1f s: %d topics subscribed, %d messages not sent, %d perhaps, %d not received",
            describe(self.address),
            monotonic() - outage.began,
            len(self.channels.wanted),
            statistics.unsent - outage.unsent,
            statistics.unconfirmed - outage.unconfirmed,
            statistics.lost - outage.lost,
        )
