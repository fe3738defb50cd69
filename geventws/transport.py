"""A socket's system calls, none of which ever blocks.

transport.pyx is the compiled twin of this file, under the same tests.
"""

from __future__ import annotations

import os
from fcntl import ioctl
from socket import SHUT_RDWR, SHUT_WR, SO_ERROR, SOL_SOCKET
from sys import byteorder
from termios import TIOCOUTQ
from time import monotonic
from typing import Any

from geventws.protocol.buffer import Buffer

__all__ = ["Transport", "fork_count", "monotonic"]


_forks = 0
_has_children = False


def _in_child() -> None:
    global _forks, _has_children
    _forks += 1
    _has_children = False


def _in_parent() -> None:
    global _has_children
    _has_children = True


os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)


def fork_count() -> int:
    """How many forks lie between this process and the one that imported this module."""
    return _forks


class Transport:
    """A connected, non-blocking socket, which this object owns."""

    __slots__ = (
        "_forks",
        "descriptor",
        "encrypted",
        "keeps_input",
        "received",
        "receiving_waits_to_write",
        "sending_waits_to_read",
        "sent",
        "socket",
    )

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.descriptor: int = socket.fileno()
        #: Whether input can wait inside (TLS), where the hub doesn't see it: then receive until there is none.
        self.keeps_input = False
        #: Whether `receive_into` can't be used.
        self.encrypted = False
        #: What the last call lacked, where that was the other direction (TLS): the hub has to watch for that one.
        self.receiving_waits_to_write = False
        self.sending_waits_to_read = False
        #: Bytes so far, under TLS in plain text.
        self.received = 0
        self.sent = 0
        self._forks = _forks

    def inherited(self) -> bool:
        """Whether this process is a fork of the one whose connection it is, and must leave it alone."""
        return self._forks != _forks

    def receive(self, target: bytearray) -> int:
        """Fills ``target`` from its start; gives the number of bytes, 0 at the end of input, -1 where there is none
        yet.

        Raises ``OSError`` for a connection that is lost.
        """
        try:
            count: int = self.socket.recv_into(target)
        except BlockingIOError:
            return -1
        self.received += count
        return count

    def receive_into(self, target: Buffer, most: int) -> int:
        """Receives behind what ``target`` holds, at most ``most`` bytes and what it has room for; as `receive`."""
        try:
            data = self.socket.recv(min(most, target.room()))
        except BlockingIOError:
            return -1
        self.received += len(data)
        target.append(data)
        return len(data)

    def send(self, source: Buffer) -> bool:
        """Sends from ``source`` what the socket takes; tells whether that was all. Raises ``OSError``."""
        if source:
            try:
                count = self.socket.send(source.peek(len(source)))
            except BlockingIOError:
                return False
            source.consume(count)
            self.sent += count
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

    def queued(self) -> int:
        """Bytes in the kernel that the peer has not acknowledged; 0 where the system does not tell."""
        try:
            return int.from_bytes(ioctl(self.descriptor, TIOCOUTQ, bytes(4)), byteorder)
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        """Ends the connection and closes the socket; its watchers must be stopped before."""
        self.descriptor = -1
        if _has_children and not self.inherited():
            # A child may have the descriptor too, and the peer would wait until it closes that.
            try:
                self.socket.shutdown(SHUT_RDWR)
            except OSError:
                pass
        self.socket.close()
