"""The nouns of topics: where a topic stands, who is on it, and what may be told of it."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from geventws.arguments import shown
from geventws.frames import Opcode

__all__ = ["BINARY", "TEXT", "Gap", "Member", "Position", "Presence", "Subscribed"]

#: The opcodes of messages; plain numbers compare faster.
TEXT, BINARY = Opcode.TEXT.value, Opcode.BINARY.value

_is_position = re.compile(r"([0-9]{1,19})-([0-9]{1,19})", re.ASCII).fullmatch


class Position(NamedTuple):
    """A place in a topic's history: just behind the message with this offset.

    Offsets of one epoch count up by one with each message. A history that is begun anew, since it was dropped or lost,
    has another epoch, and positions of the old one say nothing about it.
    """

    epoch: int
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that ``str`` made this text of; raises ``ValueError`` for any other text."""
        match = _is_position(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"a position's text must be two numbers with a hyphen between, as str(position) gives it, "
                f"not {shown(text)}"
            )
        return cls(int(match[1]), int(match[2]))


class Member(NamedTuple):
    """Who is on a topic: one of these for each subscription that has a ``member``."""

    #: What the subscriber calls itself.
    name: str
    #: What tells this subscription from all others, in all processes.
    key: str


class Presence(NamedTuple):
    """That a member came to a topic or left it."""

    topic: str
    event: Literal["join", "leave"]
    member: Member


class Gap(NamedTuple):
    """That messages of a topic are lost for its subscribers in this process, and how many.

    ``lost`` is None where some may be, and nobody can tell.
    """

    topic: str
    lost: int | None


class Subscribed(NamedTuple):
    """What a subscription begins with."""

    #: Where the topic stands; None without a history, and where the history is out of reach.
    position: Position | None
    #: Whether the session has all messages between the position that it gave and this one; True if it gave none. False
    #: too where messages never got to Redis in between, although sessions of their publisher's process have them.
    recovered: bool
    #: The messages that it was sent of the history.
    missed: int
