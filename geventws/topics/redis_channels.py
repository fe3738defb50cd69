"""Channels of one server: what this process listens to there, over one connection.

What is wanted and what the server was asked for are kept apart: many who come and go at a time cost it little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from redis.exceptions import AuthenticationError, ClusterDownError, ConnectionError, ResponseError, TimeoutError

from geventws.topics.redis_commands import ELSEWHERE
from geventws.topics.redis_connections import FAILURES, PING_SECONDS, Delays, send
from geventws.topics.redis_subscriptions import ChannelSubscription

if TYPE_CHECKING:
    from geventws.topics.redis_links import Link

__all__ = ["Channels"]

#: Seconds of taking in messages at a stretch, and a sleep that lets the hub look at its sockets.
SLICE_SECONDS, A_MOMENT = 0.005, 1e-6
#: Seconds after which a cluster is asked again that was not complete.
CLUSTER_SECONDS = 0.5
#: Subscriptions that are sent at a time.
SUBSCRIBED_AT_ONCE = 1000


class Channels:
    """The channels of the server of a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owner = link.owner
        self._greenlets: list[gevent.Greenlet[..., Any]] = []
        self.wanted: dict[bytes, ChannelSubscription] = {}
        self._connection: Any = None
        #: Channels that the server was asked to subscribe us to on the present connection.
        self.sent: set[bytes] = set()
        #: Channels for which that may not be what is wanted.
        self.changed: dict[bytes, None] = {}
        #: What the server's next acknowledgements are about: the channel, and the subscription or None.
        self.expected: deque[tuple[bytes, ChannelSubscription | None]] = deque()
        self._wishes = Event()
        #: Subscriptions whose history is to be read.
        self.behind: dict[ChannelSubscription, None] = {}
        self._asks_for_slots = False

    @property
    def all_is_well(self) -> bool:
        """Whether all that is wanted is subscribed, and has caught up."""
        if self.wanted and self._connection is None:
            return False
        return not (self.changed or self.expected or self.behind)

    def want(self, subscription: ChannelSubscription) -> None:
        """Subscribes; ``subscription.ready`` is set when that is done, or can't be for now."""
        name = subscription.channel.name
        self.wanted[name] = subscription
        self.changed[name] = None
        if self._connection is None and self._link.is_lost:
            subscription.give_up()
        if not self._greenlets and not self._link.ended:
            self._greenlets = [gevent.spawn(self._run), gevent.spawn(self._run_wishes)]
        self._wishes.set()

    def unwant(self, subscription: ChannelSubscription) -> None:
        """Unsubscribes."""
        name = subscription.channel.name
        if self.wanted.get(name) is subscription:
            del self.wanted[name]
            self.behind.pop(subscription, None)
            self.changed[name] = None
            self._wishes.set()
        subscription.give_up()

    def hand_over(self, subscription: ChannelSubscription, others: Channels) -> None:
        """Leaves a subscription to another node, which has its slot now."""
        was_known = subscription.active or subscription.told
        del self.wanted[subscription.channel.name]
        self.behind.pop(subscription, None)
        self.changed[subscription.channel.name] = None
        self._wishes.set()
        if was_known:
            subscription.broken()
        subscription.requested = False
        others.want(subscription)

    def end(self) -> None:
        """Closes the connection."""
        for greenlet in self._greenlets:
            if greenlet is not gevent.getcurrent():
                greenlet.kill(block=False)

    def _run(self) -> None:
        delays = Delays()
        while not self._link.ended:
            connection = None
            try:
                connection = self._link.connect(PING_SECONDS)
                delays.connected()
                self._begin(connection)
                self._read(connection)
            except Exception as error:
                if self._link.ended:
                    return
                self._connection = None
                # The other connection may be lost too.
                self._link.commands.check()
                for subscription in list(self.wanted.values()):
                    subscription.broken()
                self._link.lost(error)
            finally:
                self._connection = None
                if connection is not None:
                    connection.disconnect()
            delays.wait()

    def _begin(self, connection: Any) -> None:
        self.expected.clear()
        self.sent.clear()
        for subscription in self.wanted.values():
            subscription.requested = False
        self.changed = dict.fromkeys(self.wanted)
        self._connection = connection
        self._wishes.set()
        self._link.look_whether_over()

    def _run_wishes(self) -> None:
        while not self._link.ended:
            self._wishes.wait()
            self._wishes.clear()
            while self.changed and self._connection is not None:
                connection = self._connection
                commands = self._next_wishes()
                if not commands:
                    break
                try:
                    send(connection, commands)
                except FAILURES:
                    # The greenlet that reads finds out, and makes another.
                    if self._connection is connection:
                        self._connection = None
            self._link.look_whether_over()

    def _next_wishes(self) -> list[tuple[bytes, bytes]]:
        subscribe, unsubscribe = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE") if self._owner.sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        )
        commands: list[tuple[bytes, bytes]] = []
        while self.changed and len(commands) < SUBSCRIBED_AT_ONCE:
            name, _ = self.changed.popitem()
            subscription = self.wanted.get(name)
            if subscription is not None:
                # Again where one that is over still was subscribed: the answer tells from when on all is received.
                if not subscription.requested:
                    subscription.requested = True
                    self.sent.add(name)
                    self.expected.append((name, subscription))
                    commands.append((subscribe, name))
            elif name in self.sent:
                self.sent.discard(name)
                self.expected.append((name, None))
                commands.append((unsubscribe, name))
        return commands

    def _read(self, connection: Any) -> None:
        read, wanted = connection.read_response, self.wanted
        pinged = False
        ends = 0.0
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
            if self._connection is not connection:
                raise ConnectionError("the server is lost")
            pinged = False
            kind = reply[0]
            if kind == b"message" or kind == b"smessage":
                subscription = wanted.get(reply[1])
                if subscription is not None and subscription.active:
                    subscription.arrived(reply[2])
            else:
                self._acknowledged(kind, reply)
            if monotonic() > ends:
                gevent.sleep(A_MOMENT)
                if self._link.ended:
                    # In a fork of the process, whose parent takes in what is left of what was read.
                    raise gevent.GreenletExit
                ends = monotonic() + SLICE_SECONDS

    def _acknowledged(self, kind: Any, reply: Any) -> None:
        if kind not in (b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"):
            return
        name = reply[1]
        if kind == b"sunsubscribe" and (not self.expected or self.expected[0] != (name, None)):
            # A cluster's slot has moved, and who has it now is to be asked.
            self._moved(name)
            return
        if not self.expected or self.expected[0][0] != name:
            raise ConnectionError("the server has acknowledged what it was not asked")
        _, subscription = self.expected.popleft()
        if subscription is not None and self.wanted.get(name) is subscription:
            subscription.acknowledged()
        if not self.expected:
            self._link.look_whether_over()

    def _moved(self, name: bytes) -> None:
        self.sent.discard(name)
        subscription = self.wanted.get(name)
        if subscription is not None:
            subscription.broken()
        self._ask_for_slots()

    def _subscription_refused(self, error: ResponseError) -> None:
        if isinstance(error, AuthenticationError) or not self.expected:
            raise ConnectionError(str(error))
        name, subscription = self.expected.popleft()
        self.sent.discard(name)
        if subscription is None:
            return
        if isinstance(error, (*ELSEWHERE, ClusterDownError)):
            subscription.requested = False
            subscription.give_up()
            self._ask_for_slots()
            return
        self._link.log_refusal("subscriptions", error)
        subscription.refused()

    def _ask_for_slots(self) -> None:
        """Asks, over the other connection, who has the slots now; whose subscriptions are here is settled by that."""

        def done() -> None:
            self._asks_for_slots = False
            # Once more what is still to be here.
            for name, subscription in self.wanted.items():
                if not subscription.requested:
                    self.changed[name] = None
            gevent.spawn_later(CLUSTER_SECONDS, self._wishes.set)

        if self._asks_for_slots:
            return
        self._asks_for_slots = True
        gevent.spawn(self._refresh_slots, done)

    def _refresh_slots(self, done: Callable[[], None]) -> None:
        try:
            connection, _ = self._link.connector.connect(self._link.address, self._link.connector.timeout)
            try:
                self._link.read_slots(connection)
            finally:
                connection.disconnect()
        except FAILURES:
            pass
        done()

    def _read_again(self, subscription: ChannelSubscription) -> None:
        if subscription in self.behind and not self._link.ended:
            self.read_history(subscription)

    def read_history(self, subscription: ChannelSubscription) -> None:
        """Has a subscription catch up, now or once the server is back."""
        self.behind[subscription] = None
        reading = subscription.reading

        def done(reply: Any) -> None:
            if subscription not in self.behind or subscription.reading != reading:
                # Another connection's reply was there before.
                return
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                # It is read once the server is back.
                subscription.give_up()
                return
            if isinstance(reply, ClusterDownError):
                # It lacks a node, or this one has only just come back to it.
                subscription.give_up()
                gevent.spawn_later(CLUSTER_SECONDS, self._read_again, subscription)
                return
            if isinstance(reply, ResponseError):
                del self.behind[subscription]
                self._link.log_refusal("histories", reply)
                subscription.not_caught_up()
            else:
                del self.behind[subscription]
                subscription.caught_up(reply)
            self._link.look_whether_over()

        if not self._link.commands.submit(self._owner.history_command(subscription, done)):
            subscription.give_up()
