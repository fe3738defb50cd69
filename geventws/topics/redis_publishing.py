"""Commands to Redis from a process without gevent's sockets, such as a script: each has its reply before the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from redis.exceptions import AskError, MovedError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from geventws.errors import UsageError
from geventws.topics.nouns import Member, Position
from geventws.topics.redis_commands import Command, Publication
from geventws.topics.redis_connections import (
    FAILURES,
    Address,
    Slots,
    is_readable,
    load_scripts,
    reason,
)
from geventws.topics.redis_process import Configuration, Running
from geventws.topics.statistics import Statistics
from geventws.topics.wire import Channel, kind_of

__all__ = ["Synchronous"]

#: Seconds in which nothing is tried again after an attempt to connect has failed: each may take as long as its timeout.
REST_SECONDS = 1.0


class SynchronousLink:
    """The connections to a server, or to the nodes of a cluster."""

    def __init__(self, owner: Synchronous) -> None:
        self._owner = owner
        self._connections: dict[Address, Any] = {}
        self._rests_until = 0.0
        #: Why that attempt has failed.
        self._reason = ""
        #: Whether the last command that failed may have been done.
        self.was_sent = False

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect has failed, a moment ago."""
        return monotonic() < self._rests_until

    def prepare(self) -> None:
        """Finds out whether the server is a cluster, before commands for it are made."""
        if self._owner.slots is None and self._owner.connector.address not in self._connections and not self.is_away:
            try:
                self._connection(self._owner.connector.address)
            except RedisError:
                pass

    def execute(self, command: Command) -> Any:
        """The reply to a command; raises one of redis-py's errors."""
        slots = self._owner.slots
        address = self._owner.connector.address if slots is None else slots.node(command.slot)
        for attempt in range(4):
            self.was_sent = False
            connection = self._connection(address)
            try:
                self.was_sent = True
                connection.send_command(*command.arguments, check_health=False)
                return connection.read_response()
            except (NoScriptError, ReadOnlyError, MovedError, AskError) as error:
                self.was_sent = False
                if attempt == 3:
                    raise
                if isinstance(error, NoScriptError):
                    load_scripts(connection)
                elif isinstance(error, ReadOnlyError):
                    self._forget(address)
                else:
                    self._owner.use_slots(self._owner.connector.slots(connection, address))
                    assert self._owner.slots is not None
                    address = self._owner.slots.node(command.slot)
            except BaseException as error:
                # One that the server refuses leaves the connection as it was.
                if isinstance(error, ResponseError):
                    self.was_sent = False
                else:
                    self._forget(address)
                raise
        raise AssertionError

    def _connection(self, address: Address) -> Any:
        connection = self._connections.get(address)
        if connection is not None:
            try:
                if not is_readable(connection):
                    return connection
            except FAILURES:
                pass
            # The server has closed it, while nobody looked.
            self._forget(address)
        if self.is_away:
            raise RedisConnectionError(self._reason)
        connector = self._owner.connector
        try:
            connection, greeting = connector.connect(address, connector.timeout)
            try:
                load_scripts(connection)
                if greeting.cluster and self._owner.slots is None:
                    self._owner.use_slots(connector.slots(connection, address))
            except BaseException:
                connection.disconnect()
                raise
        except FAILURES as error:
            self._rests_until = monotonic() + REST_SECONDS
            self._reason = reason(error)
            raise error if isinstance(error, RedisError) else RedisConnectionError(self._reason) from None
        self._connections[address] = connection
        return connection

    def _forget(self, address: Address) -> None:
        connection = self._connections.pop(address, None)
        if connection is not None:
            connection.disconnect()

    def close(self) -> None:
        """Closes the connections."""
        for address in list(self._connections):
            self._forget(address)


class Synchronous(Running):
    """In a process that gevent has not patched, such as a script: nothing runs beside the caller."""

    def __init__(self, configuration: Configuration, statistics: Statistics) -> None:
        super().__init__(configuration, statistics)
        self._link = SynchronousLink(self)
        self._lock = threading.Lock()
        #: Why a message could not be published since the last flush.
        self._error: RedisError | None = None

    @property
    def available(self) -> bool:
        return not self._link.is_away

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved."""
        self.slots = slots

    def wait_for_room(self, topic: str) -> None:
        """Nothing waits."""

    def publish(self, topic: str, opcode: int, payload: bytes) -> bool:
        with self._lock:
            self._link.prepare()
            command = self.publication(self.channels.get(topic), opcode, payload)
            try:
                reply = self._link.execute(command)
            except RedisError as error:
                assert command.publication is not None
                # The next message tells of it.
                self.not_sent(command.publication)
                self._error = error
                if self._link.was_sent:
                    self.statistics.unconfirmed += 1
                else:
                    self.statistics.unsent += 1
                return False
            if command.done is not None:
                command.done(reply)
            return True

    def _plain(self, channel: Channel, opcode: int, payload: bytes, publication: Publication) -> Command:
        # A script may not know of the history that an app keeps of the topic, and has time to have Redis look.
        plain = super()._plain(channel, opcode, payload, publication)
        command = self._positioned(channel, kind_of(opcode), payload, publication.sequence, publication)
        command.arguments += (plain.arguments[-1],)
        return command

    def ask(self, *makes: Callable[[Any], Command]) -> list[Any]:
        with self._lock:
            self._link.prepare()
            return [self._link.execute(make(None)) for make in makes]

    def subscribe(self, topic: str) -> Position | None:
        """Refused: nobody could receive."""
        raise _needs_patch("subscribe to topics")

    def join(self, topic: str, member: Member) -> None:
        """Refused: nobody could keep up the lease."""
        raise _needs_patch("register members")

    def unsubscribe(self, topic: str) -> None:
        """Nothing is subscribed."""

    def leave(self, topic: str, member: Member) -> None:
        """Nobody is registered."""

    def watch_members(self) -> None:
        """Refused: nobody could watch."""
        raise _needs_patch("watch members")

    def flush(self, timeout: float | None = None) -> None:
        """All that was published was answered to, or failed."""
        error, self._error = self._error, None
        if error is not None:
            raise ConnectionError(str(error)) from None

    def close(self) -> None:
        with self._lock:
            self._link.close()


def _needs_patch(doing: str) -> UsageError:
    return UsageError(
        f"to {doing} over Redis, the process has to be patched before anything else: "
        "from gevent import monkey; monkey.patch_all() (gunicorn -k geventws.Worker does it)"
    )
