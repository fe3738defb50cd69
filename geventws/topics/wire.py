"""What topics are called in Redis, and what goes over their channels: bytes in, bytes out.

A channel's payload is a version byte, a byte that tells the kind, and:

- ``T`` and ``B``, text and binary without a position: 8 bytes of origin, 8 bytes of sequence number, the message.
- ``G``, a gap without a position: that messages of an origin up to a sequence number were not sent. 8 bytes of origin,
  8 bytes of sequence number.
- ``t`` and ``b``, text and binary with a position: the position in ASCII, a space, 8 bytes of origin, 8 bytes of
  sequence number, the message. A script makes these.
- ``g``, a gap with a position: what is missing of an origin up to a sequence number. Like these, with how many
  messages in ASCII in place of the message. A script makes these too.
- ``J`` and ``L``, a member that joins or leaves: its key in UTF-8, a space, its name in UTF-8.

The sequence numbers of an origin, which is one process, count up by one on each topic. Their upper half is a number
too: another one when the origin had forgotten the topic, so that nothing can be told of what was before.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from geventws.arguments import encode_text, shown
from geventws.topics.nouns import BINARY, TEXT, Member, Position

__all__ = [
    "GAP",
    "Channel",
    "ChannelTable",
    "Malformed",
    "Names",
    "Origins",
    "Plain",
    "Positioned",
    "PresenceChange",
    "decode",
    "decode_entry",
    "decode_position",
    "encode_commands",
    "encode_gap",
    "encode_plain",
    "encode_source",
    "encode_topic",
    "is_text",
    "kind_of",
    "missing_before",
]

VERSION = 1
#: In place of an opcode: no message, but that there are some which Redis never got.
GAP = 0
#: Bytes of an origin with a sequence number, and before the message in what has no position.
SOURCE, HEAD = 16, 18
#: Bits of a sequence number that count messages. Redis' scripts have numbers of 53 bits.
SEQUENCE_BITS, MOST_LIVES = 32, 1 << 20
#: Bytes of a topic's name.
LONGEST_TOPIC = 255
#: Origins that a subscriber remembers on a topic.
ORIGINS = 1024

_is_namespace = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII).fullmatch

_T, _B, _G, _t, _b, _g, _J, _L = b"TBGtbgJL"
_PLAIN = {_T: TEXT, _B: BINARY, _G: GAP}
_KINDS = {_t: TEXT, _b: BINARY, _g: GAP}


class Malformed(ValueError):
    """What is no payload of a topic's channel."""


def encode_topic(topic: Any) -> bytes:
    """The name of a topic in UTF-8; raises ``TypeError`` or ``ValueError`` for what can't be one."""
    if not isinstance(topic, str):
        raise TypeError(f"topic must be a str, not {type(topic).__name__}")
    encoded = encode_text("topic", topic)
    if not 1 <= len(encoded) <= LONGEST_TOPIC:
        raise ValueError(f"topic must have 1 to {LONGEST_TOPIC} bytes in UTF-8, not {len(encoded)}")
    return encoded


class Names:
    """The keys and channels of one namespace."""

    def __init__(self, namespace: str) -> None:
        if not isinstance(namespace, str) or not _is_namespace(namespace):
            raise ValueError(
                "namespace must be 1 to 64 ASCII letters, digits, underscores, dots and hyphens, "
                f"not {shown(namespace)}"
            )
        self._prefix = namespace.encode() + b":"
        #: The sorted set of all workers: until when each one's lease is, in ms of Redis' own clock.
        self.workers = self._prefix + b"workers"

    def channel(self, topic: str) -> bytes:
        """The channel of ``topic``, which has braces around what tells a cluster the slot.

        Raises as `encode_topic` for what can't be a topic. No two pairs of namespace and topic share a channel.
        """
        tag = encode_topic(topic).replace(b"%", b"%25").replace(b"}", b"%7D")
        return b"%b{%b}" % (self._prefix, tag)

    def worker(self, lease: str) -> bytes:
        """The set of the topics on which the worker with this lease has members."""
        return b"%bworker:%b" % (self._prefix, lease.encode())


