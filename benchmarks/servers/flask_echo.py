"""Our echo, and a publisher to all, as Flask routes.

python flask_echo.py PORT, or gunicorn -k geventws.Worker flask_echo:app
"""

from __future__ import annotations

from flask import Flask
from handlers import SETTINGS, echo, publish, serve

from geventws.flask import WebSockets

app = Flask(__name__)
sockets = WebSockets(app, **SETTINGS)
sockets.route("/")(echo)
sockets.route("/publish")(publish)

if __name__ == "__main__":
    serve(app)
