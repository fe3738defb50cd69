"""How a server accepts connections when there are too many: it makes room, and outlives a lack of descriptors.

A connection that waits for a request holds a place as a session does, but nobody would miss it much. Where places or
descriptors are used up, those that wait longest are let go, so that a flood of them shuts nobody else out.
"""

from __future__ import annotations

import errno
import os
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from select import POLLIN
from socket import SHUT_RD, SHUT_RDWR
from time import monotonic
from typing import Any

from gevent.monkey import get_original
from gevent.socket import socket as GeventSocket

from geventws.peer_log import PeerLog

__all__ = ["Acceptor", "Waiting", "WaitingRoom"]

#: The errors of accept() that are a lack of something, and those that only concern the connection it would have given.
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PASSING = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR)

# gevent's own would switch to the hub, and this runs there.
_poll = get_original("select", "poll")
# gevent's own, in a patched process, closes only when the loop comes round.
_close = get_original("os", "close")

#: Seconds that a stopping server leaves a connection that it has only just accepted: its first request is on the way.
FRESH_SECONDS = 1.0
#: Seconds between two lines of the log about the same lack.
LOG_INTERVAL = 10.0
#: Seconds until a server that can't accept looks again.
RETRY_SECONDS = 0.05
#: Seconds that a connection may take for its request even then, for a client sends it together with the last packet of
#: TCP's handshake; and under TLS, where it first has to answer ours. In a flood all others wait as long.
PATIENCE_SECONDS = 0.1
TLS_PATIENCE_SECONDS = 0.5
#: The part of the places that is cleared at a time.
CLEARED = 1 / 50

# Kept at forks: a system call for each connection would be 1 % of a short session.
_process = os.getpid()


def _in_child() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_in_child)

_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\n"
    b"The server is full.\n"
)


class Waiting:
    """One connection that waits, since a time on the monotonic clock."""

    __slots__ = ("address", "descriptor", "since")

    def __init__(self, descriptor: int, address: Any) -> None:
        self.descriptor = descriptor
        self.address = address
        self.since = monotonic()


class WaitingRoom:
    """The connections of a server that wait for a request, those that wait longest first."""

    def __init__(self) -> None:
        self._connections: dict[Waiting, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, descriptor: int, address: Any) -> Waiting:
        """Called when a connection begins to wait; what it gives is for `leave`."""
        waiting = Waiting(descriptor, address)
        self._connections[waiting] = None
        return waiting

    def leave(self, waiting: Waiting | None) -> bool:
        """Called when a request is here, and always before the descriptor is closed; once more is no harm.

        Tells whether the connection was here.
        """
        return self._connections.pop(waiting, False) is None  # type: ignore[arg-type]

    def end_input(self) -> bool:
        """Ends the wait of all but those that came just now; tells whether there are such.

        A request that is here already is still read. One that is on its way would be answered by a reset.
        """
        fresh = monotonic() - FRESH_SECONDS
        left = False
        for waiting in self._connections:
            if waiting.since > fresh:
                left = True
            else:
                _shut_down(waiting.descriptor, SHUT_RD)
        return left

    def clear(self, count: int, patience: float, peer_log: PeerLog) -> None:
        """Ends the ``count`` connections that wait longest, but for those that have not waited ``patience`` seconds."""
        latest = monotonic() - patience
        for waiting in list(islice(self._connections, count)):
            if waiting.since > latest:
                return
            del self._connections[waiting]
            peer_log.log("dropped while it waited for a request, to make room", waiting.address)
            _shut_down(waiting.descriptor, SHUT_RDWR)


def _shut_down(descriptor: int, how: int) -> None:
    # Whoever owns the descriptor may have it in any kind of socket object; under TLS in none that is made yet.
    with suppress(OSError, ValueError):
        sock = RawSocket(fileno=descriptor)
        try:
            sock.shutdown(how)
        finally:
            sock.detach()


