"""``geventwebsocket.protocols``: what stands between a WebSocket and a `WebSocketApplication`."""
