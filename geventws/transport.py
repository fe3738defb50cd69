"""A socket's system calls, none of which ever blocks.

transport.pyx is the compiled twin of this file, under the same tests.
"""

from __future__ import annotations

from socket import SHUT_WR, SO_ERROR, SOL_SOCKET
from time import monotonic
from typing import Any

from geventws.protocol.buffer import Buffer

__all__ = ["Transport", "monotonic"]


class Transport:
    """A connected, non-blocking socket, which this object owns."""

    __slots__ = ("descriptor", "keeps_input", "socket")

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.descriptor: int = socket.fileno()
        #: Whether input can wait inside (TLS), where the hub doesn't see it: then receive until there is none.
        self.keeps_input = False

    def receive(self, target: bytearray) -> int:
        """Fills ``target`` from its start; gives the number of bytes, 0 at the end of input, -1 where there is none
        yet.

        Raises ``OSError`` for a connection that is lost.
        """
        try:
            return self.socket.recv_into(target)  # type: ignore[no-any-return]
        except BlockingIOError:
            return -1

    def send(self, source: Buffer) -> bool:
        """Sends from ``source`` what the socket takes; tells whether that was all. Raises ``OSError``."""
        if source:
            try:
                source.consume(self.socket.send(source.peek(len(source))))
            except BlockingIOError:
                pass
        return not source

    def shut_down(self) -> None:
        """Says the end of output (FIN)."""
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            pass

    def error(self) -> int:
        """The pending error of the socket (SO_ERROR), which a paused watcher does not tell; 0 for none."""
        return self.socket.getsockopt(SOL_SOCKET, SO_ERROR)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Closes the socket; its watchers must be stopped before."""
        self.descriptor = -1
        self.socket.close()
