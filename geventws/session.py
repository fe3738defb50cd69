"""Sessions: what a handler holds of a WebSocket. Default sessions give messages, raw sessions give frames.

Both are thin: what they share stands in `Connection`. session.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import urandom
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from gevent import Timeout, get_hub
from gevent.event import AsyncResult

from geventws.arguments import check_wait
from geventws.connection import OTHER_THREAD, Connection
from geventws.errors import ConnectionClosed, UsageError
from geventws.frames import CloseCode, CloseReason, Frame
from geventws.pinger import Pinger
from geventws.protocol.codec import FrameRules
from geventws.settings import Settings, check_option
from geventws.stats import SessionStats
from geventws.transport import monotonic

if TYPE_CHECKING:
    from geventws.protocol.extensions import ExtensionSession

__all__ = ["DefaultWebSocketSession", "WebSocketSession"]

BytesLike = bytes | bytearray | memoryview
#: Header fields that a caller gives; pairs where a name stands more than once.
HeaderFields = Mapping[str, str] | Sequence[tuple[str, str]]

T = TypeVar("T")
R = TypeVar("R", covariant=True)

CONNECTING, OPEN = 0, 1


class Call(Protocol):
    """The HTTP side of a session: what it was asked with, and how to answer it."""

    #: The subprotocol agreed on, or None.
    protocol: str | None

    @property
    def remote_address(self) -> Any:
        """The peer's socket address."""
        ...

    def accept(self, session: WebSocketSession, protocol: str | None, headers: HeaderFields) -> None:
        """Sends the 101 and opens the session's connection."""
        ...

    def ended(self, session: WebSocketSession) -> None:
        """Told when the session's connection is gone."""
        ...


class Receives(Protocol[R]):
    """What gives one thing after another, for type checkers: messages, of a raw session frames."""

    def receive(self, timeout: float | None = None) -> R:
        """The next."""
        ...


class Messages:
    """What a session yields: messages, of a raw one frames, until it ends.

    An object of its own, for a loop gets to it without a look-up; the session may be of a class that users make.
    """

    def __init__(self, session: Any) -> None:
        self.session = session

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        connection = self.session.connection
        if connection.state == CONNECTING:
            self.session.accept_if_needed()
        message = connection.receive_or_end()
        if message is None:
            raise StopIteration
        return message


