"""A chat with rooms, in Flask, whose workers share the rooms by Redis or Valkey.

    gunicorn -c gunicorn.conf.py examples.chat:app

Then open http://127.0.0.1:8000/ in two tabs, or on two phones. REDIS_URL in the environment names the server that all
workers use, on this machine or on many; without it gunicorn.conf.py starts a Valkey of their own. In one process it
needs neither: ``python -m geventws examples.chat:app``. The page is templates/chat.html.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import gevent
from flask import Flask, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from geventws import Blueprint, CloseCode, DefaultWebSocketServerSession, JSONConverter, Position, Topics
from geventws.flask import WebSockets
from geventws.topics import Gap, Presence

MAX_NAME = 30
MAX_ROOM = 40
MAX_TEXT = 1000
HISTORY = 1000  # messages of a room that are kept for those who come back
RECENT = 50  # of these, what somebody is shown who is new, or was away for too long
BURST, RATE = 20, 10  # so many messages of a session at once, and then so many a second

app = Flask(__name__)
sockets = WebSockets(app)
ws = Blueprint("room", __name__, url_prefix="/room")


def envelope(topic: str, message: str | bytes, position: Position | None) -> str:
    """What the pages get of a message: the event, and where it stands in the room's history."""
    try:
        event = json.loads(message)
    except ValueError:
        event = None
    if not isinstance(event, dict):  # By hand: python -m geventws publish room/lobby "Tea is ready"
        event = {"event": "announced", "text": message if isinstance(message, str) else repr(message)}
    return json.dumps({**event, "position": position and str(position)})


topics = Topics(
    os.environ.get("REDIS_URL") or None,
    history={"room/*": HISTORY},  # None for who is typing: that is old news at once.
    slow="close",  # The page comes back, and asks for what it missed.
    envelope=envelope,
)


@ws.route("/<room>/talk", max_frame_size=16 * 1024, content_converter=JSONConverter())
def talk(session: DefaultWebSocketServerSession, room: str) -> None:
    """One page in a room, from its connection to its end."""
    name = tidy(session.request.args.get("name", ""))
    if not 1 <= len(name) <= MAX_NAME or not is_room(room):
        abort(400, "Tell your name: /room/lobby/talk?name=Ada")  # Until the session is used, all this is plain HTTP.
    enter(session, room, name, since=session.request.args.get("since"))
    pace = Pace()
    while True:
        command = session.receive_deserialized(dict)  # Ends the handler when the page is gone.
        pace.wait()
        match command:
            case {"say": str(text), "id": str(id)} if text.strip() and len(text) <= MAX_TEXT and len(id) <= 64:
                publish(f"room/{room}", event="said", name=name, text=text, id=id, time=time.time())
            case {"typing": str(page)} if len(page) <= 64:
                publish(f"typing/{room}", event="typing", name=name, page=page)
            case _:
                session.close(CloseCode.POLICY_VIOLATION, "that is nothing to say here")
                return


def enter(session: DefaultWebSocketServerSession, room: str, name: str, since: str | None) -> None:
    """Subscribes a page: it is sent what it has missed, then whatever comes, and who is here."""
    topic = f"room/{room}"
    topics.subscribe(session, f"typing/{room}")
    subscribed = topics.subscribe(
        session, topic, member=name, since=since, recent=RECENT, on_presence=tell_presence, on_gap=tell_gap
    )
    session.send_serialized(
        {
            "event": "welcome",
            "people": topics.presence(topic),
            "position": subscribed.position and str(subscribed.position),
            "recovered": subscribed.recovered,
            "worker": os.getpid(),
        }
    )


def tell_presence(presence: Presence) -> str:
    """What the pages get when somebody comes or goes, in whichever worker."""
    return json.dumps({"event": presence.event, "name": presence.member.name, "key": presence.member.key})


def tell_gap(gap: Gap) -> str:
    """What the pages get when Redis was away for longer than its history tells."""
    return json.dumps({"event": "gap", "lost": gap.lost})


def publish(topic: str, **event: Any) -> None:
    """Publishes an event, as JSON."""
    topics.publish(topic, json.dumps(event))


class Pace:
    """Slows a session down: where it is too fast its handler waits, and what it sends meanwhile waits in TCP."""

    def __init__(self) -> None:
        self.due = 0.0

    def wait(self) -> None:
        now = time.monotonic()
        self.due = max(self.due, now - BURST / RATE) + 1 / RATE
        gevent.sleep(max(0, self.due - now))


def tidy(text: str) -> str:
    """Text of one line, without spaces around it."""
    return " ".join(text.split())


def is_room(room: str) -> bool:
    return room == tidy(room) and 1 <= len(room) <= MAX_ROOM


@app.get("/")
def front() -> str | Response:
    name, room = tidy(request.args.get("name", "")), tidy(request.args.get("room", ""))
    if name and room:
        return redirect(url_for("page", room=room, name=name))
    return show(name, room)


@app.get("/room/<room>")
def page(room: str) -> str:
    if not is_room(room):
        abort(404)
    return show(tidy(request.args.get("name", "")), room)


def show(name: str, room: str) -> str:
    limits = {"max_name": MAX_NAME, "max_room": MAX_ROOM, "max_text": MAX_TEXT}
    return render_template("chat.html", name=name[:MAX_NAME], room=room[:MAX_ROOM], **limits)


app.register_blueprint(ws)
