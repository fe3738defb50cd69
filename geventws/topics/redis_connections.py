"""Connections to Redis, which redis-py makes: by URL, greeted, of this process alone.

redis-py's own reconnecting is not used, for each gap has to be seen.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from select import POLLIN
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakSet

import gevent
from gevent.monkey import get_original
from redis.connection import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from geventws.peer_log import escape, shorten
from geventws.topics.redis_scripts import SCRIPTS
from geventws.topics.wire import encode_commands

__all__ = ["FAILURES", "Address", "Connector", "Refused", "Slots", "current_process", "describe", "send"]

#: Seconds that connecting and the answer to a command may take.
TIMEOUT = 5.0
#: Seconds after which an idle connection is pinged; after as many more it is lost.
PING_SECONDS = 5.0
#: Seconds before the second attempt to connect at most, doubled each time, and the longest ones.
FIRST_DELAY, LONGEST_DELAY = 0.05, 1.0
#: What Redis has to be for IDs of streams that count by themselves, and sharded pub/sub.
OLDEST_MAJOR = 7

#: Host and port, or the path of a Unix domain socket.
Address = tuple[str, int] | str

#: What a connection fails with.
FAILURES = (RedisError, OSError)

_SCHEMES = {
    "redis": "redis",
    "valkey": "redis",
    "rediss": "rediss",
    "valkeys": "rediss",
    "unix": "unix",
}

_poll = get_original("select", "poll")

_forks = 0
#: Whose sockets a child of this process must not touch.
_connections: WeakSet[Any] = WeakSet()


def current_process() -> int:
    """A number that is another one in each fork of a process."""
    return _forks


def _in_child() -> None:
    global _forks
    _forks += 1
    if not _connections:
        return
    # The child has the greenlets and the hub's watchers too. A pipe that nobody writes to takes the sockets' places, so
    # that not a byte of the parent's is read or written here, and its descriptors are no other file's later.
    reading, writing = os.pipe()
    os.close(writing)
    for connection in list(_connections):
        socket = getattr(connection, "_sock", None)
        if socket is not None and socket.fileno() >= 0:
            os.dup2(reading, socket.fileno(), inheritable=False)
    os.close(reading)
    _connections.clear()


os.register_at_fork(after_in_child=_in_child)


class Refused(RedisError):
    """What the operator has to put right: a password, a server's version. Its text is a plain sentence."""


class Slots(NamedTuple):
    """Which node of a cluster has which slots."""

    #: The first slot of each range, ascending, and its node.
    starts: list[int]
    nodes: list[Address]

    def node(self, slot: int) -> Address:
        """The primary that has this slot, or had it when the slots were read."""
        return self.nodes[max(bisect_right(self.starts, slot) - 1, 0)]


class Greeting(NamedTuple):
    """What a server says of itself."""

    cluster: bool


