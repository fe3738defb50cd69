"""That the clients of the benchmarks for topics measure what is right, and notice what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Its scripts import each other by their plain names.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import outage
from crowd import Crowd
from processes import ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[1]

#: Seconds that a run may take.
PATIENCE = 60
FAULTS = ("lost", "missing", "twice", "altered", "strange", "stalled", "out_of_order", "late")


@pytest.fixture(scope="module")
def roomload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("roomload") / "roomload"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-o", str(binary), str(ROOT / "benchmarks" / "roomload.c")], check=True)
    return binary


def serve(script: Path) -> Iterator[int]:
    command = [sys.executable, str(script), "{port}"]
    with ServerProcess(
        command, {"PYTHONPATH": str(ROOT)}, script.parent, min(os.sched_getaffinity(0)), free_port()
    ) as it:
        it.wait_answering()
        yield it.port


@pytest.fixture(scope="module")
def faulty() -> Iterator[int]:
    """The port of rooms that do wrong when asked."""
    yield from serve(ROOT / "tests" / "faulty_rooms.py")


@pytest.fixture(scope="module")
def topics() -> Iterator[int]:
    """The port of the benchmark's own topics, in one process."""
    yield from serve(ROOT / "benchmarks" / "servers" / "topics_app.py")


def run(roomload: Path, port: int, path: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status and what was printed last, behind the lines of the phases."""
    command = [str(roomload), "127.0.0.1", f"{port},{port}", path, "-d1", "-u0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines[0] == "opened"
    assert lines[-2] == "measured"
    told: dict[str, Any] = json.loads(lines[-1])
    return done.returncode, told


def test_our_topics_deliver_everything_once(roomload: Path, topics: int) -> None:
    status, told = run(roomload, topics, "/topic", "-c30", "-r3", "-p6", "-w4")
    assert status == 0
    assert {told[name] for name in FAULTS} == {0}
    assert list(told["processes"].values()) == [30]
    assert told["publishes"] > 0
    assert told["deliveries"] > 0
    assert 0 < told["p50_us"] <= told["p99_us"] <= told["max_us"]


def test_a_rate_is_kept_or_told_as_late(roomload: Path, topics: int) -> None:
    status, told = run(roomload, topics, "/topic", "-c4", "-r2", "-p2", "-R20")
    assert status == 0
    # Within the second, a message more or less is at its edges.
    assert told["late"] > 0 or 19 <= told["publishes"] <= 21
    assert told["missing"] == 0


def test_socket_io(roomload: Path, faulty: int) -> None:
    status, told = run(roomload, faulty, "/socketio", "-e", "-c8", "-r2", "-p2")
    assert status == 0
    assert {told[name] for name in FAULTS} == {0}
    assert told["processes"] == {"one": 8}
    assert told["deliveries"] > 0


def test_messages_that_overtake_others_are_no_fault(roomload: Path, faulty: int) -> None:
    status, told = run(roomload, faulty, "/reordered", "-c2", "-r1", "-p1", "-w2")
    assert status == 0
    assert told["out_of_order"] > 0


@pytest.mark.parametrize("fault", ["lost", "twice", "altered", "strange", "missing"])
def test_faults(roomload: Path, faulty: int, fault: str) -> None:
    status, told = run(roomload, faulty, f"/{fault}", "-c4", "-r1", "-p1", "-w1", "-q1")
    assert status == 1
    if fault in ("lost", "strange"):
        assert told[fault] > 0
    elif fault == "altered":
        # All four, and so none of them came as it was published.
        assert (told["altered"], told["missing"]) == (4, 4)
    elif fault == "missing":
        assert told["missing"] == 1
    else:
        assert (told["twice"], told["missing"]) == (1, 0)


@pytest.mark.parametrize("options", [("-w65",), ("-c1", "-r2"), ("-s19",), ("-p0",), ("-d0",)])
def test_numbers_that_can_not_be(roomload: Path, options: tuple[str, ...]) -> None:
    command = [str(roomload), "127.0.0.1", "1", "/", *options]
    assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 2


def test_only_the_loopback_range(roomload: Path) -> None:
    assert subprocess.run([str(roomload), "192.0.2.1", "1", "/"], capture_output=True).returncode == 2


def test_a_server_that_refuses(roomload: Path, topics: int) -> None:
    command = [str(roomload), "127.0.0.1", str(topics), "/nowhere", "-c2", "-r1", "-p1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "refused" in done.stderr


def test_the_clients_of_an_outage_know_whom_each_message_reached(topics: int) -> None:
    crowd = Crowd(topics, 2)
    try:
        crowd.open(4)
        before = json.loads(crowd.ask(crowd.subscribers[0]))
        crowd.run(0.2, 100)
        late = crowd.subscribe(1)
        crowd.run(0.2, 100)
        crowd.run_until_quiet(0.5)
        after = json.loads(crowd.ask(late))
        found = outage.account(crowd)
        assert found == outage.Account(published=found.published, own=found.published)
        assert after["published"] - before["published"] == found.published > 0
        assert not crowd.ended
        late.got.pop()
        assert outage.account(crowd).torn == 1
    finally:
        crowd.close()
