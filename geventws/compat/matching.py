"""Plain rules for requests that offer a WebSocket, as old apps have them.

Since version 1, Werkzeug matches such requests with rules that have ``websocket=True`` alone, and everything else is a
`WebsocketMismatch`. The views of older apps stand on plain rules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from werkzeug.routing import Map, MapAdapter, WebsocketMismatch

__all__ = ["MapAdapterForEither", "match_plain_rules_too", "take_either"]

_bind_to_environ = Map.bind_to_environ


class MapAdapterForEither(MapAdapter):
    """Matches rules for WebSockets first, and plain ones where there is none."""

    def match(self, *arguments: Any, **keywords: Any) -> Any:
        """As Werkzeug's."""
        try:
            return super().match(*arguments, **keywords)
        except WebsocketMismatch:
            if not self.websocket or len(arguments) > 4 or keywords.get("websocket") is not None:
                raise
            return super().match(*arguments, **{**keywords, "websocket": False})


def take_either(adapter: MapAdapter) -> MapAdapter:
    """Has ``adapter`` match plain rules too, and gives it."""
    adapter.__class__ = MapAdapterForEither
    return adapter


@cache
def match_plain_rules_too() -> None:
    """Has Werkzeug match plain rules too, of requests alone in whose environ is a ``wsgi.websocket``.

    From the first call on, in all of the process.
    """
    Map.bind_to_environ = _bind_either  # type: ignore[method-assign]


def _bind_either(self: Map, environ: Any, *arguments: Any, **keywords: Any) -> MapAdapter:
    adapter = _bind_to_environ(self, environ, *arguments, **keywords)
    if "wsgi.websocket" in getattr(environ, "environ", environ):
        take_either(adapter)
    return adapter
