"""What a session missed of a topic: read from the history, and sent to it in order before it is subscribed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from geventws.protocol.shared import SharedMessage
from geventws.topics.nouns import Position
from geventws.topics.topic import Topic, content_of

if TYPE_CHECKING:
    from geventws.session import DefaultWebSocketSession
    from geventws.topics.redis_broker import RedisBroker

__all__ = ["Recovery", "position_of"]

#: What sessions get of a message, None for nothing: called as wrap(topic, message, position).
Wrap = Callable[[str, SharedMessage, Position | None], SharedMessage | None]


def position_of(here: Topic, broker: RedisBroker | None) -> Position | None:
    """The position of the newest message that went to the subscribers, or was there before them; never blocks."""
    if broker is not None:
        running = broker.started
        return None if running is None else running.reached(here.name)
    return None if here.history is None else here.history.position


class Recovery:
    """One session's way from the position that it gave to where the topic stands in this process."""

    def __init__(self, here: Topic, broker: RedisBroker | None, session: DefaultWebSocketSession, wrap: Wrap) -> None:
        self._here = here
        self._broker = broker
        self._session = session
        self._wrap = wrap
        #: The messages that were sent.
        self.missed = 0
        #: What the session has seen, where this process lags behind that; None where it doesn't.
        self.ahead: Position | None = None

    def catch_up(self, since: Position | str | None, recent: int, size: int) -> bool:
        """Sends what is behind ``since``, or the last ``recent`` of the ``size`` messages that are kept.

        Tells whether it was all since then. There is nothing more to send when it returns. Blocks for Redis, and for
        the session's peer.
        """
        recovered = True
        reached: Position | None = None
        if since is not None:
            try:
                reached = Position.parse(since) if isinstance(since, str) else since
            except ValueError:
                recovered = False
            else:
                recovered, reached = self._send_since(reached)
        if recent and (since is None or not recovered):
            position = position_of(self._here, self._broker)
            if position is not None:
                first = max(position.offset - min(recent, size), 0)
                if reached is not None and reached.epoch == position.epoch and reached.offset <= position.offset:
                    # Some of it may have been sent before the rest was gone.
                    first = max(first, reached.offset)
                self._send_since(Position(position.epoch, first))
        return recovered

    def _send_since(self, reached: Position) -> tuple[bool, Position]:
        """Sends what is behind a position, until nothing is; gives whether it could, and up to where."""
        here, whole = self._here, True
        while True:
            position = position_of(here, self._broker)
            if position is None:
                return False, reached
            if reached == position:
                return whole, reached
            if reached.epoch == position.epoch and reached.offset < position.offset:
                messages = self._read(reached, position)
                if messages is None:
                    return False, reached
                for at, opcode, payload in messages:
                    # What was lost on the way to Redis has an offset without a message.
                    whole = whole and at.offset == reached.offset + 1
                    wrapped = self._wrap(here.name, SharedMessage(opcode, payload), at)
                    if wrapped is not None:
                        self._session.send(content_of(wrapped))
                        self.missed += 1
                    reached = at
                whole = whole and reached == position
                reached = position
            elif not self._is_known(reached):
                return False, reached
            elif position_of(here, self._broker) == position:
                # It comes from a process that is quicker; what it has seen there is yet to come here.
                self.ahead = reached
                return whole, reached

    def _read(self, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        if self._here.history is not None:
            return self._here.history.missed(since, up_to)
        return None if self._broker is None else self._broker.here().missed(self._here.name, since, up_to)

    def _is_known(self, position: Position) -> bool:
        """Whether Redis has what this process has not heard of."""
        latest = None if self._broker is None else self._broker.here().position(self._here.name)
        return latest is not None and latest.epoch == position.epoch and position.offset <= latest.offset
