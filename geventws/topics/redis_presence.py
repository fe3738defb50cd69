"""Who is on a topic, told by those whose lease runs.

A worker with members has a lease, which it renews each second. When it ends without a word, any other worker that lives
takes its members away, topic by topic; each member by one script that tells of the leave too, and the list of the
topics at last, so that a cleaner that dies leaves the rest to the next.

A worker that finds its lease gone (it was stopped for long, or Redis has lost its data), or that can't know whether
Redis has got all it sent, registers its members anew under a new lease and takes away what is left under the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from redis.crc import key_slot
from redis.exceptions import RedisError

from geventws.topics.nouns import Member
from geventws.topics.redis_commands import Command
from geventws.topics.redis_connections import current_process
from geventws.topics.redis_scripts import CLEAN, HEARTBEAT, JOIN, LEASE, LEAVE, RELEASE, Script
from geventws.topics.wire import Channel

if TYPE_CHECKING:
    from geventws.topics.redis_greenlets import Greenlets

__all__ = ["Attendance"]

log = logging.getLogger("geventws")

#: Seconds between renewals of a lease.
HEARTBEAT_SECONDS = 1.0
#: Milliseconds that a lease runs, and that a cleaner has before another may try.
LEASE_MILLISECONDS = b"4000"
CLEANING_MILLISECONDS = b"2000"
#: Topics that are cleaned at a time.
CLEANED_AT_ONCE = 1000


class Attendance:
    """The members that this process has registered, and its part in taking away those of processes that have ended."""

    def __init__(self, owner: Greenlets) -> None:
        self._owner = owner
        self._names = owner.names
        self._incarnation = 0
        self._members: dict[str, dict[str, Member]] = {}
        self._channels: dict[str, Channel] = {}
        #: Topics of which Redis knows that this worker may have members there.
        self._indexed: set[str] = set()
        #: Whether Redis may lack what it was told, so that all is to be told again.
        self._unsure = False
        self._has_lease = False
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self._wake = Event()

    @property
    def lease(self) -> str:
        """The name of the present lease."""
        return f"{self._owner.worker_id}.{self._incarnation}"

    def members(self, topic: str) -> list[Member]:
        """The members of this process on a topic."""
        return list(self._members.get(topic, {}).values())

    def join(self, channel: Channel, member: Member) -> None:
        """Registers a member."""
        self._channels.setdefault(channel.topic, channel)
        self._members.setdefault(channel.topic, {})[member.key] = member
        self.watch()
        if not self._has_lease:
            # All members are registered together with the lease.
            self._wake.set()
            return
        self._register(channel, [member])

    def leave(self, channel: Channel, member: Member) -> None:
        """Takes a member back."""
        members = self._members.get(channel.topic)
        if members is None or members.pop(member.key, None) is None:
            return
        if not members:
            del self._members[channel.topic]
            del self._channels[channel.topic]
        if not self._has_lease:
            return
        self._tell(LEAVE, channel, (member.key.encode(), self._owner.publish_command))
        if not members and channel.topic in self._indexed:
            self._indexed.discard(channel.topic)
            self._index(b"SREM", channel, self.lease, self._sure)

    def watch(self) -> None:
        """Keeps the lease up, and looks for those that have run out."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def end(self) -> None:
        """Ends the heartbeat."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def close(self) -> None:
        """Takes all members back, and waits until that is done."""
        self.end()
        if self._has_lease:
            self._has_lease = False
            self._members.clear()
            self._clean(self.lease)

    def _run(self) -> None:
        process = current_process()
        while process == current_process():
            try:
                self._beat()
            except RedisError:
                # The link tells of it, and tries again.
                pass
            except Exception:
                log.exception("the members of topics can't be kept up to date")
            self._wake.wait(HEARTBEAT_SECONDS)
            self._wake.clear()

    def _beat(self) -> None:
        if self._members and not self._has_lease:
            self._begin_lease()
        lease = self.lease.encode() if self._has_lease else b""
        gone, dead = self._workers(HEARTBEAT, lease, LEASE_MILLISECONDS, CLEANING_MILLISECONDS)
        if gone or self._unsure:
            self._begin_lease()
        for other in dead:
            if other.decode() != self.lease:
                self._clean(other.decode())

    def _begin_lease(self) -> None:
        """Registers all members under a new lease."""
        old = self.lease if self._has_lease else None
        # Until the members are registered, others find them under the old one.
        self._incarnation += 1
        self._unsure = False
        self._has_lease = False
        self._indexed.clear()
        try:
            self._workers(LEASE, self.lease.encode(), LEASE_MILLISECONDS)
        except RedisError:
            self._has_lease = old is not None
            self._unsure = True
            raise
        self._has_lease = True
        for topic, members in list(self._members.items()):
            if topic in self._channels:
                self._register(self._channels[topic], list(members.values()))
        if old is not None:
            # These commands come behind the ones that were sent to the same servers above.
            self._settle()
            self._clean(old)

    def _settle(self) -> None:
        """Waits until all members are registered; raises if that fails."""
        self._owner.ask(*[_ping(channel.slot) for channel in list(self._channels.values())])
        if self._unsure:
            raise RedisError("members could not be registered")

    def _register(self, channel: Channel, members: list[Member]) -> None:
        """Tells Redis of members; first that the worker has some there, for that is what a cleaner goes by."""
        lease = self.lease

        def register(reply: Any) -> None:
            self._sure(reply)
            if isinstance(reply, Exception) or lease != self.lease:
                return
            self._indexed.add(channel.topic)
            for member in members:
                # Not one that has left meanwhile.
                if self._members.get(channel.topic, {}).get(member.key) is member:
                    self._tell(
                        JOIN,
                        channel,
                        (member.key.encode(), lease.encode(), member.name.encode(), self._owner.publish_command),
                    )

        if channel.topic in self._indexed:
            register(None)
        else:
            self._index(b"SADD", channel, lease, register)

    def _index(self, command: bytes, channel: Channel, lease: str, done: Callable[[Any], None]) -> None:
        key = self._names.worker(lease)
        self._owner.ask_later(Command(key_slot(key), (command, key, channel.topic.encode()), 0, None, done))

    def _tell(self, script: Script, channel: Channel, arguments: tuple[bytes, ...]) -> None:
        keys = (channel.members, channel.name)
        self._owner.ask_later(self._owner.script(script, channel.slot, keys, arguments, self._sure))

    def _sure(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._unsure = True

    def _workers(self, script: Script, *arguments: bytes) -> Any:
        key = self._names.workers
        return self._owner.ask(self._script(script, key_slot(key), (key,), arguments))[0]

    def _script(
        self, script: Script, slot: int, keys: tuple[bytes, ...], arguments: tuple[bytes, ...]
    ) -> Callable[[Any], Command]:
        return lambda done: self._owner.script(script, slot, keys, arguments, done)

    def _clean(self, lease: str) -> None:
        """Takes away what has a lease that is over."""
        key = self._names.worker(lease)
        slot = key_slot(key)
        [topics] = self._owner.ask(lambda done: Command(slot, (b"SMEMBERS", key), 0, None, done))
        arguments = (lease.encode(), self._owner.publish_command)
        for start in range(0, len(topics), CLEANED_AT_ONCE):
            channels = self._channels_of(topics[start : start + CLEANED_AT_ONCE])
            self._owner.ask(
                *[self._script(CLEAN, channel.slot, (channel.members, channel.name), arguments) for channel in channels]
            )
        self._owner.ask(lambda done: Command(slot, (b"DEL", key), 0, None, done))
        self._workers(RELEASE, lease.encode())

    def _channels_of(self, topics: list[bytes]) -> list[Channel]:
        channels = []
        for topic in topics:
            try:
                channels.append(self._owner.make_channel(topic.decode()))
            except ValueError:
                # Not one of ours.
                pass
        return channels


def _ping(slot: int) -> Callable[[Any], Command]:
    return lambda done: Command(slot, (b"PING",), 0, None, done)
