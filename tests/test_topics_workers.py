"""Topics between the workers of a real gunicorn, by a real Redis or Valkey, with a client of another make."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

from websockets.sync.client import ClientConnection, connect

from tests import redis_server
from tests.programs import PATIENCE, Program, gunicorn_server
from tests.redis_server import any_kind, running

pytestmark = pytest.mark.skipif(not redis_server.SERVERS, reason=redis_server.NO_SERVER)

APP = """
import json
import os

from geventws import Topics, WebSockets

def envelope(topic, message, position):
    return json.dumps({{"text": message, "position": str(position)}})

def told(presence):
    return json.dumps({{"event": presence.event, "name": presence.member.name}})

topics = Topics({url!r}, history={{"kept": 1000}}, envelope=envelope)
{at_import}

def pages(environ, start_response):
    "What a view publishes, or who is there."
    topic = environ["QUERY_STRING"]
    if environ["PATH_INFO"] == "/publish":
        topics.publish(topic, "from a view")
    start_response("200 OK", [("Content-Type", "application/json")])
    members = [member.name for member in topics.presence(topic)]
    return [json.dumps([os.getpid(), members, vars(topics.statistics())]).encode()]

app = WebSockets(pages)

@app.route("/<topic>/<name>")
def talk(session, topic, name):
    topics.subscribe(session, topic, member=name, on_presence=told if name == "asks" else None)
    session.send(json.dumps({{"worker": os.getpid()}}))
    for message in session:
        topics.publish(topic, message)
"""


class Clients:
    """Clients of a server, and the worker that each has come to."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.address = address
        self._stack = stack
        self._numbers = count(1)

    def join(self, topic: str, name: str) -> tuple[ClientConnection, int]:
        """A client on a topic."""
        client = self._stack.enter_context(connect(f"ws://{self.address}/{topic}/{name}", proxy=None, max_queue=None))
        told = receive(client)
        while "worker" not in told:
            told = receive(client)
        return client, told["worker"]

    def spread(self, topic: str, workers: int) -> dict[int, list[tuple[str, ClientConnection]]]:
        """Clients with names of their own, some on each of so many workers."""
        found: dict[int, list[tuple[str, ClientConnection]]] = {}
        # Many at a time: one after the other might all come to the worker that is awake.
        with ThreadPoolExecutor(4 * workers) as pool:
            while len(found) < workers:
                names = [f"client{next(self._numbers)}" for _ in range(4 * workers)]
                for name, (client, worker) in zip(names, pool.map(partial(self.join, topic), names), strict=True):
                    found.setdefault(worker, []).append((name, client))
        return found

    def one_each(self, topic: str, workers: int) -> dict[int, ClientConnection]:
        """A client on each of so many workers."""
        found = {}
        for worker, (first, *others) in self.spread(topic, workers).items():
            found[worker] = first[1]
            for _, client in others:
                client.close()
        return found

    def get(self, path: str) -> Any:
        """What a page says."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}{path}", timeout=PATIENCE) as response:
            return json.load(response)


def receive(client: ClientConnection) -> Any:
    return json.loads(client.recv(PATIENCE))


@contextmanager
def workers(
    directory: Path, number: int, *arguments: str, url: str, at_import: str = ""
) -> Iterator[tuple[Clients, Program]]:
    (directory / "app.py").write_text(APP.format(url=url, at_import=at_import))
    options = ("-k", "geventws.Worker", "-w", str(number), *arguments)
    with gunicorn_server("app:app", *options, directory=directory) as (address, program), ExitStack() as stack:
        yield Clients(address, stack), program


@pytest.mark.parametrize("topic", ["plain", "kept"])
def test_what_is_said_on_one_worker_is_heard_on_all(tmp_path: Path, topic: str) -> None:
    with running(any_kind()) as server, workers(tmp_path, 3, url=server.url) as (clients, _):
        everybody = clients.one_each(topic, 3)
        for client in everybody.values():
            for number in range(20):
                client.send(f"{number}")
        for client in everybody.values():
            assert sorted(receive(client)["text"] for _ in range(60)) == sorted(
                [str(number) for number in range(20)] * 3
            )
        clients.get(f"/publish?{topic}")
        for client in everybody.values():
            assert receive(client)["text"] == "from a view"
            client.send("last")
        for client in everybody.values():
            assert [receive(client)["text"] for _ in range(3)] == ["last"] * 3


@pytest.mark.parametrize("at_import", ["", "topics.publish('early', 'from the master'); topics.flush(10)"])
def test_workers_of_a_preloaded_app_have_connections_of_their_own(tmp_path: Path, at_import: str) -> None:
    """Nothing of what the master may have used is used by its workers (C3, preload_app; T33)."""
    arguments = (tmp_path, 4, "--preload")
    with (
        running(any_kind()) as server,
        server.client() as control,
        workers(*arguments, url=server.url, at_import=at_import) as (clients, _),
    ):
        everybody = clients.one_each("kept", 4)
        rounds = 25
        for number in range(rounds):
            for worker, client in everybody.items():
                client.send(f"{worker} {number}")
        expected = {f"{worker} {number}" for worker in everybody for number in range(rounds)}
        positions = []
        for client in everybody.values():
            messages = [receive(client) for _ in range(4 * rounds)]
            assert {message["text"] for message in messages} == expected
            positions.append([message["position"] for message in messages])
        assert positions == [positions[0]] * 4
        listening = [each for each in control.client_list() if each["sub"] != "0"]
        assert len(listening) == 4


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    """The others miss nothing, and who was there leaves within seconds, each once."""
    with running(any_kind()) as server, workers(tmp_path, 3, url=server.url) as (clients, _):
        asks, worker = clients.join("kept", "asks")
        here = clients.spread("kept", 3)
        names = [name for each in here.values() for name, _ in each]
        joined = [receive(asks) for _ in ("asks", *names)]
        assert sorted(event["name"] for event in joined if event["event"] == "join") == sorted(["asks", *names])
        victim, survivor = [pid for pid in here if pid != worker]
        publisher = here[survivor][0][1]
        publisher.send("before")
        assert receive(asks)["text"] == "before"
        os.kill(victim, signal.SIGKILL)
        for number in range(50):
            publisher.send(str(number))
        seen: list[str] = []
        left: list[str] = []
        while len(seen) < 50 or len(left) < len(here[victim]):
            event = receive(asks)
            if "text" in event:
                seen.append(event["text"])
            else:
                left.append(f"{event['event']} {event['name']}")
        assert seen == [str(number) for number in range(50)]
        assert sorted(left) == sorted(f"leave {name}" for name, _ in here[victim])
        publisher.send("after")
        assert receive(asks)["text"] == "after"
        gone = {name for name, _ in here[victim]}
        assert sorted(clients.get("/?kept")[1]) == sorted({"asks", *names} - gone)


def test_workers_that_stop_take_their_members_with_them(tmp_path: Path) -> None:
    """At once, by their own word, and not when their lease has run out."""
    with running(any_kind()) as server, server.client() as control:
        with workers(tmp_path, 2, url=server.url) as (clients, program):
            here = clients.spread("plain", 2)
            while control.hlen("geventws:{plain}:members") != sum(map(len, here.values())):
                pass
            assert program.stop() == 0
        assert control.keys("*") == []
