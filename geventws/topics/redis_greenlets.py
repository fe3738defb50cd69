"""What runs in a process that gevent has patched: greenlets send, receive and keep up the members' leases."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub
from gevent.event import AsyncResult, Event
from gevent.hub import Hub
from redis.exceptions import RedisError

from geventws.errors import UsageError
from geventws.topics.nouns import Member, Position
from geventws.topics.redis_commands import Command, Publication
from geventws.topics.redis_connections import Slots, describe
from geventws.topics.redis_links import Link
from geventws.topics.redis_presence import Attendance
from geventws.topics.redis_process import Configuration, Running
from geventws.topics.redis_subscriptions import ChannelSubscription
from geventws.topics.statistics import Statistics

__all__ = ["Greenlets"]

#: Seconds that the end of a process may wait for what is yet to be sent.
EXIT_SECONDS = 1.0
#: Seconds until Redis is told again of messages that it lacks, where it has refused that: at first, and at most.
SETTLING_SECONDS, LONGEST_SETTLING = 0.5, 30.0


class Greenlets(Running):
    """In a process that gevent has patched: the links to all servers, and who is subscribed and on topics here."""

    def __init__(self, configuration: Configuration, statistics: Statistics) -> None:
        super().__init__(configuration, statistics)
        self.hub = get_hub()
        self.links: dict[Any, Link] = {self.connector.address: Link(self, self.connector.address)}
        #: The link where there is but one server.
        self._only: Link | None = self.links[self.connector.address]
        self.attendance = Attendance(self)
        self._looking = False
        #: Messages that servers have refused, and why the last one was.
        self.refused = 0
        self.refusal = ""
        self._settling: gevent.Greenlet[..., Any] | None = None
        self._settle_now = Event()

    @property
    def available(self) -> bool:
        return not any(link.is_lost for link in self.links.values())

    # What links need of their owner.

    def link(self, slot: int) -> Link:
        """The link to the server that has a slot."""
        if self._only is not None:
            return self._only
        assert self.slots is not None
        return self.links[self.slots.node(slot)]

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved: everything goes to where it belongs."""
        if slots == self.slots:
            return
        first = self.slots is None
        self.slots = slots
        self._only = None
        old = dict(self.links)
        for address in slots.nodes:
            if address not in self.links:
                self.links[address] = Link(self, address)
        gone = [link for address, link in old.items() if address not in slots.nodes]
        for link in gone:
            del self.links[link.address]
        for link in old.values():
            for later in {self.link(command.slot) for command in link.commands.in_flight}:
                if later is not link:
                    later.commands.come_behind(link.commands)
            for command in link.commands.take_outbox():
                if first and command.arguments[0] == b"PUBLISH":
                    command.arguments = (b"SPUBLISH", *command.arguments[1:])
                elif first and command.arguments[-1] == b"PUBLISH":
                    command.arguments = (*command.arguments[:-1], b"SPUBLISH")
                self.ask_later(command)
            for subscription in list(link.channels.wanted.values()):
                new = self.link(subscription.channel.slot)
                if new is not link:
                    link.channels.hand_over(subscription, new.channels)
        for link in gone:
            link.leave_cluster()

    def send_again(self, commands: list[Command]) -> None:
        """Sends what another node is to do, before all else."""
        by_link: dict[Link, list[Command]] = {}
        for command in commands:
            by_link.setdefault(self.link(command.slot), []).append(command)
        for link, those in by_link.items():
            link.commands.submit_first(those)

    def not_sent(self, publication: Publication) -> None:
        """A message that was taken to be sent, and was not, or perhaps not: here it is delivered all the same."""
        super().not_sent(publication)
        # One of a topic without a history was so at once.
        subscription = self.subscriptions.get(publication.channel.topic)
        if subscription is not None:
            subscription.deliver_own(publication.sequence)
        if self._settling is None:
            self._settling = gevent.spawn(self._settle)

    def connected(self) -> None:
        """A server is back."""
        self._settle_now.set()

    def _settle(self) -> None:
        """Has all told of what Redis lacks of this process's messages, as soon as that is possible."""
        delay = SETTLING_SECONDS
        # Not in a fork of the process, whose messages they are not.
        while self.unsettled and not all(link.ended for link in self.links.values()):
            self._settle_now.clear()
            self._submit_settlements()
            delay = SETTLING_SECONDS if self._settle_now.wait(delay) else min(delay * 2, LONGEST_SETTLING)
        self._settling = None

    def _submit_settlements(self) -> None:
        for channel in list(self.unsettled.values()):
            self.link(channel.slot).commands.submit(self.settlement(channel))

    def history_command(self, subscription: ChannelSubscription, done: Callable[[Any], None]) -> Command:
        """The command that reads what a subscription lacks."""
        since = subscription.position
        return self.read_command(subscription.channel, b"" if since is None else str(since).encode(), b"+", done)

    def lost(self, link: Link) -> None:
        """A server does not answer; in a cluster another one may have its slots."""
        if self.slots is None or self._looking:
            return
        self._looking = True
        gevent.spawn(self._look_for_slots, link)

    def _look_for_slots(self, link: Link) -> None:
        try:
            for address in [other for other in self.links if other != link.address] + [self.connector.address]:
                try:
                    connection, _ = self.connector.connect(address, self.connector.timeout)
                    try:
                        self.use_slots(self.connector.slots(connection, address))
                        return
                    finally:
                        connection.disconnect()
                except (RedisError, OSError):
                    continue
        finally:
            self._looking = False

    # What topics ask for.

    def wait_for_room(self, topic: str) -> None:
        link = self._only or self.link(self.channels.get(topic).slot)
        if link.commands.is_full and not isinstance(gevent.getcurrent(), Hub):
            link.commands.wait_for_room()

    def publish(self, topic: str, opcode: int, payload: bytes) -> bool:
        channel = self.channels.get(topic)
        commands = self.link(channel.slot).commands
        if commands.is_full and not isinstance(gevent.getcurrent(), Hub):
            commands.wait_for_room()
        command = self.publication(channel, opcode, payload)
        publication = command.publication
        assert publication is not None
        subscription = self.subscriptions.get(topic) if channel.history else None
        if subscription is not None:
            subscription.published(publication.sequence, opcode, payload)
        # The slot may have moved meanwhile.
        if self.link(channel.slot).commands.submit(command):
            return True
        self.statistics.unsent += 1
        if subscription is not None:
            # The caller delivers it.
            subscription.withdraw(publication.sequence)
        self.not_sent(publication)
        return False

    def ask(self, *makes: Callable[[Any], Command]) -> list[Any]:
        self._check_thread()
        results: list[AsyncResult[Any]] = [AsyncResult() for _ in makes]
        for make, result in zip(makes, results, strict=True):
            self.ask_later(make(result.set))
        replies = [result.get() for result in results]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def ask_later(self, command: Command) -> None:
        """Has a command done; its ``done`` is called in any case."""
        commands = self.link(command.slot).commands
        if not commands.submit(command):
            commands.drop([command])

    def subscribe(self, topic: str) -> Position | None:
        self._check_thread()
        subscription = self.subscriptions.get(topic)
        if subscription is None:
            channel = self.channels.get(topic)
            subscription = ChannelSubscription(channel, self.inbox, self._read_history)
            self.subscriptions[topic] = subscription
            self.link(channel.slot).channels.want(subscription)
        subscription.ready.wait()
        return subscription.position

    def _read_history(self, subscription: ChannelSubscription) -> None:
        self.link(subscription.channel.slot).channels.read_history(subscription)

    def unsubscribe(self, topic: str) -> None:
        subscription = self.subscriptions.pop(topic, None)
        if subscription is not None:
            self.link(subscription.channel.slot).channels.unwant(subscription)

    def join(self, topic: str, member: Member) -> None:
        self.attendance.join(self.channels.get(topic), member)

    def leave(self, topic: str, member: Member) -> None:
        self.attendance.leave(self.channels.get(topic), member)

    def members(self, topic: str) -> list[Member]:
        self.attendance.watch()
        return super().members(topic)

    def watch_members(self) -> None:
        self.attendance.watch()

    def own_members(self, topic: str) -> list[Member]:
        """The members of this process."""
        return self.attendance.members(topic)

    def own_leases(self) -> set[str]:
        """The leases of this process."""
        return {self.attendance.lease}

    def flush(self, timeout: float | None = None) -> None:
        self._check_thread()
        ends = None if timeout is None else monotonic() + timeout
        lost = self.statistics.unsent + self.statistics.unconfirmed
        refused = self.refused
        # Once more for what a node of a cluster has sent on to another.
        for _ in range(2):
            for link in list(self.links.values()):
                if not link.commands.is_busy:
                    continue
                result: AsyncResult[Any] = AsyncResult()
                if not link.commands.submit(Command(0, (b"PING",), 0, None, result.set)):
                    raise _away(link)
                late = TimeoutError(f"Redis at {describe(link.address)} has not confirmed all within {timeout} s")
                with gevent.Timeout(None if ends is None else max(ends - monotonic(), 0), late):
                    if isinstance(result.get(), Exception):
                        raise _away(link)
        if self.refused > refused:
            raise ConnectionError(f"Redis has refused messages: {self.refusal}")
        for link in self.links.values():
            if link.commands.refuses:
                raise _away(link)
        if self.statistics.unsent + self.statistics.unconfirmed > lost:
            raise ConnectionError("Redis was lost, and messages with it")

    def close(self) -> None:
        try:
            if get_hub() is self.hub and self.available:
                with gevent.Timeout(EXIT_SECONDS, False):  # type: ignore[arg-type]
                    self.attendance.close()
                    self._submit_settlements()
                    self.flush(None)
        except (ConnectionError, RedisError):
            pass
        finally:
            if get_hub() is self.hub:
                self._end()
            else:
                self.hub.loop.run_callback_threadsafe(self._end)

    def _end(self) -> None:
        self.attendance.end()
        for link in list(self.links.values()):
            link.end()
        if self._settling is not None:
            self._settling.kill(block=False)

    def _check_thread(self) -> None:
        if get_hub() is not self.hub:
            raise UsageError("these topics belong to another thread: only publish can be called from this one")


def _away(link: Link) -> ConnectionError:
    return ConnectionError(f"Redis at {describe(link.address)} is away: the log says why")
