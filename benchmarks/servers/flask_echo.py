"""Our echo and publishers to all, as Flask routes.

python flask_echo.py PORT, or gunicorn -k geventws.Worker flask_echo:app
"""

from __future__ import annotations

from flask import Flask
from handlers import ROUTES, SETTINGS, serve

from geventws.flask import WebSockets

app = Flask(__name__)
sockets = WebSockets(app, **SETTINGS)
for path, handler in ROUTES.items():
    sockets.route(path)(handler)

if __name__ == "__main__":
    serve(app)
