"""``geventwebsocket.gunicorn``: the gunicorn worker."""
