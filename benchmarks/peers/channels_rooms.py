"""Rooms on Django Channels with channels_redis, one process: daphne or uvicorn channels_rooms:app.

BENCHMARK_LAYER is the class of channels_redis to use.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs

import django
from django.conf import settings

LAYER = os.environ["BENCHMARK_LAYER"]
# redis-py 8 gives up after 5 seconds by default, which is just as long as the layer has it wait for a message.
OPTIONS: dict[str, Any] = {"hosts": [{"address": os.environ["BENCHMARK_REDIS"], "socket_timeout": None}]}
if LAYER.endswith(".RedisChannelLayer"):
    # The default of 100 drops messages.
    OPTIONS["capacity"] = 10_000

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of the benchmark",
    CHANNEL_LAYERS={"default": {"BACKEND": LAYER, "CONFIG": OPTIONS}},
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402


class Room(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        query = parse_qs(self.scope["query_string"].decode())
        self.topic = query["topic"][0]
        self.subscribed = "publish" not in query
        if self.subscribed:
            await self.channel_layer.group_add(self.topic, self.channel_name)
        await self.accept()
        await self.send(text_data=f"ready {os.getpid()}")

    async def disconnect(self, code: int) -> None:
        if self.subscribed:
            await self.channel_layer.group_discard(self.topic, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send(self.topic, {"type": "room.message", "text": text_data})

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter([path("topic", Room.as_asgi())])})
