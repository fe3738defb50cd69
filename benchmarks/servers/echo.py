"""Our echo, and a publisher to all, without a framework.

python echo.py PORT, or gunicorn -k geventws.Worker echo:app
"""

from __future__ import annotations

from handlers import SETTINGS, echo, publish, serve

import geventws

app = geventws.WebSockets(**SETTINGS)
app.route("/")(echo)
app.route("/publish")(publish)

if __name__ == "__main__":
    serve(app)
