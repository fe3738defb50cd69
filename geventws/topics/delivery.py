"""One message to many connections: put into all outputs at once, and sent by the hub, in slices.

Small messages wait in the outputs for the hub's turn, so that several of one turn leave in one system call a
connection. What does not fit into a slice goes on in the hub, whatever becomes of the greenlet that began it, and
messages reach each connection in the order in which they were given. delivery.pxd gives the types to the compiled
build.
"""

from __future__ import annotations

from typing import Any

from gevent import get_hub
from gevent.event import Event

from geventws.connection import Connection
from geventws.frames import CloseCode, CloseReason
from geventws.protocol.shared import SharedMessage
from geventws.topics.prefetching import prefetch
from geventws.transport import fork_count, monotonic

__all__ = ["Delivery", "deliver"]

#: Messages up to this size wait in the outputs for the hub's turn; beyond it they would take much memory there.
SMALL_SIZE = 4 * 1024
#: Seconds of work at a stretch, before other connections have their turn.
SLICE_SECONDS = 0.005
#: Connections after which the clock is looked at.
CONNECTIONS_BETWEEN_LOOKS = 64

TOO_SLOW = CloseReason(CloseCode.TRY_AGAIN_LATER, "too slow for what is sent to all")

#: What `Connection.offer` says of a message that is in the output, and of one that too much waits before.
TAKEN, LAGS = 1, 2


class Delivery:
    """One message on its way into the outputs of many connections."""

    def __init__(self, connections: list[Connection], message: SharedMessage, closes: bool) -> None:
        self.connections = connections
        self.message = message
        self.closes = closes
        self.position = 0
        #: How many connections took the message so far, and how many it was withheld from since they lag behind.
        self.taken = 0
        self.lagging = 0
        #: Whether the message was offered to all.
        self.done = False
        self._finished: Event | None = None

    def wait(self) -> None:
        """Blocks until the message was offered to all; who is killed there abandons the wait, not the delivery."""
        if not self.done:
            if self._finished is None:
                self._finished = Event()
            self._finished.wait()

    def withdraw(self, connection: Connection) -> None:
        """Leaves out a connection that the message was not yet offered to."""
        # A list of its own: others may go along the same one.
        first = self.position
        self.connections = self.connections[:first] + [
            other for other in self.connections[first:] if other is not connection
        ]

    def end(self) -> None:
        """Called when the message was offered to all."""
        self.done = True
        if self._finished is not None:
            self._finished.set()


def deliver(connections: list[Connection], message: SharedMessage, closes: bool = False) -> Delivery:
    """Sends a message to all ``connections``; never blocks, also in the hub.

    Connections that are not open are passed over. One that lags behind, with more than its ``write_limit`` waiting for
    its peer, is left out, and closed with 1013 where ``closes`` says so. One whose extension fails is closed with 1011.

    All must be connections of this thread's hub, and the list must not change until the delivery is done. Most often
    it is when this returns; one that takes longer than 5 ms goes on in the hub.
    """
    hub = get_hub()
    deliverer = hub.__dict__.get("geventws_deliverer")
    if deliverer is None:
        deliverer = hub.__dict__["geventws_deliverer"] = Deliverer(hub)
    delivery = Delivery(connections, message, closes)
    deliverer.begin(delivery)
    return delivery


