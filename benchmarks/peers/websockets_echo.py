"""Echo on websockets' asyncio server: python websockets_echo.py PORT."""

from __future__ import annotations

import asyncio
import os
import sys

from websockets.asyncio.server import ServerConnection, serve

COMPRESSION = "deflate" if os.environ.get("BENCHMARK_DEFLATE") == "1" else None


async def echo(session: ServerConnection) -> None:
    async for message in session:
        await session.send(message)


async def main(port: int) -> None:
    async with serve(echo, "127.0.0.1", port, compression=COMPRESSION, max_size=16 * 1024 * 1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
