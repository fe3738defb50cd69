"""A chat of one room, in Flask: what one types, all see.

    gunicorn -k geventws.Worker examples.chat:app

Then open http://127.0.0.1:8000/ in two tabs. The page is templates/chat.html.
"""

from __future__ import annotations

import json

from flask import Flask, abort, render_template, request

from geventws import Blueprint, CloseCode, DefaultWebSocketServerSession, broadcast
from geventws.flask import WebSockets

MAX_NAME = 30

app = Flask(__name__)
sockets = WebSockets(app)
ws = Blueprint("room", __name__, url_prefix="/room")


#: Who is in the room, by name.
members: dict[DefaultWebSocketServerSession, str] = {}


def tell_all(event: str, **details: object) -> None:
    """Sends an event to everybody in the room, and never waits for anybody; who lags too far behind is closed."""
    broadcast(members, json.dumps({"event": event, **details}), slow="close")


def people() -> list[str]:
    return sorted(members.values())


@ws.route("/talk", max_frame_size=4096)
def talk(session: DefaultWebSocketServerSession) -> None:
    name = session.request.args.get("name", "").strip()[:MAX_NAME]
    if not name:
        abort(400, "Tell your name: /room/talk?name=Ada")  # Until the session is used, all this is plain HTTP.
    session.accept()  # Now it is a WebSocket.
    members[session] = name
    tell_all("joined", name=name, people=people())
    try:
        for text in session:
            if not isinstance(text, str):
                session.close(CloseCode.UNSUPPORTED_DATA, "this chat is for text")
            elif text.strip():
                tell_all("said", name=name, text=text)
    finally:
        del members[session]
        tell_all("left", name=name, people=people())


@app.get("/")
def page() -> str:
    return render_template("chat.html", name=request.args.get("name", "").strip()[:MAX_NAME], max_name=MAX_NAME)


app.register_blueprint(ws)
