"""Figures for Prometheus, by prometheus-client (the extra ``metrics``): ``geventws.metrics.install(app)``.

Nothing is counted on the way of a message. What sessions count anyway is looked up when they end, when somebody asks
for the figures, and every few seconds between, which is what other processes' scrapes see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gevent import sleep, spawn

from geventws.arguments import check_seconds, missing_extra, shown
from geventws.call import Observers
from geventws.errors import UsageError
from geventws.frames import CloseCode, CloseReason
from geventws.stats import SessionStats
from geventws.topics import Topics
from geventws.topics.statistics import Statistics
from geventws.transport import monotonic
from geventws.upgrade import on_refusal

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import REGISTRY
except ModuleNotFoundError as error:
    raise missing_extra(error, "prometheus_client", "geventws.metrics", "metrics") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from flask import Flask

    from geventws.flask import WebSockets as FlaskWebSockets
    from geventws.routing import WebSockets

__all__ = ["Metrics", "install"]

#: Seconds of work at a stretch, before others have their turn.
SLICE_SECONDS = 0.005
#: The rule of a session that no route of ours led to.
NO_RULE = "(upgrade)"

ROUND_TRIPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HANDLER_SECONDS = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

#: The label of topics that came without a name.
ONLY_TOPICS = "default"

_TOPICS = {
    "published": "Messages published by this process",
    "unsent": "Published messages that could not be sent to Redis, or that it refused",
    "unconfirmed": "Published messages whose confirmation was lost with the connection: Redis may or may not have them",
    "received": "Messages received from Redis: those of other processes, and with a history this process's own",
    "lost": "Messages of other processes that this one missed, as far as it knows",
    "malformed": "Payloads received from Redis that geventws did not write; they are ignored",
    "oversize": "Payloads received from Redis that are larger than max_message_size; they are ignored",
    "gaps": "How many times a topic may have missed messages",
    "reconnects": "How many times the connection to Redis was made anew",
    "delivered": "Messages handed to sessions for sending, one for each session",
    "slow": "Messages that were not handed to a session because it was too far behind",
}


class Metrics:
    """The metrics of an app's sessions, in a Prometheus registry. All their names begin with ``geventws_``.

    ``app`` is a `geventws.WebSockets`, a `geventws.flask.WebSockets` or a Flask app that has this extension. The app's
    own code limits the label values: ``route`` is a route's rule, never a path.

    Create it once for a registry, before the first request. If a process makes several apps, as tests with an app
    factory do, give each its own registry, ``registry=CollectorRegistry()``. Under gunicorn with several workers set
    ``PROMETHEUS_MULTIPROC_DIR``; a gauge is then the sum over the living workers, and up to ``interval`` old.

    :param registry: where the metrics go; by default prometheus-client's default registry.
    :param topics: the ``Topics`` whose statistics to export too, under the label ``default``, or a mapping of labels to
        several.
    :param interval: seconds between two looks at the open sessions.

    Raises ``UsageError`` for an app without the extension, a registry that already has such metrics, and a missing
    directory; ``TypeError`` if ``app``, ``registry`` or ``topics`` is something else; ``ValueError`` for an interval
    that isn't above 0.
    """

    def __init__(
        self,
        app: WebSockets | FlaskWebSockets | Flask,
        *,
        registry: CollectorRegistry = REGISTRY,
        topics: Topics | Mapping[str, Topics] | None = None,
        interval: float = 5.0,
    ) -> None:
        check_seconds("interval", interval)
        if not isinstance(registry, CollectorRegistry):
            raise TypeError(f"registry must be a prometheus_client.CollectorRegistry, not {shown(registry)}")
        if topics is not None and not _are_topics(topics):
            raise TypeError(
                f"topics must be a geventws.Topics, a mapping of names to such, or None, not {shown(topics)}"
            )
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if directory is not None and not (os.path.isdir(directory) and os.access(directory, os.W_OK)):
            raise UsageError(f"PROMETHEUS_MULTIPROC_DIR must name a directory to write to, not {shown(directory)}")
        observed = _observed(app)
        self.registry = registry
        self._interval = interval
        self._topics = {ONLY_TOPICS: topics} if isinstance(topics, Topics) else dict(topics or {})
        self._topics_before = dict.fromkeys(self._topics, Statistics())
        #: The open sessions, with what was counted of each already.
        self._sessions: dict[Any, _Counted] = {}
        #: The routes that have had sessions.
        self._routes: set[str] = set()
        self._looks = False
        self._process = os.getpid()
        # Ahead of the figures, so that a scrape of this process has those of this moment.
        _register(registry, [_Look(self), *self._make()])
        observers = Observers()
        observers.opened.append(self._opened)
        observers.closed.append(self._closed)
        observers.failed.append(self._failed)
        observers.answered.append(self._answered)
        observed.observe(observers)
        # For good: at the very end.
        on_refusal.append(self._answered)

    def _make(self) -> list[Any]:
        """Makes the figures, which are not registered yet."""
        made: list[Any] = []

        def counter(name: str, told: str, *labels: str) -> Counter:
            made.append(Counter(f"geventws_{name}", told, labels, registry=None))
            return made[-1]  # type: ignore[no-any-return]

        def gauge(name: str, told: str) -> Gauge:
            # Of the workers that live: what a dead one had open is closed.
            made.append(Gauge(f"geventws_{name}", told, ("route",), registry=None, multiprocess_mode="livesum"))
            return made[-1]  # type: ignore[no-any-return]

        def histogram(name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
            made.append(Histogram(f"geventws_{name}", told, ("route",), registry=None, buckets=buckets))
            return made[-1]  # type: ignore[no-any-return]

        self._handshakes = counter("handshakes", "WebSocket opening handshakes, by the HTTP status answered", "status")
        self._open = gauge("open_sessions", "Sessions whose WebSocket is open or whose handler still runs")
        self._closes = counter("closes", "Sessions that have ended, by close code", "route", "code")
        self._errors = counter("handler_errors", "Handlers that raised an exception on an open WebSocket", "route")
        self._messages_received = counter(
            "received_messages", "Messages received from clients; frames where the route is raw", "route"
        )
        self._messages_sent = counter(
            "sent_messages", "Messages sent to clients; frames where the route is raw", "route"
        )
        self._bytes_received = counter("received_bytes", "Bytes received from clients, frame headers included", "route")
        self._bytes_sent = counter("sent_bytes", "Bytes sent to clients, frame headers included", "route")
        self._queued = gauge("queued_bytes", "Bytes of received messages that handlers have not taken yet")
        self._buffered = gauge("buffered_bytes", "Bytes to send that the operating system has not taken yet")
        self._round_trips = histogram("ping_seconds", "Seconds between a ping and its pong", ROUND_TRIPS)
        self._handler_seconds = histogram("handler_seconds", "Seconds that sessions lasted", HANDLER_SECONDS)
        self._of_topics = {
            field.name: counter(f"topics_{field.name}", _TOPICS[field.name], "topics")
            for field in (fields(Statistics) if self._topics else ())
        }
        self._of_routes: tuple[Counter | Gauge | Histogram, ...] = (
            *(self._open, self._queued, self._buffered, self._errors, self._round_trips, self._handler_seconds),
            *(self._messages_received, self._messages_sent, self._bytes_received, self._bytes_sent),
        )
        return made

    # -- What happens
    # -----------------------------------------------------------------------------------------------------------------

    def _opened(self, session: Any) -> None:
        self._enter()
        route = session.rule or NO_RULE
        if route not in self._routes:
            self._routes.add(route)
            # From 0: of a series that begins with its first event a query sees no increase.
            for figure in self._of_routes:
                figure.labels(route)
        self._handshakes.labels("101").inc()
        self._open.labels(route).inc()
        self._sessions[session] = _Counted(route)
        if not self._looks:
            self._looks = True
            spawn(self._look_again)

    def _closed(self, session: Any, reason: CloseReason) -> None:
        counted = self._sessions.pop(session, None)
        if counted is None:
            return
        stats = session.stats()
        self._count(session, counted, stats._replace(bytes_queued=0, bytes_buffered=0))
        self._closes.labels(counted.route, _code(reason.code)).inc()
        self._handler_seconds.labels(counted.route).observe(stats.seconds)
        self._open.labels(counted.route).dec()

    def _failed(self, session: Any, error: BaseException) -> None:
        self._errors.labels(session.rule or NO_RULE).inc()

    def _answered(self, environ: WSGIEnvironment, status: int) -> None:
        self._handshakes.labels(str(status)).inc()

    # -- What is looked up
    # -----------------------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Counts what happened since the last look. Gives way to other greenlets where it takes longer than 5 ms."""
        self._enter()
        ends = monotonic() + SLICE_SECONDS
        for session, counted in list(self._sessions.items()):
            # It may have ended meanwhile, and be counted to its end.
            if session in self._sessions:
                self._count(session, counted, session.stats())
            if monotonic() > ends:
                sleep(0)
                ends = monotonic() + SLICE_SECONDS
        for name, topics in self._topics.items():
            now, before = topics.statistics(), self._topics_before[name]
            self._topics_before[name] = now
            for field, counter in self._of_topics.items():
                counter.labels(name).inc(getattr(now, field) - getattr(before, field))

    def _count(self, session: Any, counted: _Counted, now: SessionStats) -> None:
        before, route = counted.stats, counted.route
        counted.stats = now
        if now.messages_received != before.messages_received:
            self._messages_received.labels(route).inc(now.messages_received - before.messages_received)
        if now.messages_sent != before.messages_sent:
            self._messages_sent.labels(route).inc(now.messages_sent - before.messages_sent)
        if now.bytes_received != before.bytes_received:
            self._bytes_received.labels(route).inc(now.bytes_received - before.bytes_received)
        if now.bytes_sent != before.bytes_sent:
            self._bytes_sent.labels(route).inc(now.bytes_sent - before.bytes_sent)
        if now.bytes_queued != before.bytes_queued:
            self._queued.labels(route).inc(now.bytes_queued - before.bytes_queued)
        if now.bytes_buffered != before.bytes_buffered:
            self._buffered.labels(route).inc(now.bytes_buffered - before.bytes_buffered)
        if now.latency is not None and now.latency != before.latency:
            self._round_trips.labels(route).observe(now.latency)

    def _look_again(self) -> None:
        """The greenlet that looks at the sessions as long as there are some."""
        try:
            while self._sessions:
                sleep(self._interval)
                self.update()
        finally:
            self._looks = False

    def _enter(self) -> None:
        if os.getpid() != self._process:
            # A fork: its parent's sessions are not its own.
            self._process = os.getpid()
            self._sessions = {}
            self._looks = False
            self._topics_before = {name: topics.statistics() for name, topics in self._topics.items()}

    # -- What is told
    # -----------------------------------------------------------------------------------------------------------------

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application that answers with the figures, under several workers with those of all of them.

        Whether who asks may know them is for the app around it to say.
        """
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.update()
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        body = encode(registry)
        start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]


install = Metrics


class _Counted:
    """What was counted of a session so far."""

    __slots__ = ("route", "stats")

    def __init__(self, route: str) -> None:
        self.route = route
        self.stats = SessionStats()


class _Look:
    """A collector without figures of its own: it has the others looked up before they are told."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Any]:
        """Names no figures; the registry would collect to learn them."""
        return []

    def collect(self) -> list[Any]:
        """Called by the registry at each scrape."""
        self._metrics.update()
        return []


