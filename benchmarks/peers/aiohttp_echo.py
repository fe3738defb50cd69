"""Echo on aiohttp's server: python aiohttp_echo.py PORT."""

from __future__ import annotations

import os
import sys

from aiohttp import WSMsgType, web

DEFLATE = os.environ.get("BENCHMARK_DEFLATE") == "1"


async def echo(request: web.Request) -> web.WebSocketResponse:
    session = web.WebSocketResponse(max_msg_size=16 * 1024 * 1024, compress=DEFLATE)
    await session.prepare(request)
    async for message in session:
        if message.type is WSMsgType.TEXT:
            await session.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await session.send_bytes(message.data)
    return session


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/", echo)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
