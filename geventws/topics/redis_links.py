"""The way to one server: commands go in pipelined batches over one connection, messages come in over another.

Each connection has its greenlet, which makes it anew when it is lost; what was on its way then is never sent again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from random import random
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from geventws.topics.redis_connections import (
    FAILURES,
    TIMEOUT,
    Address,
    Connector,
    Refused,
    Slots,
    current_process,
    describe,
    load_scripts,
    send,
)
from geventws.topics.redis_connections import reason as reason_of
from geventws.topics.redis_subscriptions import Subscription
from geventws.topics.statistics import Statistics

__all__ = ["Command", "Link", "Owner", "Publication"]

log = logging.getLogger("geventws")

#: Bytes of commands that wait before who publishes has to wait, and that are sent at a time.
MOST_WAITING = 1024 * 1024
BATCH_SIZE = 256 * 1024
BATCH_COMMANDS = 2000
#: What a command takes beside its arguments, about.
COMMAND_SIZE = 64
#: Seconds after which an idle connection is pinged; after as many more it is lost.
PING_SECONDS = 5.0
#: Seconds of idleness after which a connection is looked at before it is used.
STALE_SECONDS = 0.1
#: Seconds before the second attempt to connect at most, doubled each time, and the longest ones.
FIRST_DELAY, LONGEST_DELAY = 0.05, 1.0
#: Seconds of taking in messages at a stretch, messages after which the clock is looked at, and a sleep that lets the
#: hub look at its sockets.
SLICE_SECONDS, MESSAGES_BETWEEN_LOOKS, A_MOMENT = 0.005, 64, 1e-6
#: What a node says of a slot that it does not have, or not yet, or no more.
ELSEWHERE = (MovedError, AskError, TryAgainError, ClusterDownError)
#: How often a cluster is asked again that is moving a slot or choosing a primary, each time after `FIRST_DELAY`.
CLUSTER_ATTEMPTS = 40
#: Seconds between two lines about the same kind of refusal.
REFUSAL_SECONDS = 60.0
#: Subscriptions that are sent at a time.
SUBSCRIBED_AT_ONCE = 1000


class Publication:
    """A message in a command: counted, and delivered here if it is of a topic with history and can't be sent."""

    __slots__ = ("opcode", "payload", "topic")

    def __init__(self, topic: str | None, opcode: int, payload: bytes) -> None:
        #: None for a message that was delivered here at once.
        self.topic = topic
        self.opcode = opcode
        self.payload = payload


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


