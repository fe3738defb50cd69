"""Our echo and publishers to all, without a framework.

python echo.py PORT, or gunicorn -k geventws.Worker echo:app
"""

from __future__ import annotations

from handlers import ROUTES, SETTINGS, serve

import geventws

app = geventws.WebSockets(**SETTINGS)
for path, handler in ROUTES.items():
    app.route(path)(handler)

if __name__ == "__main__":
    serve(app)
