"""What topics are called in Redis, and what goes over their channels: bytes in, bytes out.

A channel's payload is a version byte, a byte that tells the kind, and:

- ``T`` and ``B``, text and binary without a position: 8 bytes of origin, 8 bytes of sequence number, the message.
- ``t`` and ``b``, text and binary with a position: the position in ASCII, a space, the message. A script makes these.
- ``J`` and ``L``, a member that joins or leaves: its key in UTF-8, a space, its name in UTF-8.

The sequence numbers of an origin, which is one process, count up by one on each topic. 0 is the first, or the first
since the origin has forgotten the topic: nothing can be told of what was before it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from geventws.arguments import shown
from geventws.topics.nouns import Member, Position

__all__ = [
    "Malformed",
    "Names",
    "Origins",
    "Plain",
    "Positioned",
    "PresenceChange",
    "Topic",
    "TopicTable",
    "decode",
    "decode_entry",
    "decode_position",
    "encode_commands",
    "encode_plain",
    "encode_presence",
    "encode_topic",
    "is_text",
    "kind_of",
    "missing_before",
]

VERSION = 1
TEXT, BINARY = 1, 2
#: Bytes before the message in what has no position.
HEAD = 18
#: Bytes of a topic's name.
LONGEST_TOPIC = 255
#: Origins that a subscriber remembers on a topic.
ORIGINS = 1024

_is_namespace = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII).fullmatch

_T, _B, _t, _b, _J, _L = b"TBtbJL"


class Malformed(ValueError):
    """What is no payload of a topic's channel."""


def encode_topic(topic: Any) -> bytes:
    """The name of a topic in UTF-8; raises ``TypeError`` or ``ValueError`` for what can't be one."""
    if not isinstance(topic, str):
        raise TypeError(f"topic must be a str, not {type(topic).__name__}")
    try:
        encoded = topic.encode()
    except UnicodeEncodeError:
        raise ValueError(f"topic must be text that UTF-8 can encode, without surrogates, not {shown(topic)}") from None
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


class Topic:
    """What a process knows of a topic that it publishes to or reads."""

    __slots__ = ("channel", "history", "name", "sequence", "slot")

    def __init__(self, name: str, channel: bytes, slot: int, history: int) -> None:
        self.name = name
        self.channel = channel
        self.slot = slot
        #: Messages that are kept; 0 for none.
        self.history = history
        #: The number of the next message without a position.
        self.sequence = 0

    @property
    def stream(self) -> bytes:
        """The key of the history."""
        return self.channel + b":log"

    @property
    def members(self) -> bytes:
        """The key of the members."""
        return self.channel + b":members"


class TopicTable:
    """The topics that a process used last."""

    def __init__(self, size: int, make: Any) -> None:
        self._size = size
        self._make = make
        self._topics: OrderedDict[str, Topic] = OrderedDict()

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic:
        """The topic of this name."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = self._make(name)
            if len(self._topics) > self._size:
                self._topics.popitem(last=False)
        else:
            self._topics.move_to_end(name)
        return topic


class Plain(NamedTuple):
    """A message without a position."""

    opcode: int
    origin: bytes
    sequence: int
    payload: bytes


class Positioned(NamedTuple):
    """A message with a position."""

    opcode: int
    position: Position
    payload: bytes


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


def encode_presence(event: str, member: Member) -> bytes:
    """What is published of a member that joins or leaves; raises ``ValueError`` for a key with a space."""
    if " " in member.key or not member.key:
        raise ValueError(f"a member's key has at least one character and no spaces, unlike {member.key!r}")
    return b"%b%b %b" % (b"\x01J" if event == "join" else b"\x01L", member.key.encode(), member.name.encode())


def decode(data: bytes) -> Plain | Positioned | PresenceChange:
    """What came in on a channel; raises ``Malformed``. Whether text is UTF-8 is yet to be looked at."""
    if len(data) < 2 or data[0] != VERSION:
        raise Malformed("no version byte")
    kind = data[1]
    if kind in (_T, _B):
        if len(data) < HEAD:
            raise Malformed("no origin and sequence number")
        return Plain(TEXT if kind == _T else BINARY, data[2:10], int.from_bytes(data[10:HEAD], "big"), data[HEAD:])
    if kind in (_t, _b):
        # A position is at most 39 characters.
        end = data.find(b" ", 2, 42)
        if end < 0:
            raise Malformed("no position")
        return Positioned(TEXT if kind == _t else BINARY, decode_position(data[2:end]), data[end + 1 :])
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


def decode_entry(entry: Any) -> tuple[int, bytes]:
    """The opcode and payload of an entry of a stream; raises ``Malformed``."""
    fields = entry[1]
    if not isinstance(fields, list) or len(fields) != 4 or fields[0] != b"k" or fields[2] != b"p":
        raise Malformed("an entry with other fields")
    if fields[1] not in (b"t", b"b"):
        raise Malformed("an entry of an unknown kind")
    return TEXT if fields[1] == b"t" else BINARY, fields[3]


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

    def missing(self, origin: bytes, sequence: int) -> int:
        """Notes a message; gives how many of its origin are missing before it."""
        last = self._last.get(origin)
        if last is None and len(self._last) >= ORIGINS:
            del self._last[next(iter(self._last))]
        self._last[origin] = sequence
        # An origin that has begun anew, or of which nothing is known.
        if last is None or sequence <= last:
            return 0
        return sequence - last - 1
