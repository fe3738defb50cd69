"""The examples, run as a user would run them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.programs import PATIENCE, Program, development_server


def closing(connection: ClientConnection) -> tuple[int | None, str | None]:
    """Waits for the server to close; gives the code and the reason."""
    with pytest.raises(ConnectionClosed):
        connection.recv(PATIENCE)
    return connection.close_code, connection.close_reason


def status_of(url: str, **options: Any) -> tuple[int, str]:
    """The status and the body with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused, connect(url, proxy=None, **options):
        pass
    response = refused.value.response
    return response.status_code, bytes(response.body or b"").decode()


def test_echo_as_a_script() -> None:
    with Program(sys.executable, "examples/echo.py", "127.0.0.1:0") as program:
        url = program.wait_for(r"listening on (ws://\S+/)")[1]
        with connect(url, proxy=None) as connection:
            for message in ("hello", b"\x00\xff", "", "Grüße, 世界"):
                connection.send(message)
                assert connection.recv(PATIENCE) == message
            assert program.stop(signal.SIGINT) == 0
            assert closing(connection) == (1001, "")
    assert not [line for line in program.rest() if "Traceback" in line]


def test_echo_by_the_development_server() -> None:
    with development_server("examples.echo:app") as (address, program):
        with connect(f"ws://{address}/", proxy=None) as connection:
            connection.send("hello")
            assert connection.recv(PATIENCE) == "hello"
        assert program.stop() == 0


@pytest.fixture(scope="module")
def raw_frames() -> Iterator[str]:
    with development_server("examples.raw_frames:app") as (address, program):
        yield f"ws://{address}/"
        assert program.stop() == 0
    assert not [line for line in program.rest() if "Traceback" in line or "fault" in line]


def test_raw_frames_reports_fragments(raw_frames: str) -> None:
    with connect(raw_frames, subprotocols=["v1.frames"], proxy=None) as connection:  # type: ignore[list-item]
        assert connection.subprotocol == "v1.frames"
        connection.send("hello")
        assert connection.recv(PATIENCE) == "TEXT with 5 bytes, the last\n"
        assert connection.ping(b"between").wait(PATIENCE)
        connection.send([b"ab", b"c"])
        fragments = list(connection.recv_streaming())
        assert fragments[:2] == ["BINARY with 2 bytes, more follow\n", "CONTINUATION with 1 bytes, more follow\n"]
        assert fragments[-1] == "CONTINUATION with 0 bytes, the last\n"
        connection.send("close")
        assert closing(connection) == (1000, "as you wished")


@pytest.mark.parametrize("code", [1000, 4321])
def test_raw_frames_answers_a_close(raw_frames: str, code: int) -> None:
    with connect(raw_frames, subprotocols=["v1.frames"], proxy=None) as connection:  # type: ignore[list-item]
        connection.close(code, "enough")
        assert connection.protocol.close_rcvd is not None
        assert connection.protocol.close_rcvd.code == code


def test_raw_frames_wants_its_protocol(raw_frames: str) -> None:
    status, body = status_of(raw_frames)
    assert status == 400
    assert "v1.frames" in body