class Deliverer:
    """A hub's deliveries: offers messages, one after the other, and flushes those who took them."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        #: What is not done yet, the oldest first.
        self.deliveries: list[Delivery] = []
        #: Lists of connections, some of which are to be flushed, with the places from which and up to which.
        self.offered: list[tuple[list[Connection], int, int]] = []
        self.flushing: list[Connection] = []
        self.position = self.stop = 0
        #: When the slice ends; 0 before the clock was looked at.
        self.ends = 0.0
        #: Whether the hub is going to call `run`, and whether it does so now.
        self.called = False
        self.running = False
        self.timer: Any = None

    def begin(self, delivery: Delivery) -> None:
        """Begins a delivery when those before it are done, which is most often now."""
        self.deliveries.append(delivery)
        # What runs already may be on this very stack: that a session ends in it may be told to others.
        if self.running:
            return
        try:
            if len(self.deliveries) == 1:
                self.ends = 0.0
                self._offer()
        finally:
            if self.deliveries:
                self._run_later()
            elif self.offered and not self.called:
                self.called = True
                self.hub.loop.run_callback(self.run)

    def run(self) -> None:
        """The hub's callback: works for a slice."""
        self.called = False
        self.running = True
        try:
            self.ends = monotonic() + SLICE_SECONDS
            self._flush()
            self._offer()
        finally:
            self.running = False
            # A signal's exception ends the call, not the turns of the rest.
            if self.deliveries or self.offered or self.position < self.stop:
                self._run_later()
            elif self.timer is not None:
                self.timer.close()
                self.timer = None

    def _run_later(self) -> None:
        # Not by run_callback: the hub looks at its sockets only after fifty of these.
        if not self.called:
            self.called = True
            if self.timer is None:
                self.timer = self.hub.loop.timer(0.0)
            self.timer.start(self.run)

    def _late(self) -> bool:
        """Whether the slice is over."""
        now = monotonic()
        if not self.ends:
            self.ends = now + SLICE_SECONDS
        return now > self.ends

    def _offer(self) -> None:
        """Offers the messages of all deliveries until the slice is over."""
        while self.deliveries and not (self.ends and self._late()):
            delivery = self.deliveries[0]
            try:
                self._offer_one(delivery)
            finally:
                # It may have been ended by another call of this.
                if delivery.position >= len(delivery.connections) and not delivery.done:
                    self.deliveries.remove(delivery)
                    delivery.end()

    def _offer_one(self, delivery: Delivery) -> None:
        """Offers the message of ``delivery`` until the slice is over."""
        connections, message = delivery.connections, delivery.message
        small = len(message.payload) <= SMALL_SIZE
        # A large message may take long at each connection, a small one only where many compress it.
        between = CONNECTIONS_BETWEEN_LOOKS if small else 1
        frame = message.plain().whole if small else None
        forks = fork_count()
        start = delivery.position
        first_of_turn = False
        try:
            while delivery.position < len(connections):
                try:
                    while delivery.position < len(connections):
                        prefetch(connections, delivery.position)
                        connection = connections[delivery.position]
                        # Now: this goes on in another call where what is called here comes to wait.
                        delivery.position += 1
                        result = connection.offer(message, frame, forks)
                        if result == LAGS and connection.write_watcher is None:
                            # What waits may be this turn's own messages, which the peer had no chance to take yet.
                            connection.flush()
                            result = connection.offer(message, frame, forks)
                        if result == TAKEN:
                            delivery.taken += 1
                            if not small:
                                connection.flush()
                            elif not connection.awaits_flush:
                                connection.awaits_flush = first_of_turn = True
                        elif result == LAGS:
                            delivery.lagging += 1
                            if delivery.closes:
                                connection.start_close(TOO_SLOW)
                        if delivery.position % between == 0 and self._late():
                            return
                except Exception:
                    connection.broke("a message to many could not be sent to one session, which ended it with 1011")
                except BaseException:
                    # A signal's; who knows what of the message is in the output, and what the compressor thinks.
                    connection.terminate()
                    raise
        finally:
            if first_of_turn:
                self.offered.append((connections, start, delivery.position))

    def _flush(self) -> None:
        """Flushes those who took small messages until the slice is over."""
        while not self._late():
            if self.position >= self.stop:
                if not self.offered:
                    break
                self.flushing, self.position, self.stop = self.offered.pop(0)
            self._flush_some()
        if self.position >= self.stop:
            # What has ended is not to live on in here.
            self.flushing = []
            self.position = self.stop = 0

    def _flush_some(self) -> None:
        """Flushes up to where the clock is to be looked at."""
        connections = self.flushing
        self.stop = min(self.stop, len(connections))
        stop = min(self.stop, self.position + CONNECTIONS_BETWEEN_LOOKS)
        forks = fork_count()
        while self.position < stop:
            try:
                while self.position < stop:
                    prefetch(connections, self.position)
                    connection = connections[self.position]
                    self.position += 1
                    if connection.awaits_flush:
                        connection.flush_offered(forks)
            except OSError:
                connection.terminate()
            except (SystemExit, KeyboardInterrupt):
                # A signal's; it may have come between a system call and what is noted of it.
                connection.terminate()
                raise
            except BaseException:
                connection.broke("a fault in geventws ended a connection")