class Acceptor:
    """What our servers have in common as gevent servers, of which this is a mixin."""

    client_class: type[GeventSocket] = GeventSocket
    ssl_enabled: bool
    peer_log: PeerLog
    waiting: WaitingRoom
    socket: Any
    pool: Any
    loop: Any
    full: Callable[[], bool]
    do_handle: Callable[[Any, Any], None]
    stop_accepting: Callable[[], None]
    _start_accepting_if_started: Callable[[], None]

    _again: Any = None
    _spare: int | None = None
    _process: int | None = None
    _logged_at = -LOG_INTERVAL
    _turned_away = 0

    def start(self) -> None:
        """Starts to accept; returns at once."""
        self._process = _process
        self._open_spare()
        super().start()  # type: ignore[misc]

    def close(self) -> None:
        """Stops accepting; what waits in the backlog is the next server's."""
        super().close()  # type: ignore[misc]
        self._forget_timer()
        spare, self._spare = self._spare, None
        if spare is not None:
            _close(spare)

    def set_spawn(self, spawn: Any) -> None:
        """Called once by gevent, which would ask a pool itself whether it is full."""
        super().set_spawn(spawn)  # type: ignore[misc]
        if self.pool is not None:
            self.full = self._is_full

    def _is_full(self) -> bool:
        if not self.pool.full() or _process != self._process:
            # A fork of the server's process learns in `do_read` that it must not accept.
            return False
        listener = _poll()
        listener.register(self.socket.fileno(), POLLIN)
        if listener.poll(0):
            self._clear(1 + int(self.pool.size * CLEARED))
        self._look_again()
        return True

    def _clear(self, count: int) -> None:
        self.waiting.clear(count, TLS_PATIENCE_SECONDS if self.ssl_enabled else PATIENCE_SECONDS, self.peer_log)

    def _look_again(self) -> None:
        # gevent's own timer is stopped when it stops to accept, as it does behind a pool that is full.
        if self._again is None:
            self._again = self.loop.timer(RETRY_SECONDS)
            self._again.start(self._retry)

    def _retry(self) -> None:
        self._forget_timer()
        if self.pool is not None:
            # gevent links it anew each time that it finds the pool full.
            self.pool._semaphore.unlink(self._start_accepting_if_started)
        self._start_accepting_if_started()

    def _forget_timer(self) -> None:
        timer, self._again = self._again, None
        if timer is not None:
            timer.stop()
            timer.close()

    def do_read(self) -> Any:
        """Accepts a connection; None where there is none. Called in the hub."""
        if _process != self._process:
            # A fork of the server's process: its hub has the watcher too.
            self.stop_accepting()
            return None
        listener = self.socket
        try:
            descriptor, address = listener._accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _LACKS:
                self._turn_away(error)
            elif error.errno not in _PASSING:
                raise
            return None
        return self.client_class(listener.family, listener.type, listener.proto, descriptor), address

    def accept_rest(self) -> None:
        """Accepts what the backlog holds, where no other process shares it; blocks for none."""
        while not self.full() and (connection := self.do_read()) is not None:
            self.do_handle(*connection)

    def _turn_away(self, error: OSError) -> None:
        """Answers one connection with the spare descriptor, lest the clients wait and the watcher spin."""
        self._turned_away += 1
        now = monotonic()
        if now - self._logged_at >= LOG_INTERVAL:
            count, self._turned_away, self._logged_at = self._turned_away, 0, now
            self.peer_log.write(f"{count} connections are turned away: {error.strerror}")
        self._clear(1)
        if self._spare is not None:
            _close(self._spare)
            self._spare = None
            with suppress(OSError):
                client = RawSocket(fileno=self.socket._accept()[0])
                client.setblocking(False)
                if not self.ssl_enabled:
                    with suppress(OSError):
                        client.send(_NO_ROOM)
                client.close()
        self._open_spare()
        if self._spare is None:
            self.stop_accepting()
            self._look_again()

    def _open_spare(self) -> None:
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