class WebSocketSession:
    """A raw session: the handler gets every frame, and nothing is answered automatically.

    Illegal frames are refused. Any greenlet may send or close; one at a time may receive. The session opens at its
    first use.
    """

    def __init__(self, settings: Settings, call: Call, client: bool = False) -> None:
        self.call: Any = call
        self._start(Connection(settings, True, client))

    def _start(self, connection: Connection) -> None:
        self.connection = connection
        self.rules: FrameRules | None = None

    def opened(self) -> None:
        """Called by the call when the connection is open."""
        self.rules = FrameRules()

    def pong_came(self, payload: bytes) -> None:
        """Called by the connection for a pong that was waited for."""

    def ended(self) -> None:
        """Called by the connection when it is gone."""
        self.call.ended(self)

    def accept(self, protocol: str | None = None, headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> None:
        """Answers the handshake with 101 (RFC 6455 4.2.2), as the first use of the session does automatically.

        ``protocol`` is one that the client offered, by default the route's; ``headers``, a dict or pairs, are added to
        the response.
        Raises ``ValueError`` for a protocol that wasn't offered or a header that may not be sent, ``UsageError`` if the
        session is already open.
        """
        if self.connection.state != CONNECTING:
            raise UsageError("the session is accepted already: call accept() before its first use, and once")
        self.call.accept(self, protocol, headers)

    def accept_if_needed(self) -> None:
        """Opens the session where that has not happened yet."""
        if self.connection.state == CONNECTING:
            self.call.accept(self, None, ())

    @overload
    def receive(  # type: ignore[misc, overload-overlap]  # as `send`: by the kind of session
        self: DefaultWebSocketSession, timeout: float | None = None
    ) -> str | bytes: ...

    @overload
    def receive(self, timeout: float | None = None) -> Frame: ...

    def receive(self, timeout: float | None = None) -> Any:
        """The next message, str for text and bytes for binary; in a raw session the next frame, of any kind.

        Blocks until it comes, or for ``timeout`` seconds. Raises ``TimeoutError`` (nothing is lost),
        ``ConnectionClosed`` after the end, ``UsageError`` while another greenlet receives.
        """
        if self.connection.state == CONNECTING:
            self.accept_if_needed()
        if timeout is None:
            return self.connection.receive()
        if type(timeout) is not float or not timeout >= 0.0:
            check_wait("timeout", timeout)
        return self.connection.receive_within(timeout)

    def send(self, frame: Frame) -> None:
        """Sends one frame; blocks while more than ``write_limit`` bytes wait for the peer.

        Raises ``ValueError`` or ``TypeError`` for a frame that may not be sent at this point, and
        ``ConnectionClosed`` after the end.
        """
        connection = self.connection
        if connection.state == CONNECTING:
            self.accept_if_needed()
        if connection.state != OPEN or connection.close_sent:
            raise connection.over()
        rules = self.rules
        assert rules is not None
        rules.check(frame)
        if frame.opcode == 8:
            connection.sent_close_frame(bytes(frame.payload))
        elif frame.opcode > 8:
            connection.send(0x80 | frame.opcode, _view(frame.payload))
        else:
            connection.send_fragment(frame.opcode, _view(frame.payload), frame.fin)

    def flush(self) -> None:
        """Blocks until the operating system has taken everything that was sent; raises ``ConnectionClosed``."""
        self.accept_if_needed()
        _check_thread(self.connection)
        self.connection.wait_flushed()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends a Close frame, and blocks until the peer has answered it, at most ``timeout`` seconds.

        It takes longer only while the peer still takes what was sent before (RFC 6455 7.1.2). Does nothing on a closed
        session. Raises ``ValueError`` or ``TypeError`` for a code or a reason that may not be sent.
        """
        close_reason = CloseReason(code, reason)
        close_reason.to_payload()
        self.accept_if_needed()
        connection = self.connection
        _check_thread(connection)
        connection.start_close(close_reason)
        connection.wait_closed(None)

    def start_close(self, code: int = 1000, reason: str = "") -> None:
        """Closes like `close`, but never blocks.

        The session ends when the peer has answered, at most ``timeout`` seconds later.
        """
        close_reason = CloseReason(code, reason)
        close_reason.to_payload()
        self.accept_if_needed()
        self.connection.start_close(close_reason)

    def terminate(self) -> None:
        """Ends the connection at once, without a closing handshake."""
        self.accept_if_needed()
        self.connection.terminate()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Blocks until the connection is gone, or for ``timeout`` seconds; returns whether it is gone.

        Any greenlet may wait.
        """
        check_wait("timeout", timeout)
        self.accept_if_needed()
        _check_thread(self.connection)
        return self.connection.wait_closed(timeout)

    def __iter__(self: Receives[R]) -> Iterator[R]:
        return Messages(self)

    def __next__(self: Receives[R]) -> R:
        try:
            return self.receive()
        except ConnectionClosed:
            raise StopIteration from None

    @property
    def closed(self) -> bool:
        """Whether sending is over."""
        return self.connection.state > OPEN or self.connection.close_sent

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the session ends or ended; None while it is open.

        It is the reason of whoever closed first; 1006 means that the connection was lost.
        """
        connection = self.connection
        if connection.close_reason is None and not connection.input_over:
            return None
        return connection.ending()

    @property
    def protocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self.call.protocol  # type: ignore[no-any-return]

    @property
    def extensions(self) -> tuple[ExtensionSession, ...]:
        """The extensions agreed on."""
        return self.connection.output.extensions

    @property
    def remote_address(self) -> Any:
        """The peer's socket address: (host, port) on TCP."""
        return self.call.remote_address

    def stats(self) -> SessionStats:
        """The session's counters at this moment: age, bytes, messages, what waits, round trip. Never blocks."""
        connection = self.connection
        reader, transport = connection.reader, connection.transport
        if transport is None:
            return SessionStats()
        subscriptions = 0
        subscription = connection.subscriptions
        while subscription is not None:
            subscriptions += 1
            subscription = subscription.following
        return SessionStats(
            monotonic() - connection.opened_at,
            transport.received,
            transport.sent,
            reader.received,
            connection.output.messages,
            reader.waiting,
            reader.queued,
            len(connection.output),
            self.latency,
            subscriptions,
        )

    @property
    def latency(self) -> float | None:
        """Seconds between the last answered ping of a default session and its pong; None for a raw one."""
        return None

    @property
    def timeout(self) -> float:
        """Seconds that a missing pong, the closing handshake and the last writes may take."""
        return self.connection.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        check_option("timeout", value)
        self.connection.timeout = value
        self._timing_changed()

    @property
    def max_frame_size(self) -> int | None:
        """Bytes of the largest message (raw: frame) that is accepted; None for no limit."""
        return self.connection.max_frame_size

    @max_frame_size.setter
    def max_frame_size(self, value: int | None) -> None:
        check_option("max_frame_size", value)
        self.connection.set_max_frame_size(value)

    @property
    def masking(self) -> bool:
        """Whether outgoing frames are masked; RFC 6455 5.1 forbids it to servers and requires it of clients."""
        return self.connection.output.masking

    @masking.setter
    def masking(self, value: bool) -> None:
        check_option("masking", value)
        self.connection.set_masking(value)

    def _timing_changed(self) -> None:
        """Called when ``timeout`` has changed."""


class DefaultWebSocketSession(WebSocketSession):
    """A session of whole messages: pongs, fragments, UTF-8, keepalive and the closing handshake are taken care of.

    Any greenlet may send or close, and frames never mix; one at a time may receive. The session opens at its first use.
    """

    def __init__(self, settings: Settings, call: Call, client: bool = False) -> None:
        self.call: Any = call
        self._start(Connection(settings, False, client))
        self._ping_interval = settings.ping_interval
        self._pinger: Pinger | None = None
        self._pings: dict[bytes, tuple[float, AsyncResult[float | None]]] | None = None
        self._latency: float | None = None

    def opened(self) -> None:
        """Called by the call when the connection is open."""
        self._timing_changed()

    def send(  # type: ignore[override]  # the two kinds of session send different things, as they receive them
        self, message: str | BytesLike | Iterable[str | BytesLike]
    ) -> None:
        """Sends a message: str as text, bytes-like as binary, an iterable of either as one message in fragments.

        Blocks while more than ``write_limit`` bytes wait for the peer, and while another greenlet sends fragments.
        Each fragment is sent as soon as the iterable yields it. Raises ``ConnectionClosed`` after the end,
        ``TypeError`` for anything that isn't a message.
        """
        connection = self.connection
        if connection.state == CONNECTING:
            self.accept_if_needed()
        if isinstance(message, str):
            connection.send_message(1, message)
        elif isinstance(message, bytes):
            connection.send_message(2, message)
        elif isinstance(message, (bytearray, memoryview)) or hasattr(message, "__buffer__") or _is_buffer(message):
            connection.send_message(2, _view(message))
        elif isinstance(message, Iterable) and not isinstance(message, Mapping):
            if isinstance(message, Frame):
                raise TypeError("a default session sends messages, not a Frame: send the str or bytes themselves")
            self._send_fragments(message)
        else:
            serialized = ": see send_serialized" if isinstance(message, Mapping) else ""
            raise TypeError(
                f"a message must be str, bytes-like or an iterable of these, not {type(message).__name__}{serialized}"
            )

    def _send_fragments(self, fragments: Iterable[str | BytesLike]) -> None:
        connection = self.connection
        connection.begin_fragments()
        try:
            opcode = 0
            for fragment in fragments:
                text = isinstance(fragment, str)
                if not text and not _is_buffer(fragment):
                    raise TypeError(f"a fragment must be str or bytes-like, not {type(fragment).__name__}")
                kind = 1 if text else 2
                if opcode and kind != opcode:
                    raise TypeError("the fragments of a message must be all str or all bytes-like")
                data: str | memoryview = fragment if isinstance(fragment, str) else _view(fragment)
                connection.send_fragment(0 if opcode else kind, data, False)
                opcode = kind
            if opcode:
                connection.send_fragment(0, b"", True)
        except BaseException:
            # A message that has begun can't be taken back, and no other may follow it.
            if opcode:
                connection.start_close(CloseReason(CloseCode.INTERNAL_ERROR))
            raise
        finally:
            connection.end_fragments()

    def ping(self, timeout: float | None = None) -> float:
        """Sends a ping, blocks until its pong arrives, and returns the seconds between.

        Raises ``TimeoutError`` after ``timeout`` seconds, by default the session's, and ``ConnectionClosed`` if the
        session ends first.
        """
        check_wait("timeout", timeout)
        self.accept_if_needed()
        connection = self.connection
        _check_thread(connection)
        if self.closed:
            raise connection.over()
        payload = urandom(8)
        result: AsyncResult[float | None] = AsyncResult()
        if self._pings is None:
            self._pings = {}
        self._pings[payload] = (monotonic(), result)
        connection.expect_pong()
        limit = connection.timeout if timeout is None else timeout
        try:
            connection.ping(payload)
            with Timeout(limit, TimeoutError(f"no pong came within {limit:g} s")):
                seconds = result.get()
        finally:
            if self._pings is not None:
                self._pings.pop(payload, None)
        if seconds is None:
            raise ConnectionClosed(connection.ending())
        return float(seconds)

    @property
    def latency(self) -> float | None:
        """Seconds between the last answered ping, the keepalive's or `ping`'s, and its pong; None before the first."""
        return self._latency

    def pong_came(self, payload: bytes) -> None:
        """Called by the connection, in the hub, for a pong that was waited for."""
        pings = self._pings
        if pings is not None and payload in pings:
            # A pong answers the pings before it too (RFC 6455 5.5.3).
            for sent in list(pings):
                sent_at, result = pings.pop(sent)
                self._latency = monotonic() - sent_at
                result.set(self._latency)
                if sent == payload:
                    break
        keepalive = self._pinger
        if keepalive is not None and keepalive.waiting:
            keepalive.pong(Frame.pong(payload))
            if not keepalive.waiting:
                self._latency = keepalive.latency
        if pings or (keepalive is not None and keepalive.waiting):
            self.connection.expect_pong()

    def ended(self) -> None:
        """Called by the connection when it is gone."""
        self.call.ended(self)
        if self._pinger is not None:
            self._pinger.stop()
            self._pinger = None
        if self._pings is not None:
            for _, result in self._pings.values():
                result.set(None)
            self._pings = None

    def send_serialized(self, value: Any) -> None:
        """Sends ``value`` as the message that the content converter makes of it; blocks and raises as `send`.

        Raises ``UsageError`` without a converter.
        """
        self.send(self._converter().serialize(value))

    @overload
    def receive_deserialized(self, type: type[T], timeout: float | None = None) -> T: ...

    @overload
    def receive_deserialized(self, type: Any = None, timeout: float | None = None) -> Any: ...

    def receive_deserialized(self, type: Any = None, timeout: float | None = None) -> Any:
        """The next message as the object that the content converter makes of it.

        ``type`` says which is expected, where the converter can use that; to type checkers, what comes is of it.

        Blocks and raises as `receive`; ``ProtocolError`` (1007) for a message that the converter can't read, which
        closes the session if it leaves the handler.
        """
        return self._converter().deserialize(self.receive(timeout), type)

    def _converter(self) -> Any:
        converter = self.connection.settings.content_converter
        if converter is None:
            raise UsageError("no content_converter is set: WebSockets(content_converter=geventws.JSONConverter())")
        return converter

    @property
    def ping_interval(self) -> float | None:
        """Seconds between keepalive pings; None for no pings."""
        return self._ping_interval

    @ping_interval.setter
    def ping_interval(self, value: float | None) -> None:
        check_option("ping_interval", value)
        self._ping_interval = value
        self._timing_changed()

    def _timing_changed(self) -> None:
        if self._pinger is not None:
            self._pinger.stop()
            self._pinger = None
        if self._ping_interval is not None and self.connection.state == OPEN:
            self._pinger = Pinger(self.connection, self._ping_interval, self.connection.timeout, True)


def _check_thread(connection: Connection) -> None:
    """Raises ``UsageError`` in another thread than that of the session, where a wait for it would never end."""
    if connection.hub is not get_hub():
        raise UsageError(OTHER_THREAD)


def _is_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _view(data: Any) -> memoryview:
    """``data`` byte by byte: items of other sizes would make lengths lie."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise TypeError("a message must be contiguous bytes, not a memoryview with steps: send bytes(view)")
    return view.cast("B")
