"""Who is subscribed to a topic in this process: a list to send along, and a way to leave it in constant time.

A session that ends leaves by itself: its connection holds the first of its subscriptions, which chain to the others.
audience.pxd gives the types to the compiled build: a subscription takes 80 bytes there, and its entries here some 50.
"""

from __future__ import annotations

from geventws.connection import Connection

__all__ = ["Audience", "Subscription"]


#: A number without a small factor in common with any size, and with no pattern in its multiples.
SCATTER = 2654435761


class Subscription:
    """One connection's place in one audience."""

    __slots__ = ("audience", "connection", "following", "place", "preceding")

    def __init__(self, audience: Audience, connection: Connection, place: int) -> None:
        self.audience = audience
        self.connection = connection
        #: Its index in the audience's list.
        self.place = place
        #: The connection's other subscriptions.
        self.preceding: Subscription | None = None
        self.following: Subscription | None = connection.subscriptions
        if self.following is not None:
            self.following.preceding = self
        connection.subscriptions = self

    def unlink(self) -> None:
        """Takes it out of its connection's chain."""
        following = self.following
        preceding = self.preceding
        if following is not None:
            following.preceding = preceding
        if preceding is not None:
            preceding.following = following
        else:
            self.connection.subscriptions = following
        self.preceding = self.following = None

    def connection_ended(self) -> None:
        """Called by the connection, on the first of its chain: all of them leave."""
        connection = self.connection
        first = self
        while first is not None:
            audience = first.audience
            audience.remove(connection)
            first = connection.subscriptions


class Audience:
    """The connections that get what is sent to it."""

    __slots__ = ("connections", "lent", "subscriptions")

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        #: Whether a delivery may still go along `connections`, which then is not to change any more.
        self.lent = False
        self.subscriptions: dict[Connection, Subscription] = {}

    def __len__(self) -> int:
        return len(self.subscriptions)

    def __contains__(self, connection: object) -> bool:
        return connection in self.subscriptions

    def add(self, connection: Connection) -> None:
        """Subscribes a connection that is not in it."""
        self._own()
        connections = self.connections
        last = len(connections)
        # It changes places with one that is chosen as if by chance. Nobody is the last to get each message for having
        # come last; and sockets that lie side by side in the kernel, as they were opened, are not sent to one after the
        # other while another core works on their neighbours, which costs a tenth and more.
        place = last * SCATTER % (last + 1)
        subscription = self.subscriptions[connection] = Subscription(self, connection, place)
        connections.append(connection)
        if place != last:
            other = connections[place]
            moved = self.subscriptions[other]
            moved.place = last
            connections[last] = other
            connections[place] = subscription.connection

    def remove(self, connection: Connection) -> bool:
        """Takes a connection out; tells whether it was in."""
        subscription = self.subscriptions.pop(connection, None)
        if subscription is None:
            return False
        subscription.unlink()
        self._own()
        connections = self.connections
        last = connections.pop()
        if last is not connection:
            connections[subscription.place] = last
            moved = self.subscriptions[last]
            moved.place = subscription.place
        self.left(connection)
        return True

    def left(self, connection: Connection) -> None:
        """Called when one has left, by its own wish or by its end; must not block."""

    def lend(self) -> list[Connection]:
        """The list, for a delivery that is not over at once."""
        self.lent = True
        return self.connections

    def _own(self) -> None:
        if self.lent:
            self.connections = list(self.connections)
            self.lent = False