class Owner(Protocol):
    """What has the links."""

    statistics: Statistics

    @property
    def sharded(self) -> bool:
        """Whether the server is a cluster, as far as known."""

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved."""

    def send_again(self, commands: list[Command]) -> None:
        """Sends what another node is to do, before all else."""

    def deliver_here(self, publication: Publication) -> None:
        """A message that was taken to be sent, and was not."""

    def history_command(self, subscription: Subscription, done: Callable[[Any], None]) -> Command:
        """The command that reads what a subscription lacks."""

    def lost(self, link: Link) -> None:
        """The server does not answer, or refuses us; in a cluster another one may have its slots."""


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

    def __init__(self, owner: Owner, connector: Connector, address: Address) -> None:
        self.address = address
        self._owner = owner
        self._connector = connector
        self._statistics = owner.statistics
        self._greenlets: dict[Callable[[], None], gevent.Greenlet[..., Any]] = {}
        self._outage: Outage | None = None
        self._ended = False
        self._process = current_process()
        self._refusals_logged: dict[str, float] = {}
        self._asking = False

        self.outbox: deque[Command] = deque()
        #: Bytes in the outbox.
        self.waiting = 0
        #: Commands of which the reply is awaited.
        self.in_flight: list[Command] = []
        #: Whether commands can be sent, and whether the last attempt to have it so has failed.
        self._connected = False
        self._failed = False
        self._work = Event()
        #: Set while no command is on its way.
        self._settled = Event()
        self._settled.set()
        #: Links that had some of this one's slots: what they have on its way goes before.
        self._predecessors: list[Link] = []
        self._room = Event()

        self.wanted: dict[bytes, Subscription] = {}
        self._subscriber: Any = None
        #: Channels that the server was asked to subscribe us to on the present connection.
        self.sent: set[bytes] = set()
        #: Channels for which that may not be what is wanted.
        self.changed: dict[bytes, None] = {}
        #: What the server's next acknowledgements are about: the channel, and the subscription or None.
        self.expected: deque[tuple[bytes, Subscription | None]] = deque()
        self._wishes = Event()
        #: Subscriptions whose history is to be read.
        self.behind: dict[Subscription, None] = {}

    # Commands.

    @property
    def ended(self) -> bool:
        """Whether this link is no more: it is closed, or its greenlets are in a fork of their process."""
        return self._ended or self._process != current_process()

    @property
    def refuses(self) -> bool:
        """Whether the server is away, so that nothing is taken for it."""
        return self._ended or (not self._connected and (self._failed or self._outage is not None))

    @property
    def is_full(self) -> bool:
        """Whether who publishes has to wait."""
        return self.waiting > MOST_WAITING and not self.refuses

    @property
    def is_lost(self) -> bool:
        """Whether a connection is lost and not all is well again."""
        return self._outage is not None

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
        if self.refuses:
            self._start(self._run_commands)
            return False
        self.outbox.append(command)
        self.waiting += command.size
        if not self._work.is_set():
            self._start(self._run_commands)
            self._work.set()
        return True

    def submit_first(self, commands: list[Command]) -> None:
        """Takes commands before all that wait."""
        if self.refuses:
            self._drop(commands)
            return
        self._start(self._run_commands)
        self.outbox.extendleft(reversed(commands))
        self.waiting += sum(command.size for command in commands)
        self._work.set()

    def come_behind(self, link: Link) -> None:
        """Sends nothing until ``link`` has settled what is on its way to a node that has lost slots to this one's."""
        self._predecessors.append(link)

    def refuse(self, commands: list[Command]) -> None:
        """Drops commands that were not taken."""
        self._drop(commands)

    def take_outbox(self) -> list[Command]:
        """All that waits, for another link."""
        commands = list(self.outbox)
        self.outbox.clear()
        self.waiting = 0
        self._room.set()
        return commands

    def _start(self, run: Callable[[], None]) -> None:
        if not self.ended and run not in self._greenlets:
            self._greenlets[run] = gevent.spawn(run)

    def leave_cluster(self) -> None:
        """Ends, since all its slots have gone to other nodes."""
        if self._outage is not None:
            log.warning("Redis at %s has no slots any more: others have its topics", describe(self.address))
        self.end()

    def end(self) -> None:
        """Closes the connections; what waits is lost."""
        self._ended = True
        for greenlet in self._greenlets.values():
            if greenlet is not gevent.getcurrent():
                greenlet.kill(block=False)
        if gevent.getcurrent() is self._greenlets.get(self._run_commands):
            # It settles what is in its hands itself.
            self._drop(self.take_outbox())
        else:
            self._drop_all(ConnectionError("closed"))

    def _run_commands(self) -> None:
        delays = Delays()
        while not self.ended:
            connection = None
            try:
                connection = self._connect(self._connector.timeout)
                load_scripts(connection)
                delays.connected()
                self._commands_connected()
                self._work_off(connection)
            except Stale:
                # Nothing was on its way, and what waits is sent by the next connection if that is to be had now.
                continue
            except Exception as error:
                if self.ended:
                    return
                self._connected, self._failed = False, True
                self._drop_all(error)
                self._lost(error)
            finally:
                if connection is not None:
                    connection.disconnect()
            delays.wait()

    def _connect(self, timeout: float | None) -> Any:
        connection, greeting = self._connector.connect(self.address, timeout)
        if greeting.cluster and not self._owner.sharded:
            try:
                self._owner.use_slots(self._connector.slots(connection, self.address))
            except BaseException:
                connection.disconnect()
                raise
        if self.ended:
            connection.disconnect()
            raise gevent.GreenletExit
        return connection

    def _commands_connected(self) -> None:
        self._connected, self._failed = True, False
        if self._outage is not None:
            self._statistics.reconnects += 1
        for subscription in list(self.behind):
            self.read_history(subscription)
        self._look_whether_over()

    def _work_off(self, connection: Any) -> None:
        used = monotonic()
        while not self.ended:
            if not self.outbox:
                self._work.clear()
                idle = not self._work.wait(PING_SECONDS)
                # Where the other connection was lost this one may be as well.
                if monotonic() - used > STALE_SECONDS or self._outage is not None:
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
        # What is left may have been done.
        self.in_flight = batch[answered:] + [command for command, _ in refused]
        for command, reply in replies:
            command.done(reply)  # type: ignore[misc]
        if failure is not None:
            self.in_flight = batch[answered:]
            for command, refusal in refused:
                self._refuse(command, refusal)
            raise failure
        if refused:
            self._take_refusals(connection, refused)
        self.in_flight = []
        self._settled.set()

    def _take_refusals(self, connection: Any, refused: list[tuple[Command, ResponseError]]) -> None:
        again: list[Command] = []
        moved = lost = None
        for command, error in refused:
            command.attempts += 1
            if isinstance(error, ReadOnlyError):
                lost = error
            if command.attempts <= CLUSTER_ATTEMPTS and isinstance(error, ELSEWHERE):
                moved = error
                again.append(command)
            elif command.attempts <= 3 and isinstance(error, NoScriptError):
                again.append(command)
            else:
                self._refuse(command, error)
        if again:
            self.in_flight = again
            if any(isinstance(error, NoScriptError) for _, error in refused):
                # Somebody has flushed the server's scripts.
                load_scripts(connection)
            if moved is not None:
                if not isinstance(moved, MovedError):
                    # A slot that is on its way, or a cluster that is choosing a primary.
                    gevent.sleep(FIRST_DELAY)
                try:
                    self._owner.use_slots(self._connector.slots(connection, self.address))
                except ResponseError:
                    pass
            self._owner.send_again(again)
        if lost is not None:
            raise ConnectionError(str(lost))

    def _refuse(self, command: Command, error: ResponseError) -> None:
        """The server has not done what it was to do."""
        if command.publication is not None:
            self._log_refusal("messages", error)
        self._drop([command], error)

    def _log_refusal(self, what: str, error: ResponseError) -> None:
        now = monotonic()
        if now - self._refusals_logged.get(what, -REFUSAL_SECONDS) >= REFUSAL_SECONDS:
            self._refusals_logged[what] = now
            log.warning("Redis at %s refuses %s: %s", describe(self.address), what, reason_of(error))

    def _drop(self, commands: list[Command], error: BaseException | None = None, sent: bool = False) -> None:
        for command in commands:
            publication = command.publication
            if publication is not None:
                if sent:
                    self._statistics.unconfirmed += 1
                else:
                    self._statistics.unsent += 1
                    if publication.topic is not None:
                        self._owner.deliver_here(publication)
            if command.done is not None:
                command.done(error or ConnectionError("the server is away"))

    def _drop_all(self, error: BaseException) -> None:
        in_flight, self.in_flight = self.in_flight, []
        self._settled.set()
        waiting = self.take_outbox()
        self._drop(in_flight, error, sent=True)
        self._drop(waiting, error)

    # Subscriptions.

    def want(self, subscription: Subscription) -> None:
        """Subscribes; ``subscription.ready`` is set when that is done, or can't be for now."""
        channel = subscription.topic.channel
        self.wanted[channel] = subscription
        self.changed[channel] = None
        if self._subscriber is None and self._outage is not None:
            subscription.give_up()
        self._start(self._run_subscriptions)
        self._start(self._run_wishes)
        self._wishes.set()

    def unwant(self, subscription: Subscription) -> None:
        """Unsubscribes."""
        channel = subscription.topic.channel
        if self.wanted.get(channel) is subscription:
            del self.wanted[channel]
            self.behind.pop(subscription, None)
            self.changed[channel] = None
            self._wishes.set()
        subscription.give_up()

    def hand_over(self, subscription: Subscription, link: Link) -> None:
        """Leaves a subscription to another link, which has its slot now."""
        was_known = subscription.active or subscription.told
        del self.wanted[subscription.topic.channel]
        self.behind.pop(subscription, None)
        self.changed[subscription.topic.channel] = None
        self._wishes.set()
        if was_known:
            subscription.broken()
        subscription.requested = False
        link.want(subscription)

    def _run_subscriptions(self) -> None:
        delays = Delays()
        while not self.ended:
            connection = None
            try:
                connection = self._connect(PING_SECONDS)
                delays.connected()
                self._subscriber_connected(connection)
                self._read(connection)
            except Exception as error:
                if self.ended:
                    return
                self._subscriber = None
                # The other connection may be lost too.
                self._work.set()
                for subscription in list(self.wanted.values()):
                    subscription.broken()
                self._lost(error)
            finally:
                self._subscriber = None
                if connection is not None:
                    connection.disconnect()
            delays.wait()

    def _subscriber_connected(self, connection: Any) -> None:
        self.expected.clear()
        self.sent.clear()
        for subscription in self.wanted.values():
            subscription.requested = False
        self.changed = dict.fromkeys(self.wanted)
        self._subscriber = connection
        self._wishes.set()
        self._look_whether_over()

    def _run_wishes(self) -> None:
        while not self.ended:
            self._wishes.wait()
            self._wishes.clear()
            while self.changed and self._subscriber is not None:
                connection = self._subscriber
                commands = self._next_wishes()
                if not commands:
                    break
                try:
                    send(connection, commands)
                except FAILURES as error:
                    # The greenlet that reads finds out, and makes another.
                    log.debug("Redis at %s: %s", describe(self.address), error)
                    if self._subscriber is connection:
                        self._subscriber = None
            self._look_whether_over()

    def _next_wishes(self) -> list[tuple[bytes, bytes]]:
        subscribe, unsubscribe = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE") if self._owner.sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        )
        commands: list[tuple[bytes, bytes]] = []
        while self.changed and len(commands) < SUBSCRIBED_AT_ONCE:
            channel, _ = self.changed.popitem()
            subscription = self.wanted.get(channel)
            if subscription is not None:
                # Again where one that is over still was subscribed: the answer tells from when on all is received.
                if not subscription.requested:
                    subscription.requested = True
                    self.sent.add(channel)
                    self.expected.append((channel, subscription))
                    commands.append((subscribe, channel))
            elif channel in self.sent:
                self.sent.discard(channel)
                self.expected.append((channel, None))
                commands.append((unsubscribe, channel))
        return commands

    def _read(self, connection: Any) -> None:
        read, wanted = connection.read_response, self.wanted
        pinged = False
        count, ends = 0, 0.0
        while True:
            try:
                reply = read(disconnect_on_error=False)
            except TimeoutError:
                if pinged:
                    raise ConnectionError(f"no answer for {2 * PING_SECONDS:g} s") from None
                pinged = True
                connection.send_command("PING", check_health=False)
                continue
            except ResponseError as error:
                self._subscription_refused(error)
                continue
            if self._subscriber is not connection:
                raise ConnectionError("the server is lost")
            pinged = False
            kind = reply[0]
            if kind == b"message" or kind == b"smessage":
                subscription = wanted.get(reply[1])
                if subscription is not None and subscription.active:
                    subscription.arrived(reply[2])
            else:
                self._acknowledged(kind, reply)
            count += 1
            if count % MESSAGES_BETWEEN_LOOKS == 0:
                now = monotonic()
                # One that was idle begins a stretch.
                if now > ends + SLICE_SECONDS:
                    ends = now + SLICE_SECONDS
                elif now > ends:
                    gevent.sleep(A_MOMENT)
                    ends = monotonic() + SLICE_SECONDS

    def _acknowledged(self, kind: Any, reply: Any) -> None:
        if kind not in (b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"):
            return
        channel = reply[1]
        if kind == b"sunsubscribe" and (not self.expected or self.expected[0] != (channel, None)):
            # A cluster's slot has moved, and who has it now is to be asked.
            self._moved(channel)
            return
        if not self.expected or self.expected[0][0] != channel:
            raise ConnectionError("the server has acknowledged what it was not asked")
        _, subscription = self.expected.popleft()
        if subscription is not None and self.wanted.get(channel) is subscription:
            subscription.acknowledged()
        if not self.expected:
            self._look_whether_over()

    def _moved(self, channel: bytes) -> None:
        self.sent.discard(channel)
        subscription = self.wanted.get(channel)
        if subscription is not None:
            subscription.broken()
        self._ask_for_slots()

    def _subscription_refused(self, error: ResponseError) -> None:
        if isinstance(error, AuthenticationError) or not self.expected:
            raise ConnectionError(str(error))
        channel, subscription = self.expected.popleft()
        self.sent.discard(channel)
        if subscription is None:
            return
        if isinstance(error, ELSEWHERE):
            subscription.requested = False
            subscription.give_up()
            self._ask_for_slots()
            return
        self._log_refusal("subscriptions", error)
        subscription.refused()

    def _ask_for_slots(self) -> None:
        """Asks, over the other connection, who has the slots now; whose subscriptions are here is settled by that."""

        def done(reply: Any) -> None:
            self._asking = False
            # Once more what is still to be here.
            for channel, subscription in self.wanted.items():
                if not subscription.requested:
                    self.changed[channel] = None
            gevent.spawn_later(FIRST_DELAY, self._wishes.set)

        if self._asking:
            return
        self._asking = True
        gevent.spawn(self._refresh_slots, done)

    def _refresh_slots(self, done: Callable[[Any], None]) -> None:
        try:
            connection, _ = self._connector.connect(self.address, self._connector.timeout)
            try:
                self._owner.use_slots(self._connector.slots(connection, self.address))
            finally:
                connection.disconnect()
        except FAILURES:
            pass
        done(None)

    def read_history(self, subscription: Subscription) -> None:
        """Has a subscription catch up, now or once the server is back."""
        self.behind[subscription] = None

        def done(reply: Any) -> None:
            if subscription not in self.behind:
                return
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                # It is read once the server is back.
                subscription.give_up()
                return
            if isinstance(reply, ResponseError):
                del self.behind[subscription]
                self._log_refusal("histories", reply)
                subscription.not_caught_up()
            else:
                del self.behind[subscription]
                subscription.caught_up(reply)
            self._look_whether_over()

        if not self.submit(self._owner.history_command(subscription, done)):
            subscription.give_up()

    # What the operator is told.

    def _lost(self, error: BaseException) -> None:
        if not isinstance(error, FAILURES):
            log.error("the link to Redis at %s failed", describe(self.address), exc_info=error)
        if self._outage is None:
            self._outage = Outage(self._statistics)
            log.warning("Redis at %s is lost, sessions stay: %s", describe(self.address), reason_of(error))
        elif isinstance(error, Refused) and str(error) not in self._outage.refusals:
            log.warning("Redis at %s is there, but %s", describe(self.address), reason_of(error))
        if isinstance(error, Refused):
            self._outage.refusals.add(str(error))
        self._owner.lost(self)

    def _look_whether_over(self) -> None:
        outage = self._outage
        if outage is None or self._failed or (self.wanted and self._subscriber is None):
            return
        if self.changed or self.expected or self.behind:
            return
        self._outage = None
        statistics = self._statistics
        log.warning(
            "Redis at %s is back after %.1f s: %d topics subscribed, %d messages not sent, %d perhaps, %d not received",
            describe(self.address),
            monotonic() - outage.began,
            len(self.wanted),
            statistics.unsent - outage.unsent,
            statistics.unconfirmed - outage.unconfirmed,
            statistics.lost - outage.lost,
        )


class Stale(Exception):
    """A connection was lost while nothing was on its way."""


def _check(connection: Any, ping: bool) -> None:
    """Raises `Stale` if the server has closed the connection, or if a ping is not answered."""
    try:
        if connection.can_read():
            raise Stale
        if ping:
            connection.send_command("PING", check_health=False)
            connection.read_response()
    except FAILURES:
        raise Stale from None


class Delays:
    """How long to wait between attempts: exponential, with full jitter, so that many processes don't come at once."""

    def __init__(self) -> None:
        self._longest = FIRST_DELAY
        self._connected = 0.0

    def connected(self) -> None:
        """An attempt has succeeded."""
        self._connected = monotonic()

    def wait(self) -> None:
        """Waits before the next attempt."""
        # One that lasts begins anew; one that is lost at once does not.
        if self._connected and monotonic() - self._connected > LONGEST_DELAY:
            self._longest = FIRST_DELAY
        self._connected = 0.0
        gevent.sleep(random() * self._longest)
        self._longest = min(self._longest * 2, LONGEST_DELAY)
