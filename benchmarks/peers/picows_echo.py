"""Echo, and a publisher to all, on picows: python picows_echo.py PORT.

Its fast core API; the core has no permessage-deflate, so the deflate works run its own ``picows.websockets`` layer.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

LARGEST = 16 * 1024 * 1024
TLS = os.environ.get("BENCHMARK_TLS")

subscribers: set[WSTransport] = set()


class Echo(WSListener):
    """Sends every message back; joins fragments, which the core hands over one by one."""

    def __init__(self) -> None:
        self.fragments = bytearray()
        self.kind = WSMsgType.TEXT

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.fin and kind != WSMsgType.CONTINUATION:
            transport.send(kind, frame.get_payload_as_memoryview())
        else:
            if kind != WSMsgType.CONTINUATION:
                self.kind = kind
            self.fragments += frame.get_payload_as_memoryview()
            if frame.fin:
                transport.send(self.kind, self.fragments)
                self.fragments = bytearray()


class Publish(WSListener):
    """Sends every message, which must come in one frame, to everybody here."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        subscribers.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        subscribers.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            message = frame.get_payload_as_bytes()
            for subscriber in subscribers:
                subscriber.send(kind, message)


def choose(request: WSUpgradeRequest) -> WSListener:
    return Publish() if request.path == b"/publish" else Echo()


async def serve(port: int) -> None:
    context = None
    if TLS:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(f"{TLS}/cert.pem", f"{TLS}/key.pem")
    server = await ws_create_server(choose, "127.0.0.1", port, ssl=context, max_frame_size=LARGEST)
    await server.serve_forever()


async def serve_deflated(port: int) -> None:
    from picows.websockets.asyncio.server import ServerConnection
    from picows.websockets.asyncio.server import serve as serve_websockets

    async def echo(session: ServerConnection) -> None:
        async for message in session:
            await session.send(message)

    async with serve_websockets(echo, "127.0.0.1", port, max_size=LARGEST) as server:
        await server.serve_forever()


if __name__ == "__main__":
    run = serve_deflated if os.environ.get("BENCHMARK_DEFLATE") == "1" else serve
    asyncio.run(run(int(sys.argv[1])))