class Channel:
    """The channel of a topic that a process publishes to or reads, and what it knows of it."""

    __slots__ = ("first_lost", "history", "last_lost", "name", "sequence", "slot", "topic")

    def __init__(self, topic: str, name: bytes, slot: int, history: int, life: int = 0) -> None:
        self.topic = topic
        self.name = name
        self.slot = slot
        #: Messages that are kept; 0 for none.
        self.history = history
        #: The number of the next message.
        self.sequence = (life % MOST_LIVES) << SEQUENCE_BITS
        #: The first and the last of its messages that Redis perhaps lacks, and others know nothing of; None for none.
        self.first_lost: int | None = None
        self.last_lost = 0

    def lose(self, sequence: int) -> None:
        """Notes a message that Redis perhaps lacks."""
        if self.first_lost is None or sequence < self.first_lost:
            self.first_lost = sequence
        self.last_lost = max(self.last_lost, sequence)

    def settle(self, sequence: int) -> None:
        """Redis knows what it lacks up to this message."""
        if self.first_lost is not None and self.first_lost <= sequence:
            self.first_lost = sequence + 1 if self.last_lost > sequence else None

    @property
    def stream(self) -> bytes:
        """The key of the history."""
        return self.name + b":log"

    @property
    def members(self) -> bytes:
        """The key of the members."""
        return self.name + b":members"


class ChannelTable:
    """The channels that a process used last, by topic."""

    def __init__(self, size: int, make: Callable[[str], Channel]) -> None:
        self._size = size
        self._make = make
        self._channels: OrderedDict[str, Channel] = OrderedDict()

    def __len__(self) -> int:
        return len(self._channels)

    def get(self, topic: str) -> Channel:
        """The channel of ``topic``."""
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._make(topic)
            if len(self._channels) > self._size:
                self._channels.popitem(last=False)
        else:
            self._channels.move_to_end(topic)
        return channel


class Plain(NamedTuple):
    """A message without a position, or a gap (``GAP``)."""

    opcode: int
    origin: bytes
    sequence: int
    payload: bytes


class Positioned(NamedTuple):
    """A message with a position, or a gap (``GAP``): that ``payload`` says how many of an origin are lost."""

    opcode: int
    position: Position
    origin: bytes
    sequence: int
    payload: bytes

    @property
    def lost(self) -> int:
        """How many messages a gap is of."""
        return int(self.payload)


class PresenceChange(NamedTuple):
    """A member that came or left."""

    event: Literal["join", "leave"]
    member: Member


#: A command with so many arguments, in RESP.
_COMMANDS = [b"*%d\r\n" % count + b"$%d\r\n%b\r\n" * count for count in range(16)]


def encode_commands(commands: Iterable[tuple[bytes, ...]]) -> bytes:
    """Commands as they go to the server, one behind the other.

    redis-py can do that too, but takes five times as long.
    """
    parts = []
    for command in commands:
        values: list[Any] = []
        for argument in command:
            values += (len(argument), argument)
        parts.append(_COMMANDS[len(command)] % tuple(values))
    return b"".join(parts)


def kind_of(opcode: int) -> bytes:
    """The byte for a message with a position."""
    return b"t" if opcode == TEXT else b"b"


def encode_plain(opcode: int, origin: bytes, sequence: int, payload: bytes) -> bytes:
    """What is published of a message without a position."""
    return b"%b%b%b%b" % (b"\x01T" if opcode == TEXT else b"\x01B", origin, sequence.to_bytes(8, "big"), payload)


def encode_gap(origin: bytes, sequence: int) -> bytes:
    """What is published where messages without a position up to this one were not sent."""
    return b"\x01G" + encode_source(origin, sequence)


def encode_source(origin: bytes, sequence: int) -> bytes:
    """Of which process a message with a position is, and its number there."""
    return origin + sequence.to_bytes(8, "big")