class Connector:
    """Makes connections to the servers behind one URL.

    Raises ``ValueError`` for a URL that can't be. What it says never holds the URL, for there may be a password in it.
    """

    def __init__(self, url: str) -> None:
        if not isinstance(url, str):
            raise ValueError(f"url must be a str, as in 'redis://localhost:6379', or None, not {type(url).__name__}")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in _SCHEMES:
            told = f"not {escape(scheme[:20])}://" if separator else "as in redis://localhost:6379"
            raise ValueError(
                "url must begin with redis://, rediss:// (TLS) or unix://, or with valkey:// or valkeys:// for the "
                f"same, {told}"
            )
        try:
            pool = ConnectionPool.from_url(f"{_SCHEMES[scheme.lower()]}://{rest}", protocol=2)
        except (ValueError, TypeError, RedisError):
            raise ValueError("url has a port, database or option that can't be") from None
        self._class: type[Connection] = pool.connection_class
        self._options: dict[str, Any] = {
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            **pool.connection_kwargs,
            # What is read here is bytes of RESP2, and each failure is seen.
            "protocol": 2,
            "decode_responses": False,
            "health_check_interval": 0,
            "retry_on_timeout": False,
        }
        try:
            made = self._class(**self._options)
        except (TypeError, ValueError, RedisError) as error:
            unknown = str(error).rpartition("unexpected keyword argument ")[2] if isinstance(error, TypeError) else ""
            raise ValueError(f"url has an option that can't be{unknown and ': ' + unknown}") from None
        self.address: Address
        if issubclass(self._class, UnixDomainSocketConnection):
            self.address = made.path
        else:
            self.address = (made.host, made.port)
        self.timeout = self._options["socket_timeout"]

    def connect(self, address: Address, timeout: float | None) -> tuple[Any, Greeting]:
        """A connection on which reads take up to ``timeout`` seconds, and what its server says of itself.

        Raises one of ``FAILURES``.
        """
        process = current_process()

        def greet(connection: Any) -> None:
            # A fork of the process, in which another greenlet went on with this call.
            if process != current_process():
                raise Refused("the process was forked while it connected")
            _connections.add(connection)
            connection.on_connect()

        options = {**self._options, "socket_timeout": timeout, "redis_connect_func": greet}
        if isinstance(address, tuple):
            options["host"], options["port"] = address
        else:
            options["path"] = address
        connection: Any = self._class(**options)
        try:
            try:
                connection.connect()
                return connection, _greeting(connection)
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                raise Refused(f"it refuses the user or the password: {error}") from None
            except InvalidResponse as error:
                raise Refused(f"it does not speak the protocol of Redis: {error}") from None
        except BaseException:
            connection.disconnect()
            raise

    def slots(self, connection: Any, asked: Address) -> Slots:
        """The slots of the cluster of which ``connection`` leads to a node."""
        connection.send_command("CLUSTER", "SLOTS", check_health=False)
        ranges = sorted(connection.read_response(), key=lambda item: item[0])
        starts: list[int] = []
        nodes: list[Address] = []
        for item in ranges:
            host = (item[2][0] or b"").decode()
            # A node that doesn't know its own name is where it was asked.
            if host in ("", "?"):
                host = asked[0]
            starts.append(int(item[0]))
            nodes.append((host, int(item[2][1])))
        if not nodes:
            raise Refused("no node of the cluster has any slots")
        return Slots(starts, nodes)


def _greeting(connection: Any) -> Greeting:
    try:
        connection.send_command("HELLO", check_health=False)
        reply = connection.read_response()
    except NoPermissionError:
        # A user who may not ask.
        return Greeting(False)
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            raise Refused(f"it is older than Redis {OLDEST_MAJOR}") from None
        raise
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    version = fields.get(b"version", b"").decode("ascii", "replace")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST_MAJOR:
        raise Refused(f"it is version {version}, and Redis {OLDEST_MAJOR}, Valkey 7.2 or newer is needed")
    mode = fields.get(b"mode")
    if mode == b"sentinel":
        raise Refused("it is a sentinel, not a server")
    # Sharded pub/sub and scripts go to the primaries of a cluster by its slots.
    if fields.get(b"role") in (b"replica", b"slave") and mode != b"cluster":
        raise Refused("it is a replica, which takes no messages")
    return Greeting(mode == b"cluster")


def is_readable(connection: Any) -> bool:
    """Whether something has come in where nothing is due, such as the end of the connection.

    redis-py's ``can_read`` asks gevent's ``poll``, which on libuv's loop is wrong for one new socket in four.
    """
    socket = connection._sock
    if socket is None:
        return True
    poll = _poll()
    poll.register(socket.fileno(), POLLIN)
    return bool(poll.poll(0))


def load_scripts(connection: Any) -> None:
    """Gives the server the scripts, which it forgets when it restarts."""
    send(connection, [(b"SCRIPT", b"LOAD", script.text) for script in SCRIPTS])
    for _ in SCRIPTS:
        connection.read_response()


def send(connection: Any, commands: Iterable[tuple[bytes, ...]]) -> None:
    """Sends commands in one piece."""
    connection.send_packed_command([encode_commands(commands)], check_health=False)


def describe(address: Address) -> str:
    """An address for the log."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    return escape(shorten(str(error) or type(error).__name__))


class Delays:
    """How long to wait between attempts: exponential, with full jitter, so that many processes don't come at once."""

    def __init__(self) -> None:
        self._longest = FIRST_DELAY
        self._connected = 0.0

    def connected(self) -> None:
        """An attempt has succeeded."""
        self._connected = monotonic()

    def wait(self) -> None:
        """Waits before the next attempt."""
        # One that lasts begins anew; one that is lost at once does not.
        if self._connected and monotonic() - self._connected > LONGEST_DELAY:
            self._longest = FIRST_DELAY
        self._connected = 0.0
        gevent.sleep(int.from_bytes(os.urandom(4), "big") / 2**32 * self._longest)
        self._longest = min(self._longest * 2, LONGEST_DELAY)
