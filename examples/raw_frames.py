"""A raw session: the handler sees every frame, and what a default session does by itself is done here by hand.

    python -m geventws examples.raw_frames:app

Each message is answered by a report about its fragments, in as many fragments; the message "close" by a closing
handshake.
"""

from __future__ import annotations

from geventws import CloseCode, Frame, Opcode, WebSockets, WebSocketServerSession, pinger

app = WebSockets()


# Only clients that offer the subprotocol "v1.frames" get here; others are refused with a 400 that names it.
@app.route("/", raw=True, protocol="v1.frames")
def frames(session: WebSocketServerSession) -> None:
    # A ping every 20 seconds; a client that has not answered after 15 is gone, and the loop below ends.
    keepalive = pinger(session, period=20, timeout=15)
    for frame in session:
        if frame.opcode == Opcode.PING:
            session.send(Frame.pong(frame.payload))
        elif frame.opcode == Opcode.PONG:
            keepalive.pong(frame)
        elif frame.opcode == Opcode.CLOSE:
            answer_close(session, frame)
        elif frame == Frame.text("close"):
            close(session, CloseCode.NORMAL, "as you wished")
        else:
            report(session, frame)


def report(session: WebSocketServerSession, frame: Frame) -> None:
    """Sends a fragment about a fragment."""
    line = f"{frame.opcode.name} with {len(frame.payload)} bytes, {'the last' if frame.fin else 'more follow'}\n"
    # The first fragment of a message says what it is, the others are continuations; only the last has fin set.
    # Control frames may come between fragments, other messages may not.
    if frame.opcode == Opcode.CONTINUATION:
        session.send(Frame.continuation(line.encode(), fin=frame.fin))
    else:
        session.send(Frame.text(line, fin=frame.fin))


def answer_close(session: WebSocketServerSession, frame: Frame) -> None:
    """Ends the closing handshake that the client began, with the code that it gave."""
    reason = frame.close_reason
    if reason.code == CloseCode.NO_STATUS:
        # 1005 stands for a Close frame without a code. It is never sent; the answer has no code either.
        session.send(Frame(Opcode.CLOSE))
    else:
        session.send(Frame.close(reason.code))


def close(session: WebSocketServerSession, code: int, message: str) -> None:
    """Begins the closing handshake, and waits for the client to end it."""
    session.send(Frame.close(code, message))
    # What the client sent before it saw our Close frame still comes. Its own Close frame is the last.
    for frame in session:
        if frame.opcode == Opcode.CLOSE:
            break