def decode(data: bytes) -> Plain | Positioned | PresenceChange:
    """What came in on a channel; raises ``Malformed``. Whether text is UTF-8 is yet to be looked at."""
    if len(data) < 2 or data[0] != VERSION:
        raise Malformed("no version byte")
    kind = data[1]
    if kind in _PLAIN:
        if len(data) < HEAD:
            raise Malformed("no origin and sequence number")
        return Plain(_PLAIN[kind], data[2:10], int.from_bytes(data[10:HEAD], "big"), data[HEAD:])
    if kind in _KINDS:
        # A position is at most 39 characters.
        end = data.find(b" ", 2, 42)
        if end < 0:
            raise Malformed("no position")
        return _positioned(kind, decode_position(data[2:end]), data, end + 1, data[end + 1 + SOURCE :])
    if kind in (_J, _L):
        try:
            key, space, name = data[2:].decode().partition(" ")
        except UnicodeDecodeError:
            raise Malformed("a member that is not UTF-8") from None
        if not key or not space:
            raise Malformed("no member")
        return PresenceChange("join" if kind == _J else "leave", Member(name, key))
    raise Malformed("an unknown kind")


def decode_position(data: bytes) -> Position:
    """The position in a payload, which is also the ID of an entry of a stream; raises ``Malformed``."""
    try:
        return Position.parse(data.decode("ascii"))
    except ValueError:
        raise Malformed("no position") from None


def decode_entry(entry: Any) -> Positioned:
    """What is in an entry of a stream; raises ``Malformed``."""
    position, fields = decode_position(entry[0]), entry[1]
    if not isinstance(fields, list) or fields[::2] != [b"k", b"s", b"p"] or len(fields) != 6:
        raise Malformed("an entry with other fields")
    kind, source, payload = fields[1::2]
    if len(kind) != 1 or kind[0] not in _KINDS:
        raise Malformed("an entry of an unknown kind")
    return _positioned(kind[0], position, source, 0, payload)


def _positioned(kind: int, position: Position, data: bytes, start: int, payload: bytes) -> Positioned:
    """What has its source in ``data``, from ``start`` on."""
    end = start + SOURCE
    if len(data) < end:
        raise Malformed("no origin and sequence number")
    if kind == _g and not (payload.isdigit() and len(payload) < 20):
        raise Malformed("a gap of no number")
    sequence = int.from_bytes(data[start + 8 : end], "big")
    return Positioned(_KINDS[kind], position, data[start : start + 8], sequence, payload)


def is_text(payload: bytes) -> bool:
    """Whether ``payload`` is UTF-8."""
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def missing_before(since: Position, last: Position, offsets: Sequence[int]) -> int | None:
    """How many messages between ``since`` and ``last`` are none of ``offsets``; None where nobody can tell."""
    if last.epoch != since.epoch or last.offset < since.offset:
        return None
    return last.offset - since.offset - len(offsets)


class Origins:
    """The last sequence number that a subscriber has seen of each origin."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._last)

    def clear(self) -> None:
        """Forgets all."""
        self._last.clear()

    def missing(self, origin: bytes, sequence: int) -> int:
        """Notes a message; gives how many of its origin are missing before it."""
        last = self._last
        if len(last) < ORIGINS // 2 and last.get(origin) == sequence - 1:
            # Nothing is missing, and nobody is to be forgotten soon.
            last[origin] = sequence
            return 0
        return max((self._note(origin, sequence) or 0) - 1, 0)

    def missing_up_to(self, origin: bytes, sequence: int, otherwise: int) -> int:
        """Notes a gap; gives how many of an origin are missing up to ``sequence``, or ``otherwise`` if unknown."""
        advance = self._note(origin, sequence)
        return otherwise if advance is None else advance

    def _note(self, origin: bytes, sequence: int) -> int | None:
        """How far the origin has come since what was seen last; None where nothing is known of it."""
        # Whoever was seen last comes last, so that the first is the one to be forgotten.
        last = self._last.pop(origin, None)
        if last is None and len(self._last) >= ORIGINS:
            del self._last[next(iter(self._last))]
        self._last[origin] = sequence
        if last is None or last >> SEQUENCE_BITS != sequence >> SEQUENCE_BITS:
            return None
        if sequence < last:
            self._last[origin] = last
        return max(sequence - last, 0)
