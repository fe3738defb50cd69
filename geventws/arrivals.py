"""Whose input comes first is served first.

libev calls the watchers of all sockets that it found readable at one look from the last to the first. A client that is
answered first would ask again first and be served last the next time: its messages would take twice as long as the
others' at times. So all but the first to be called wait here until the last was, and are then read in the order in
which the system told of them. arrivals.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Arrivals"]


class Arrivals:
    """The connections of a hub that have input."""

    def __init__(self, hub: Any) -> None:
        self.loop = hub.loop
        self.connections: list[Any] = []
        self.iteration = -1

    def wait(self, connection: Any) -> bool:
        """Whether ``connection`` is to wait for its turn, in which its ``read_in_turn`` is called."""
        # gevent's loop on libuv, which calls in the right order by itself, always says -1.
        iteration = self.loop.iteration
        if iteration != self.iteration or iteration == -1:
            self.iteration = iteration
            return False
        if not self.connections:
            self.loop.run_callback(self.run)
        self.connections.append(connection)
        return True

    def run(self) -> None:
        """The hub's callback."""
        connections = self.connections
        try:
            while connections:
                connections.pop().read_in_turn()
        finally:
            if connections:
                # A signal's exception ends the call, not their turns.
                self.loop.run_callback(self.run)