def _are_topics(topics: Any) -> bool:
    if not isinstance(topics, Mapping):
        return isinstance(topics, Topics)
    return all(isinstance(name, str) and isinstance(each, Topics) for name, each in topics.items())


def _register(registry: CollectorRegistry, collectors: Iterable[Any]) -> None:
    """Registers all of ``collectors``, or none and raises ``UsageError``."""
    registered: list[Any] = []
    try:
        for collector in collectors:
            registry.register(collector)
            registered.append(collector)
    except ValueError as error:
        for collector in registered:
            registry.unregister(collector)
        raise UsageError(
            f"this registry has figures of geventws already ({error}): install them once for an app, and where a "
            "process makes several apps, as tests do, give each a registry of its own: "
            "metrics.install(app, registry=prometheus_client.CollectorRegistry())"
        ) from error


def _observed(app: Any) -> Any:
    """What of ``app`` tells of its sessions."""
    if callable(getattr(app, "observe", None)):
        return app
    extensions = getattr(app, "extensions", None)
    if extensions is None:
        raise TypeError(f"app must be a geventws.WebSockets or a Flask app that has one, not {type(app).__name__}")
    if "geventws" not in extensions:
        raise UsageError("this Flask app needs geventws.flask.WebSockets(app) before its metrics")
    return extensions["geventws"]


def _code(code: int) -> str:
    """The label for a close code. A client may choose among those that are not registered, so they share labels."""
    if code in CloseCode._value2member_map_:
        return str(int(code))
    return f"{code // 1000}xxx"
