"""A chat of one room, in Flask: what one types, all see.

    gunicorn -k geventws.Worker examples.chat:app

Then open http://127.0.0.1:8000/ in two tabs. The page is templates/chat.html.
"""

from __future__ import annotations

import json

import gevent
from flask import Flask, abort, render_template, request
from gevent.queue import Queue

from geventws import Blueprint, CloseCode, ConnectionClosed, DefaultWebSocketServerSession
from geventws.flask import WebSockets

MAX_NAME = 30

app = Flask(__name__)
sockets = WebSockets(app)
ws = Blueprint("room", __name__, url_prefix="/room")


class Member:
    """Someone in the room, and the messages on their way to them."""

    def __init__(self, session: DefaultWebSocketServerSession, name: str) -> None:
        self.session = session
        self.name = name
        self.outbox: Queue[str] = Queue(maxsize=100)

    def deliver(self) -> None:
        """Sends what is in the outbox, for as long as the member is there."""
        try:
            while True:
                self.session.send(self.outbox.get())
        except ConnectionClosed:
            pass  # The handler below notices too, and tidies up.


members: set[Member] = set()


def tell_all(event: str, **details: object) -> None:
    """Sends an event to everybody in the room, and never waits for anybody."""
    message = json.dumps({"event": event, **details})
    for member in members.copy():
        # send() waits for a client that reads too slowly, and in this loop everybody would wait with it. So each member
        # has a greenlet that sends, and an outbox in front of it; whose outbox is full is asked to come back later.
        # The loop is this example's own: this version of geventws has no broadcast yet.
        if member.outbox.full():
            members.discard(member)
            member.session.start_close(CloseCode.TRY_AGAIN_LATER, "too slow to keep up")
        else:
            member.outbox.put_nowait(message)


def people() -> list[str]:
    return sorted(member.name for member in members)


@ws.route("/talk", max_frame_size=4096)
def talk(session: DefaultWebSocketServerSession) -> None:
    name = session.request.args.get("name", "").strip()[:MAX_NAME]
    if not name:
        abort(400, "Tell your name: /room/talk?name=Ada")  # Until the session is used, all this is plain HTTP.
    session.accept()  # Now it is a WebSocket.
    member = Member(session, name)
    members.add(member)
    sender = gevent.spawn(member.deliver)
    tell_all("joined", name=name, people=people())
    try:
        for text in session:
            if not isinstance(text, str):
                session.close(CloseCode.UNSUPPORTED_DATA, "this chat is for text")
            elif text.strip():
                tell_all("said", name=name, text=text)
    finally:
        members.discard(member)
        sender.kill()
        tell_all("left", name=name, people=people())


@app.get("/")
def page() -> str:
    return render_template("chat.html", name=request.args.get("name", "").strip()[:MAX_NAME], max_name=MAX_NAME)


app.register_blueprint(ws)
