"""Rooms that pass messages on, rightly or with the fault that the path names: python faulty_rooms.py PORT"""

from __future__ import annotations

import sys
from collections import defaultdict

import geventws

app = geventws.WebSockets()
rooms: dict[str, list[geventws.DefaultWebSocketServerSession]] = defaultdict(list)


def pass_on(fault: str, room: list[geventws.DefaultWebSocketServerSession], number: int, message: str) -> None:
    """Sends a message to a room; of the fourth message something is wrong."""
    targets = room
    if number == 3:
        if fault == "missing":
            targets = room[1:]
        elif fault == "twice":
            targets = [*room, room[0]]
        elif fault == "altered":
            message = message.replace("xyz", "xyy")
        elif fault == "strange":
            room[0].send(b"")
        elif fault == "lost":
            room[0].close(1001)
    for session in targets:
        session.send(message)


@app.route("/<fault>")
def topic(session: geventws.DefaultWebSocketServerSession, fault: str) -> None:
    """A subscriber or a publisher, as the query says; their path is one of the faults, or another word."""
    query = session.request.args
    room = rooms[fault + query["topic"]]
    if fault == "socketio":
        session.send('0{"sid":"a"}')
        assert session.receive() == "40"
        session.send('42["ready","one"]')
        session.send('40{"sid":"b"}')
    else:
        session.send("ready one")
    if "publish" not in query:
        room.append(session)
    held = ""
    for number, message in enumerate(session):
        if message == "3":
            continue
        if fault == "socketio":
            session.send("2")
            message = message.replace('"publish"', '"message"')
        if fault == "reordered" and number % 2 == 0:
            held = message
            continue
        pass_on(fault, room, number, message)
        if held:
            pass_on(fault, room, number, held)


if __name__ == "__main__":
    geventws.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None).serve_forever()
