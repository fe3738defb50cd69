"""Commands to one server: they wait in an outbox, and go in pipelined batches over one connection.

What was on its way when the connection was lost may have been done; it is never sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from redis.exceptions import (
    AskError,
    ConnectionError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from geventws.topics.redis_connections import (
    FAILURES,
    FIRST_DELAY,
    PING_SECONDS,
    TIMEOUT,
    Delays,
    is_readable,
    load_scripts,
    reason,
    send,
)
from geventws.topics.wire import Channel

if TYPE_CHECKING:
    from geventws.topics.redis_links import Link

__all__ = ["ELSEWHERE", "Command", "Commands", "Publication"]

#: Bytes of commands that wait before who publishes has to wait, and that are sent at a time.
MOST_WAITING = 1024 * 1024
BATCH_SIZE = 256 * 1024
BATCH_COMMANDS = 2000
#: What a command takes beside its arguments, about.
COMMAND_SIZE = 64
#: Seconds of idleness after which a connection is looked at before it is used.
STALE_SECONDS = 0.1
#: What a node says of a slot that it does not have, or not yet, or no more.
ELSEWHERE = (MovedError, AskError, TryAgainError)
#: How often a cluster is asked again that is moving a slot, each time after `FIRST_DELAY`.
CLUSTER_ATTEMPTS = 40
#: How often a script is loaded again for one command.
SCRIPT_ATTEMPTS = 16


class Publication:
    """A message in a command, which is counted, and told of, where it was perhaps not sent."""

    __slots__ = ("channel", "sequence")

    def __init__(self, channel: Channel, sequence: int) -> None:
        self.channel = channel
        self.sequence = sequence


class Command:
    """What Redis is to do. ``done`` is called once, with its reply or with the exception that it came to."""

    __slots__ = ("arguments", "attempts", "done", "publication", "size", "slot")

    def __init__(
        self,
        slot: int,
        arguments: tuple[bytes, ...],
        size: int,
        publication: Publication | None = None,
        done: Callable[[Any], None] | None = None,
    ) -> None:
        self.slot = slot
        self.arguments = arguments
        self.size = size + COMMAND_SIZE
        self.publication = publication
        self.done = done
        self.attempts = 0


class Commands:
    """The commands to the server of a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owner = link.owner
        self._statistics = link.owner.statistics
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self.outbox: deque[Command] = deque()
        #: Bytes in the outbox.
        self.waiting = 0
        #: Commands of which the reply is awaited.
        self.in_flight: list[Command] = []
        #: Whether commands can be sent, and whether the last attempt to have it so has failed.
        self._connected = False
        self.has_failed = False
        #: Set while there is work, and while who publishes need not wait.
        self._work = Event()
        self._room = Event()
        #: Set while no command is on its way.
        self._settled = Event()
        self._settled.set()
        #: Those of nodes that had some of this one's slots: what they have on its way goes before.
        self._predecessors: list[Commands] = []

    @property
    def refuses(self) -> bool:
        """Whether the server is away, so that nothing is taken for it."""
        return not self._connected and (self.has_failed or self._link.is_lost or self._link.ended)

    @property
    def is_full(self) -> bool:
        """Whether who publishes has to wait."""
        return self.waiting > MOST_WAITING and not self.refuses

    @property
    def is_busy(self) -> bool:
        """Whether commands wait, or are on their way."""
        return bool(self.outbox or self.in_flight)

    def wait_for_room(self) -> None:
        """Blocks while too much waits."""
        while self.is_full:
            self._room.clear()
            self._room.wait()

    def submit(self, command: Command) -> bool:
        """Takes a command; False if the server is away."""
        if self._greenlet is None:
            self._start()
        if self.refuses:
            return False
        self.outbox.append(command)
        self.waiting += command.size
        if not self._work.is_set():
            self._work.set()
        return True

    def submit_first(self, commands: list[Command]) -> None:
        """Takes commands before all that wait."""
        self._start()
        if self.refuses:
            self.drop(commands)
            return
        self.outbox.extendleft(reversed(commands))
        self.waiting += sum(command.size for command in commands)
        self._work.set()

    def come_behind(self, others: Commands) -> None:
        """Sends nothing until ``others`` has settled what is on its way, for it goes to slots that are here now."""
        self._predecessors.append(others)

    def take_outbox(self) -> list[Command]:
        """All that waits, for another link."""
        commands = list(self.outbox)
        self.outbox.clear()
        self.waiting = 0
        self._room.set()
        return commands

    def check(self) -> None:
        """Looks whether the connection is there, for another one to the same server is lost."""
        self._work.set()

    def end(self) -> None:
        """Closes the connection; what waits is lost."""
        self._connected, self.has_failed = False, True
        if self._greenlet is not None and self._greenlet is gevent.getcurrent():
            # It settles what is in its hands itself.
            self.drop(self.take_outbox())
            return
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._drop_all(ConnectionError("closed"))

    def drop(self, commands: list[Command], error: BaseException | None = None, sent: bool = False) -> None:
        """Gives commands up, of which it is known that they were not done unless they were ``sent``."""
        for command in commands:
            publication = command.publication
            if publication is not None:
                if sent:
                    self._statistics.unconfirmed += 1
                else:
                    self._statistics.unsent += 1
                self._owner.not_sent(publication)
            if command.done is not None:
                command.done(error or ConnectionError("the server is away"))

    def _drop_all(self, error: BaseException) -> None:
        in_flight, self.in_flight = self.in_flight, []
        self._settled.set()
        waiting = self.take_outbox()
        self.drop(in_flight, error, sent=True)
        self.drop(waiting, error)

    def _start(self) -> None:
        if self._greenlet is None and not self._link.ended:
            self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        delays = Delays()
        while not self._link.ended:
            connection = None
            try:
                connection = self._link.connect(self._link.connector.timeout)
                load_scripts(connection)
                delays.connected()
                self._connected, self.has_failed = True, False
                self._link.commands_connected()
                self._work_off(connection)
            except Stale:
                # Nothing was on its way, and what waits is sent by the next connection if that is to be had now.
                continue
            except Exception as error:
                if self._link.ended:
                    return
                self._connected, self.has_failed = False, True
                # First, so that what is dropped is counted as lost in this outage.
                self._link.lost(error)
                self._drop_all(error)
            finally:
                if connection is not None:
                    connection.disconnect()
            delays.wait()

    def _work_off(self, connection: Any) -> None:
        used = monotonic()
        while not self._link.ended:
            if not self.outbox:
                self._work.clear()
                idle = not self._work.wait(PING_SECONDS)
                # Where the other connection was lost this one may be as well.
                if monotonic() - used > STALE_SECONDS or self._link.is_lost:
                    _check(connection, idle)
                    used = monotonic()
                if not self.outbox:
                    continue
            while self._predecessors:
                self._predecessors.pop()._settled.wait(TIMEOUT)
            self._exchange(connection, self._next_batch())
            used = monotonic()

    def _next_batch(self) -> list[Command]:
        outbox = self.outbox
        batch: list[Command] = []
        size = 0
        while outbox and size < BATCH_SIZE and len(batch) < BATCH_COMMANDS:
            command = outbox.popleft()
            size += command.size
            batch.append(command)
        self.waiting -= size
        if self.waiting <= MOST_WAITING:
            self._room.set()
        self.in_flight = batch
        self._settled.clear()
        return batch

    def _exchange(self, connection: Any, batch: list[Command]) -> None:
        send(connection, [command.arguments for command in batch])
        read = connection.read_response
        replies: list[tuple[Command, Any]] = []
        refused: list[tuple[Command, ResponseError]] = []
        failure: Exception | None = None
        answered = 0
        try:
            for command in batch:
                try:
                    reply = read()
                except ResponseError as error:
                    refused.append((command, error))
                else:
                    if command.done is not None:
                        replies.append((command, reply))
                answered += 1
        except Exception as error:
            failure = error
        # What stays in flight when this raises may have been done; each refusal takes its command out.
        self.in_flight = [command for command, _ in refused] + batch[answered:]
        for command, reply in replies:
            command.done(reply)  # type: ignore[misc]
        # Why those were refused that stay in flight, and are sent again.
        again: list[ResponseError] = []
        for command, refusal in refused:
            command.attempts += 1
            if failure is None and _may_succeed_later(command, refusal):
                again.append(refusal)
            else:
                self._refuse(command, refusal)
        if failure is not None:
            raise failure
        if again:
            self._prepare_for_more(connection, again)
            commands, self.in_flight = self.in_flight, []
            self._owner.send_again(commands)
        for _, refusal in refused:
            if isinstance(refusal, ReadOnlyError):
                raise ConnectionError(str(refusal))
        self._settled.set()

    def _prepare_for_more(self, connection: Any, errors: list[ResponseError]) -> None:
        """Puts right what commands were refused for that are to be sent again."""
        if any(isinstance(error, NoScriptError) for error in errors):
            # Somebody has flushed the server's scripts.
            load_scripts(connection)
        moved = [error for error in errors if isinstance(error, ELSEWHERE)]
        if moved:
            if not isinstance(moved[-1], MovedError):
                # A slot that is on its way.
                gevent.sleep(FIRST_DELAY)
            try:
                self._link.read_slots(connection)
            except ResponseError:
                pass

    def _refuse(self, command: Command, error: ResponseError) -> None:
        """The server has not done what it was to do."""
        self.in_flight.remove(command)
        if command.publication is not None:
            self._owner.refused += 1
            self._owner.refusal = reason(error)
            self._link.log_refusal("messages", error)
        self.drop([command], error)


def _may_succeed_later(command: Command, error: ResponseError) -> bool:
    """Whether a command that was refused is to be sent again, perhaps to another node."""
    if isinstance(error, ELSEWHERE):
        return command.attempts <= CLUSTER_ATTEMPTS
    return isinstance(error, NoScriptError) and command.attempts <= SCRIPT_ATTEMPTS


class Stale(Exception):
    """A connection was lost while nothing was on its way."""


def _check(connection: Any, ping: bool) -> None:
    """Raises `Stale` if the server has closed the connection, or if a ping is not answered."""
    try:
        if is_readable(connection):
            raise Stale
        if ping:
            connection.send_command("PING", check_health=False)
            connection.read_response()
    except FAILURES:
        raise Stale from None
