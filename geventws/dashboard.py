"""A live page of the sessions of all workers: ``app.register_blueprint(geventws.dashboard.Blueprint(allow=...))``.

Nothing runs while nobody watches. A worker with viewers asks all workers for a snapshot once a second, each makes one,
and all viewers are sent the same. Workers talk over topics: those of this process, or shared ones of the app.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Iterable, Set
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from gevent import Greenlet, sleep, spawn
from werkzeug.exceptions import Forbidden, HTTPException
from werkzeug.wrappers import Request, Response

from geventws import routing
from geventws.arguments import shown
from geventws.call import DefaultWebSocketServerSession, Observers, WebSocketServerSession
from geventws.frames import CloseReason
from geventws.peer_log import format_address
from geventws.stats import SessionStats
from geventws.topics import Topics, broadcast
from geventws.transport import monotonic

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Blueprint"]

log = logging.getLogger("geventws")

#: Seconds between two snapshots, and of work at a stretch at one.
INTERVAL = 1.0
SLICE_SECONDS = 0.005
#: Seconds after which a viewer's right to look is asked for again.
CHECK_SECONDS = 60.0
#: Sessions of one worker that the page shows, those with most to see; its sums are of all.
MOST_SESSIONS = 500
#: Characters of a path that the page shows.
MOST_PATH = 100

#: On what topics the workers talk: viewers' questions and orders, and the answers.
CONTROL = "geventws.dashboard.control"
SNAPSHOTS = "geventws.dashboard.snapshots"

ASK = "ask"


class Blueprint(routing.Blueprint):
    """A live page of the sessions, at ``url_prefix``, which can also close them; and the page's WebSocket.

    Register it on a Flask app that has the extension, or on a ``geventws.WebSockets``.

    :param allow: called with the page's request, with its WebSocket's request, and with the latter again each minute
        and before a session is closed. True lets in, and False and None give a 403. If it returns a response (any WSGI
        application, such as Flask's ``redirect``) or raises an ``HTTPException``, that is the answer. Anything else is
        a ``TypeError``, and lets nobody in. There is no default.
    :param topics: the ``Topics`` with which the workers find each other; without them the page shows only the worker
        that serves it. Use ``Topics`` without a history, to whose Redis nobody else writes: messages there can close
        sessions.
    :param origins: which pages may open the WebSocket, as in the setting of this name; by default the server's own.

    Raises ``TypeError`` for an ``allow`` that can't be called or is ``async def``, and for anything but ``Topics`` as
    ``topics``; ``ValueError`` for bad origins.
    """

    def __init__(
        self,
        *,
        allow: Callable[[Any], bool | WSGIApplication | None],
        name: str = "dashboard",
        url_prefix: str | None = "/dashboard",
        subdomain: str | None = None,
        topics: Topics | None = None,
        origins: Literal["same"] | list[str] | tuple[str, ...] | Set[str] = "same",
    ) -> None:
        super().__init__(name, __name__, url_prefix=url_prefix, subdomain=subdomain)
        if not callable(allow):
            raise TypeError(
                f"allow must be a function of a request that tells who may see the page, not {shown(allow)}"
            )
        if (
            inspect.iscoroutinefunction(allow)
            or inspect.isasyncgenfunction(allow)
            or inspect.isgeneratorfunction(allow)
        ):
            raise TypeError("allow must be a plain function: def instead of async def, no await and no yield")
        if topics is not None and not isinstance(topics, Topics):
            raise TypeError(f"topics must be a geventws.Topics or None, not {shown(topics)}")
        if origins is None:
            raise ValueError('origins must be "same" or a list: with None any page could close your sessions')
        self._allow = allow
        self._shared = topics is not None
        self._topics = Topics() if topics is None else topics
        self._process = 0
        self._start_anew()
        self.pages.append(("/", "page", self._page))
        self.before_request(self._check)
        self.route("/socket", endpoint="socket", origins=origins, max_frame_size=4096, content_converter=None)(
            self._watch
        )

    def _start_anew(self) -> None:
        """Begins without sessions and viewers, as a forked child does."""
        self._worker = os.urandom(6).hex()
        #: The open sessions of each server of this process that was heard of.
        self._servers: list[set[Any]] = []
        self._seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()
        self._numbers = count(1)
        self._viewers: set[Any] = set()
        self._asks: Greenlet[..., None] | None = None
        self._listens = False
        self._tells = False
        self._told_at = 0.0

    def _enter(self) -> None:
        if self._process != os.getpid():
            if self._process:
                self._start_anew()
            self._process = os.getpid()

    def registered(self, app: Any) -> None:
        """Called when an app has registered it."""
        if self._shared:
            # For those who watch in another worker: this one has to hear of them.
            observers = Observers()
            observers.opened.append(self._opened)
            app.observe(observers)

    # -- The page
    # -----------------------------------------------------------------------------------------------------------------

    def _page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Flask's own request, where it has made one.
        request = environ.get("werkzeug.request") or Request(environ)
        answer = self._refusal(request)
        if answer is None:
            answer = Response(_PAGE, mimetype="text/html", headers=_HEADERS)
        return answer(environ, start_response)

    def _check(self, session: DefaultWebSocketServerSession) -> WSGIApplication | None:
        refusal = self._refusal(session.request)
        if isinstance(refusal, HTTPException):
            # For a framework's error handlers.
            raise refusal
        return refusal

    def _refusal(self, request: Any) -> WSGIApplication | None:
        """What answers a request whose sender may not look; None for one who may."""
        answer: Any
        try:
            answer = self._allow(request)
        except HTTPException as error:
            return error
        if answer is None or isinstance(answer, bool):
            return None if answer else Forbidden()
        # No text, though a handler may return one: here it is more likely a user's name, meant as a yes.
        if callable(answer):
            return answer  # type: ignore[no-any-return]
        raise TypeError(
            "allow must return True or False, or a response (a WSGI application) for who may not see the page, "
            f"not {type(answer).__name__}"
        )

    # -- The viewers
    # -----------------------------------------------------------------------------------------------------------------

    def _watch(self, session: DefaultWebSocketServerSession) -> None:
        """The handler of a viewer."""
        self._opened(session)
        session.accept()
        self._viewers.add(session)
        try:
            self._listen()
            if self._asks is None:
                self._asks = spawn(self._ask)
            while True:
                try:
                    message = session.receive(CHECK_SECONDS)
                except TimeoutError:
                    message = None
                if self._refusal(session.request) is not None:
                    session.close(1008, "not allowed any more")
                    break
                if message is not None:
                    self._take_order(session, message)
        finally:
            self._viewers.discard(session)

    def _take_order(self, session: DefaultWebSocketServerSession, message: str | bytes) -> None:
        """Has a session closed, wherever it is."""
        try:
            _read_order(message)
        except ValueError as error:
            session.send(json.dumps({"error": str(error)}))
            return
        self._topics.publish(CONTROL, message)

    def _ask(self) -> None:
        """The greenlet that asks all workers for snapshots, as long as somebody here watches."""
        stop = None
        try:
            stop = self._topics.listen(SNAPSHOTS, self._snapshot_came)
            while self._viewers:
                self._topics.publish(CONTROL, ASK)
                sleep(INTERVAL)
        except Exception:
            log.exception("the dashboard can't reach the workers")
            for viewer in list(self._viewers):
                viewer.start_close(1011)
        finally:
            self._asks = None
            if stop is not None:
                stop()

    def _snapshot_came(self, snapshot: str | bytes) -> None:
        spawn(broadcast, [viewer for viewer in self._viewers if not viewer.closed], snapshot)

    # -- The workers
    # -----------------------------------------------------------------------------------------------------------------

    def _opened(self, session: Any) -> None:
        """Called in a worker whose sessions may be looked at from elsewhere."""
        self._enter()
        sessions = session.call.sessions
        if not any(known is sessions for known in self._servers):
            self._servers.append(sessions)
        if self._shared and not self._listens:
            spawn(self._listen)

    def _listen(self) -> None:
        """Has this worker hear of viewers, once."""
        if self._listens:
            return
        self._listens = True
        try:
            self._topics.listen(CONTROL, self._control_came)
        except Exception:
            # The next session that opens has it tried again.
            self._listens = False
            log.exception("the dashboard does not hear of other workers")

    def _control_came(self, message: str | bytes) -> None:
        if message == ASK:
            # Viewers in several workers all ask.
            if not self._tells and monotonic() > self._told_at + 0.7 * INTERVAL:
                self._tells = True
                spawn(self._tell)
            return
        try:
            worker, number, reason = _read_order(message)
        except ValueError as error:
            log.warning("the dashboard was sent what is no order: %s", error)
            return
        if worker == self._worker:
            for session, seen in list(self._seen.items()):
                if seen.number == number and not session.closed:
                    log.info("the dashboard closes a session of %s: %s", session.rule, reason)
                    spawn(session.start_close, reason.code, reason.message)

    def _tell(self) -> None:
        """Makes a snapshot of this worker's sessions, and publishes it."""
        try:
            self._told_at = monotonic()
            snapshot = self._snapshot()
            rows = snapshot["rows"]
            while True:
                try:
                    self._topics.publish(SNAPSHOTS, json.dumps(snapshot, separators=(",", ":")))
                    break
                except ValueError:
                    # The app's topics take no message of this size.
                    if not rows:
                        raise
                    rows = snapshot["rows"] = rows[: len(rows) // 2]
        except Exception:
            log.exception("the dashboard has no snapshot")
        finally:
            self._tells = False

    def _snapshot(self) -> dict[str, Any]:
        rows = []
        sums = [0.0] * 6
        sessions = [
            session for known in self._servers for session in known if isinstance(session, WebSocketServerSession)
        ]
        ends = monotonic() + SLICE_SECONDS
        for session in sessions:
            row = self._row(session)
            rows.append(row)
            sums = [total + figure for total, figure in zip(sums, row[5:11], strict=True)]
            if monotonic() > ends:
                sleep(0)
                ends = monotonic() + SLICE_SECONDS
        rows.sort(key=_interest, reverse=True)
        return {
            "worker": self._worker,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "sessions": len(rows),
            "sums": [round(total, 1) for total in sums],
            "rows": rows[:MOST_SESSIONS],
        }

    def _row(self, session: Any) -> list[Any]:
        """What the page shows of a session, in the order of its script."""
        stats: SessionStats = session.stats()
        now = monotonic()
        seen = self._seen.get(session)
        if seen is None:
            # One that has just opened is told what it did so far, as if in an interval: per second that were a peak.
            seen = self._seen[session] = _Seen(next(self._numbers), now - max(stats.seconds, INTERVAL))
        before, elapsed = seen.stats, max(now - seen.at, 0.001)
        seen.stats, seen.at = stats, now
        environ = session.environ
        # What a ProxyFix has put there is the client's.
        peer = environ.get("REMOTE_ADDR") or format_address(session.remote_address)
        return [
            seen.number,
            session.rule,
            _shown_path(environ),
            peer,
            round(stats.seconds, 1),
            round((stats.messages_received - before.messages_received) / elapsed, 1),
            round((stats.messages_sent - before.messages_sent) / elapsed, 1),
            round((stats.bytes_received - before.bytes_received) / elapsed),
            round((stats.bytes_sent - before.bytes_sent) / elapsed),
            stats.bytes_queued,
            stats.bytes_buffered,
            stats.latency,
            stats.subscriptions,
            session in self._viewers,
        ]


class _Seen:
    """A session that was in a snapshot: its number there, and its figures then."""

    __slots__ = ("at", "number", "stats")

    def __init__(self, number: int, at: float) -> None:
        self.number = number
        self.at = at
        self.stats = SessionStats()


def _read_order(message: str | bytes) -> tuple[str, int, CloseReason]:
    """The worker and the number of a session that is to be closed, and how; ``ValueError`` for what is no order."""
    try:
        order = json.loads(message)
    except RecursionError:
        raise ValueError("an order is nested less deeply") from None
    if not isinstance(order, dict):
        raise ValueError("an order is an object")
    worker, number = order.get("worker"), order.get("session")
    if not isinstance(worker, str) or not isinstance(number, int):
        raise ValueError("worker is a string, session an integer")
    reason = CloseReason(order.get("code"), order.get("reason"))  # type: ignore[arg-type]
    try:
        reason.to_payload()
    except TypeError as error:
        raise ValueError(error) from error
    return worker, number, reason


def _shown_path(environ: WSGIEnvironment) -> str:
    # WSGI has its bytes as Latin-1.
    path: str = environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
    return path if len(path) <= MOST_PATH else path[: MOST_PATH - 1] + "…"


def _interest(row: list[Any]) -> tuple[float, float]:
    """What comes first where not all are shown: what waits, and who talks most."""
    return row[9] + row[10] + row[7] + row[8], row[4]


def _hashes(tag: str, page: str) -> str:
    """What a Content-Security-Policy calls the elements of a page, for these and no others to be run or applied."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)


_PAGE = (Path(__file__).parent / "dashboard.html").read_text(encoding="utf-8")

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script', _PAGE)}; style-src {_hashes('style', _PAGE)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
