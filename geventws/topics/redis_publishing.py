"""Commands to Redis from a process without gevent's sockets, each with its reply before the next."""

from __future__ import annotations

from time import monotonic
from typing import Any, Protocol

from redis.exceptions import (
    AskError,
    ConnectionError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from geventws.topics.redis_connections import FAILURES, Address, Connector, Slots, current_process, load_scripts
from geventws.topics.redis_links import Command

__all__ = ["SynchronousLink"]

#: Seconds in which nothing is tried again after an attempt to connect has failed: each may take as long as its timeout.
REST_SECONDS = 1.0


class Owner(Protocol):
    """What has the link."""

    connector: Connector
    slots: Slots | None

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved."""


class SynchronousLink:
    """The connections to a server, or to the nodes of a cluster."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._connections: dict[Address, Any] = {}
        self._process = current_process()
        self._rests_until = 0.0
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
                if not connection.can_read():
                    return connection
            except FAILURES:
                pass
            # The server has closed it, while nobody looked.
            self._forget(address)
        if self.is_away:
            raise ConnectionError("the server is away")
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
            raise error if isinstance(error, RedisError) else ConnectionError(str(error)) from None
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
