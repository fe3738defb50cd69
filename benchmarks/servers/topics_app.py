"""Our topics across processes: gunicorn -k geventws.Worker -w 4 topics_app:app; in one: python topics_app.py PORT.

/topic?topic=NAME is a subscriber, and with publish=1 a publisher; either is told by "ready PID" that it is one.
Whatever a subscriber sends is answered with this process's counters as JSON, which GET / has too.
BENCHMARK_REDIS is the server's URL, BENCHMARK_HISTORY how many messages of each topic are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from handlers import serve

import geventws

topics = geventws.Topics(
    os.environ.get("BENCHMARK_REDIS") or None, history=int(os.environ.get("BENCHMARK_HISTORY", "0"))
)


def statistics() -> str:
    """What this process has counted, as JSON."""
    return json.dumps({"pid": os.getpid()} | asdict(topics.statistics()))


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The statistics over HTTP."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [statistics().encode()]


app = geventws.WebSockets(page)


@app.route("/topic")
def topic(session: geventws.DefaultWebSocketServerSession) -> None:
    """A subscriber or a publisher."""
    name = session.request.args["topic"]
    if "publish" in session.request.args:
        session.send(f"ready {os.getpid()}")
        for message in session:
            topics.publish(name, message)
    else:
        topics.subscribe(session, name)
        session.send(f"ready {os.getpid()}")
        for _ in session:
            session.send(statistics())


if __name__ == "__main__":
    serve(app)
