"""``geventwebsocket.protocols.wamp`` is not provided: importing it says why."""

from __future__ import annotations

raise ImportError(
    "geventws has no WAMP: gevent-websocket's speaks WAMP 1, which is superseded, and its WampProtocol fails on "
    "Python 3 (it uses string.letters). Derive from geventws.compat.geventwebsocket.protocols.base.BaseProtocol instead"
)
