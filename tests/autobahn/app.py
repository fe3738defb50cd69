"""The echo server that the Autobahn testsuite runs against."""

from __future__ import annotations

from geventws import PermessageDeflate, WebSockets

# Cases 9.* send messages of up to 16 MiB, in up to 65,536 fragments; the defaults would rightly refuse them with 1009.
application = WebSockets(
    extensions=[PermessageDeflate()],
    origins=None,
    max_frame_size=32 * 1024 * 1024,
    max_fragments=None,
)


@application.route("/")
def echo(session):
    """Send every message back as it came, text as text and bytes as bytes."""
    for message in session:
        session.send(message)
