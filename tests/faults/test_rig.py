"""The rig itself: it serves, it counts, and it sees harm where there is some."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.rig import OURS, many, serve, unharmed, within_bound
from tests.faults.witness import Witness
from tests.wire import TEXT, close_frame, frame


@pytest.mark.parametrize("name", OURS)
def test_rig(name: str, figure: Callable[..., None]) -> None:
    """A server with honest clients alone harms none of them, and settles."""
    with serve(name, settings={"max_frame_size": 1000}) as server:
        with unharmed(server):

            def measure() -> Witness:
                with Witness(server.address) as witness, many(server.address, 20, "/echo") as clients:
                    for client in clients:
                        client.send(frame(TEXT, b"x" * 1000))
                        assert client.frame() == (0x81, b"x" * 1000)
                        client.send(frame(TEXT, b"x" * 1001))
                        assert client.close_code() == 1009
                    witness.wait(1.0)
                return witness

            witness = within_bound(measure, name)
            assert witness.messages > 100
        figure("p99 of honest clients", witness.p99_ms, "ms", server=name)
        assert server.sample().threads >= 1
        with server.client("/sink") as client:
            client.send(frame(TEXT, b"x" * 10) + frame(TEXT, b"count"))
            assert client.frame() == (0x81, b"10")
            assert server.stats()["sessions"] == 1
            client.send(close_frame())
            assert client.close_code() == 1000


def test_rig_sees_harm() -> None:
    """A witness tells of a connection that a server ends, and the rig of what a server keeps."""
    with serve("standalone") as server:
        with Witness(server.address, clients=5) as witness:
            witness.wait(0.2)
            server.process.kill()
            server.process.wait()
        assert len(witness.errors) == 5
    with (
        serve("standalone") as server,
        many(server.address, 1, "/echo") as clients,
        pytest.raises(AssertionError, match="1 more sessions"),
        unharmed(server),
    ):
        clients.append(server.client("/echo"))
