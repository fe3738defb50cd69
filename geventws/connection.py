"""One WebSocket connection on its socket: read in the hub, queued, written through one buffer.

States, and what moves them:

    CONNECTING --open()--> OPEN --a Close frame sent or received, a violation, the end of input--> CLOSING
    any --the socket closed, by both sides' Close frames, a deadline, an error or terminate()--> CLOSED

Reading: the hub's callback receives into a buffer that all connections of the hub share, parses it, and switches
straight to the greenlet that waits in `receive`. What that greenlet sends meanwhile gathers in `output` and leaves in
one system call when it waits again, after 64 KiB, or after a millisecond. Code that runs in the hub calls nothing
that blocks, and lets no exception out: an exception stops a libev watcher silently, and the connection with it.

What bytes mean is not told here: the Reader makes messages of them, and the Output makes them of messages. Whose turn
it is while a message goes out in fragments stands in fragmenting.py, how long a peer may take in deadlines.py.
connection.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit, Timeout, get_hub, sleep
from gevent.event import Event
from greenlet import error as GreenletError

from geventws.arrivals import Arrivals
from geventws.deadlines import MessageDeadline, UptakeDeadline
from geventws.errors import ConnectionClosed, ProtocolError, UsageError
from geventws.fragmenting import Fragmenting
from geventws.frames import CloseCode, CloseReason, Frame
from geventws.protocol.codec import Reader
from geventws.protocol.output import Output
from geventws.protocol.shared import SharedMessage
from geventws.schedule import Schedule
from geventws.settings import Settings
from geventws.spare_memory import SpareMemory
from geventws.switching import current, switch
from geventws.transport import Transport, fork_count, monotonic

if TYPE_CHECKING:
    from geventws.protocol.extensions import ExtensionSession

__all__ = ["Connection", "State"]

#: Bytes that one system call may receive; the buffer is shared by all connections of a hub.
INPUT_SIZE = 256 * 1024
#: Bytes that one system call may receive of a large message, straight into it.
LARGE_SIZE = 1024 * 1024
#: System calls after which a connection with ever more input (under TLS) lets the others have their turn.
READS_AT_A_TIME = 16
#: Seconds that the frames of one receipt may be worked on before the other connections have their turn.
SLICE_SECONDS = 0.005
#: Replies to a batch of messages gather up to this size, and for one turn.
GATHERED_SIZE = 64 * 1024
#: Seconds that a handler with ever more messages in its queue may go on before others have their turn; the clock is
#: looked at once for so many messages, a power of two.
TURN_SECONDS = 0.001
MESSAGES_BETWEEN_LOOKS = 16
#: How often a handler may ask for more behind the end before it waits for these seconds each time.
ASKS_BEHIND_END = 100
ASK_SECONDS = 0.01
#: Reading pauses while this much waits for a peer that only asks and never reads: pongs have no other bound.
OUTPUT_CAP = 1024 * 1024

#: What whoever has to wait for a session in another thread than its own is told.
OTHER_THREAD = (
    "a session must be used in the thread that runs it: another one has it used there, by "
    "hub.loop.run_callback_threadsafe(gevent.spawn, session.send, message) with that thread's gevent.get_hub()"
)


class State(IntEnum):
    """Where a connection stands; the head of this file tells what moves it."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


CONNECTING, OPEN, CLOSING, CLOSED = 0, 1, 2, 3

#: What the hub calls a connection for.
READING, WRITING, BEGINNING, DELIVERING = 0, 1, 2, 3

#: What `Connection.offer` says: not open; put into the output; not, as too much waits there already.
CLOSES, TAKEN, LAGS = 0, 1, 2


class Connection:
    """A WebSocket connection of either role, with what default and raw sessions share.

    ``raw`` says that the session gets frames and answers them itself. A session may change ``timeout`` at any time,
    and the rest by `set_max_frame_size` and `set_masking`.
    """

    def __init__(self, settings: Settings, raw: bool, client: bool) -> None:
        self.settings = settings
        self.raw = raw
        self.client = client
        self.timeout: float = settings.timeout
        self.max_frame_size: int | None = settings.max_frame_size
        self.state = CONNECTING
        #: The session, which is told of awaited pongs (in the hub) and of the end.
        self.session: Any = None
        #: The first of its subscriptions to topics, which is told of the end.
        self.subscriptions: Any = None
        self.transport: Transport = None  # type: ignore[assignment]
        self.hub: Any = None
        self.schedule: Schedule = None  # type: ignore[assignment]
        #: The process's `fork_count` when it was opened: in a fork the connection is left alone.
        self.forks = 0
        #: When it was opened, on the monotonic clock.
        self.opened_at = 0.0
        #: Whether anything moved since a pinger looked last.
        self.alive = True

        # Reading.
        self.reader: Reader = None  # type: ignore[assignment]
        #: What the hub's connections receive into, and whose turn it is there.
        self.shared: bytearray = None  # type: ignore[assignment]
        self.arrivals: Arrivals = None  # type: ignore[assignment]
        self.read_watcher: Any = None
        #: Whether reading pauses, what was received and not read until then, and the timer that ends a short pause.
        self.paused = False
        self.held = b""
        self.slice_timer: Any = None
        self.message_timeout = settings.message_timeout or 0.0
        self.message_deadline: MessageDeadline | None = None
        #: Whether no more is put into the queue, and whether all input is dropped.
        self.input_over = False
        self.discarding = False
        #: The greenlet that waits in `receive`, and whether it only lets others have their turn.
        self.receiver: Any = None
        self.resting = False
        #: Whether its replies gather, and when that ends.
        self.gathering = False
        self.turn_ends = 0.0
        #: Whether the hub runs a callback of this connection, so that `receiver` may be switched to.
        self.in_hub = False

        # Writing.
        self.output = Output(raw, settings.masking or client)
        self.write_limit = settings.write_limit or 0
        self.write_watcher: Any = None
        self.drained: Event | None = None
        self.stall_deadline: UptakeDeadline | None = None
        self.fragmenting: Fragmenting | None = None
        #: Whether the hub is to flush what was offered when it has its turn.
        self.awaits_flush = False

        # Closing.
        self.close_sent = False
        self.close_reason: CloseReason | None = None
        #: Whether the WebSocket ends because of what the peer did wrong, which `close_reason` then tells.
        self.failed = False
        #: Whether the peer's FIN is here.
        self.ended = False
        #: How often a greenlet was told that nothing more comes, or can be sent.
        self.ends_told = 0
        self.close_deadline: UptakeDeadline | None = None
        self.gone: Event | None = None

    # -- Opening
    # -----------------------------------------------------------------------------------------------------------------

    def open(
        self,
        transport: Transport,
        head: bytes,
        read_ahead: bytearray,
        extensions: Sequence[ExtensionSession] = (),
        rsv: int = 0,
    ) -> None:
        """Takes over a socket: sends ``head``, and reads ``read_ahead`` before what the socket brings."""
        settings = self.settings
        self.transport = transport
        self.output.extensions = tuple(extensions)
        self.hub = get_hub()
        self.forks = fork_count()
        common = self.hub.__dict__.get("geventws_common")
        if common is None:
            common = self.hub.geventws_common = (bytearray(INPUT_SIZE), Arrivals(self.hub), Schedule.of_hub(self.hub))
        self.shared, self.arrivals, self.schedule = common
        self.reader = Reader(
            self.output,
            self.client,
            self.raw,
            self.max_frame_size or 0,
            settings.max_fragments or 0,
            settings.read_limit or 0,
            extensions,
            rsv,
        )
        self.reader.masking = self.output.masking
        self.opened_at = monotonic()
        self.state = OPEN
        if head:
            self.output.append(head)
        self.flush()
        if self.state == CLOSED:
            return
        self.read_watcher = self.hub.loop.io(transport.descriptor, 1)
        if read_ahead:
            # Read in the hub like all else, so that the handler has its turn before a Close frame in it is answered.
            self.held = bytes(read_ahead)
            self.paused = True
            self.hub.loop.run_callback(self._begin)
        else:
            self._resume()

    def set_max_frame_size(self, size: int | None) -> None:
        """Sets the limit for what begins from now on."""
        self.max_frame_size = size
        if self.reader is not None:
            self.reader.limit = size or 0

    def set_masking(self, masking: bool) -> None:
        """Sets whether outgoing frames are masked from now on."""
        self.output.masking = masking
        if self.reader is not None:
            self.reader.masking = masking

    # -- Reading
    # -----------------------------------------------------------------------------------------------------------------

    def receive(self) -> str | bytes | Frame:
        """The oldest message (raw: frame) of the queue; blocks until there is one.

        Raises ``ConnectionClosed`` when no more can come, ``UsageError`` when another greenlet waits here already.
        """
        message = self.receive_or_end()
        if message is None:
            raise ConnectionClosed(self.ending())
        return message

    def over(self) -> ConnectionClosed:
        """The error of whoever uses what has ended; one that was told before lets the others have their turn."""
        self._tell_again(0.0)
        return ConnectionClosed(self.ending())

    def _tell_again(self, seconds: float) -> None:
        """Keeps a greenlet that will not hear of the end from keeping all others waiting."""
        if self.ends_told and current() is not self.hub:
            sleep(seconds)
        self.ends_told += 1

    def receive_or_end(self) -> str | bytes | Frame | None:
        """As `receive`, but gives None when no more can come."""
        reader = self.reader
        if reader.waiting > 1 and reader.head & MESSAGES_BETWEEN_LOOKS - 1 == MESSAGES_BETWEEN_LOOKS - 1:
            self._look_at_clock()
        while not reader.waiting:
            if self.input_over:
                if self.ended and self.state == OPEN:
                    # Whoever was told of the end sends nothing more.
                    self.state = CLOSING
                self._tell_again(ASK_SECONDS if self.ends_told > ASKS_BEHIND_END else 0.0)
                return None
            if self.receiver is not None:
                raise UsageError("another greenlet waits in receive() already: one session has one receiver at a time")
            if not self.gathering:
                self.flush()
            self._wait_for_hub()
        message = reader.pop()
        if self.paused and reader.queued <= reader.read_limit // 2:
            self._resume()
        return message

    def _wait_for_hub(self) -> None:
        """Lets the hub go on, until it switches back to this greenlet as `receiver`."""
        receiver = current()
        if receiver is self.hub:
            # It raises: the hub can't wait for itself.
            self.hub.switch_out()
        self.receiver = receiver
        try:
            switch(self.hub)
        except GreenletError as error:
            # The hub is another thread's: greenlet looks at that anyway.
            raise UsageError(OTHER_THREAD) from error
        finally:
            self.receiver = None

    def _look_at_clock(self) -> None:
        """Ends the turn of a greenlet that works off many messages, when it is over."""
        if monotonic() < self.turn_ends or self.receiver is not None:
            return
        self.gathering = False
        self.flush()
        self.resting = True
        # Not by run_callback: the hub looks at its sockets only after fifty of these.
        timer = self.hub.loop.timer(0.0)
        timer.start(self._rested)
        try:
            self._wait_for_hub()
        finally:
            timer.stop()
            timer.close()
            self.resting = False

    def receive_within(self, timeout: float) -> str | bytes | Frame:
        """As `receive`; raises ``TimeoutError`` after ``timeout`` seconds, and loses nothing."""
        if self.reader.waiting or self.input_over:
            return self.receive()
        with Timeout(timeout, TimeoutError(f"no message came within {timeout} s")):
            return self.receive()

    def _readable(self) -> None:
        """The read watcher's callback."""
        if not self.arrivals.wait(self):
            self._run_for_hub(READING)

    def read_in_turn(self) -> None:
        """Called in the hub when it is this connection's turn."""
        self._run_for_hub(READING)

    def _writable(self) -> None:
        """The write watcher's callback."""
        self._run_for_hub(WRITING)

    def _begin(self) -> None:
        """The hub's callback that reads what came with the handshake, or was left of a long batch."""
        self._run_for_hub(BEGINNING)

    def _rested(self) -> None:
        """The timer's callback that gives a greenlet its next turn."""
        self._run_for_hub(DELIVERING)

    def _run_for_hub(self, task: int) -> None:
        """Runs one of the hub's callbacks, and lets nothing out that would stop its watcher."""
        before = self.in_hub
        self.in_hub = True
        try:
            if self.state == CLOSED and task != DELIVERING:
                pass
            elif self.transport.inherited():
                self._abandon()
            elif task == WRITING:
                self._write()
            elif task == BEGINNING:
                if self.paused:
                    self._resume()
            elif task == DELIVERING:
                self.resting = False
                self._deliver()
            elif not self.paused:
                self._read()
        except (SystemExit, KeyboardInterrupt):
            # A signal's; it may have come between a system call and what is noted of it.
            self._finish()
            raise
        except BaseException:
            self.broke("a fault in geventws ended a connection")
        finally:
            self.in_hub = before

    def _read(self) -> None:
        transport = self.transport
        for _ in range(READS_AT_A_TIME):
            rest = None if transport.encrypted or self.discarding else self.reader.rest()
            try:
                if rest is None:
                    count = transport.receive(self.shared)
                else:
                    count = transport.receive_into(rest, min(self.reader.remaining, LARGE_SIZE))
            except OSError:
                self._finish()
                return
            if count < 0:
                if transport.receiving_waits_to_write:
                    # Readable all the while, the socket would call for nothing.
                    self.read_watcher.stop()
                    self._start_writing()
                break
            self.alive = True
            if count == 0:
                self._end_of_input()
                return
            if rest is not None:
                self._take_rest(count)
            elif not self.discarding:
                self._feed(self.shared, 0, count)
            if self.state == CLOSED or self.paused or not transport.keeps_input:
                return
        else:
            self.hub.loop.run_callback(self.read_in_turn)
        if transport.sending_waits_to_read:
            self.flush()

    def _take_rest(self, count: int) -> None:
        """Takes what was received straight into a large message."""
        large = self.reader.remaining == count
        try:
            self.reader.took(count)
        except ProtocolError as error:
            self._deliver()
            self.fail(error)
            return
        if large:
            SpareMemory.of_hub(self.hub).used()
        self._feed(self.shared, 0, 0)

    def _feed(self, data: bytearray, position: int, end: int) -> None:
        """Parses ``data[position:end]`` and hands on what it brings."""
        reader = self.reader
        slice_ends = 0.0
        late = False
        while True:
            try:
                position = reader.feed(data, position, end)
            except ProtocolError as error:
                self._deliver()
                self.fail(error)
                return
            if reader.pongs:
                self._pong()
            self._deliver()
            if self.state == CLOSED or self.discarding:
                return
            if reader.close_reason is not None:
                self._peer_closed()
                return
            if position == end or (reader.read_limit and reader.queued >= reader.read_limit):
                break
            now = monotonic()
            if not slice_ends:
                slice_ends = now + SLICE_SECONDS
            elif now > slice_ends:
                late = True
                break
        if self.message_timeout and reader.within_message():
            self._note_message()
        full = reader.read_limit and reader.queued >= reader.read_limit
        if reader.answered:
            reader.answered = False
            full = full or self.output.length() > OUTPUT_CAP
        if full or late:
            self.held = bytes(data[position:end])
            self._pause()
            if not full:
                self._resume_soon()

    def _deliver(self) -> None:
        """Lets the greenlet that waits in `receive` work off the queue, and sends its replies together."""
        waited_for = self.receiver is not None and not self.resting
        if waited_for and self.in_hub and (self.reader.waiting or self.input_over):
            self.gathering = True
            self.turn_ends = monotonic() + TURN_SECONDS
            switch(self.receiver)
            self.gathering = False
        if self.output.length():
            self.flush()

    def expect_pong(self) -> None:
        """Lets the next pong's payload reach the session; pongs that nobody waits for cost nothing."""
        if self.reader.pongs is None:
            self.reader.pongs = []

    def _pong(self) -> None:
        pongs, self.reader.pongs = self.reader.pongs, None
        if self.session is not None and pongs is not None:
            for payload in pongs:
                self.session.pong_came(payload)

    def _pause(self) -> None:
        """Stops reading, so that TCP holds the peer."""
        self.paused = True
        if self.message_deadline is not None:
            self.message_deadline.pause()
        if self.read_watcher is not None:
            self.read_watcher.stop()
            self._watch_stalled()

    def _resume(self) -> None:
        """Reads on: first what was held back, then the socket."""
        self.paused = False
        if self.message_deadline is not None:
            self.message_deadline.resume()
        if self.held and not self.discarding:
            held, self.held = bytearray(self.held), b""
            self._feed(held, 0, len(held))
        if not self.paused and self.read_watcher is not None:
            self.read_watcher.start(self._readable)
            if self.transport.keeps_input:
                self.hub.loop.run_callback(self.read_in_turn)

    def _resume_soon(self) -> None:
        """Reads on when the others have had their turn; a handler that takes messages does so before."""
        # Not by run_callback: see `_look_at_clock`.
        if self.slice_timer is None:
            self.slice_timer = self.hub.loop.timer(0.0)
        self.slice_timer.start(self._begin)

    def _note_message(self) -> None:
        if self.message_deadline is None:
            self.message_deadline = MessageDeadline(
                self.reader, self.schedule, self.message_timeout, self._message_missed
            )
        self.message_deadline.note()

    def _message_missed(self) -> None:
        """Ends a message that trickles in for too long."""
        if self.state == OPEN:
            late = f"a message took over {self.message_timeout:g} s to arrive"
            self.fail(ProtocolError(CloseCode.POLICY_VIOLATION, late))

    # -- Writing
    # -----------------------------------------------------------------------------------------------------------------

    def send(self, first: int, payload: str | bytes | bytearray | memoryview) -> None:
        """Sends one frame; ``first`` is its first byte, ``payload`` text or a view of single bytes.

        Blocks while more than ``write_limit`` bytes wait for the peer; a greenlet that is killed there abandons its
        wait, not the frame. Raises ``ConnectionClosed``.
        """
        self._wait_to_send()
        self.output.put(first, payload)
        self._flush_or_gather()

    def send_message(self, opcode: int, payload: str | bytes | bytearray | memoryview) -> None:
        """Sends one whole message.

        Blocks and raises as `send`, and blocks while another greenlet sends a fragmented message.
        """
        self._wait_to_send()
        # Who waits for room may find that another greenlet's turn has begun meanwhile, and the other way round.
        while self.fragmenting is not None:
            self.fragmenting.wait()
            self._wait_to_send()
        self.output.put_data(opcode, payload, True)
        self._flush_or_gather()

    def send_fragment(self, opcode: int, payload: str | bytes | bytearray | memoryview, fin: bool) -> None:
        """Sends one data frame through the negotiated extensions; blocks and raises as `send`."""
        self._wait_to_send()
        self.output.put_data(opcode, payload, fin)
        self._flush_or_gather()

    def begin_fragments(self) -> None:
        """Keeps other messages out until `end_fragments` (RFC 6455 5.4); blocks while another greenlet has the turn."""
        while self.fragmenting is not None:
            self.fragmenting.wait()
        self.fragmenting = Fragmenting()

    def end_fragments(self) -> None:
        """Lets other messages go out again."""
        fragmenting, self.fragmenting = self.fragmenting, None
        assert fragmenting is not None
        try:
            for message in fragmenting.postponed:
                if self.state == OPEN and not self.close_sent:
                    self.output.put_shared(message)
            if fragmenting.postponed:
                self.flush()
        finally:
            # Whatever an extension raises: those who wait for their turn get it.
            fragmenting.end()

    def ping(self, payload: bytes) -> None:
        """Sends a ping without ever blocking, for the schedule's greenlet serves all sessions."""
        if self.state == OPEN and not self.close_sent:
            self.output.append_frame(0x89, payload, self.output.masking)
            self.flush()

    def _wait_to_send(self) -> None:
        """Blocks until there is room in the output; raises ``ConnectionClosed`` where nothing may be sent any more."""
        if self.write_limit and self.output.length() > self.write_limit and self.state == OPEN:
            self._wait_drained()
        # Only now: another greenlet may have closed in the meantime, and no frame follows a Close.
        if self.state != OPEN or self.close_sent:
            raise self.over()

    def _flush_or_gather(self) -> None:
        """Flushes where nothing more is to gather; blocks while too much waits for the peer."""
        if not (self.gathering and self.output.length() < GATHERED_SIZE and monotonic() < self.turn_ends):
            self.flush()
            if self.state == CLOSED:
                raise ConnectionClosed(self.ending())
        if self.write_limit and self.output.length() > self.write_limit:
            self._wait_drained()

    def offer(self, message: SharedMessage, frame: bytes | None, forks: int) -> int:
        """Puts a message for many sessions into the output; never blocks or flushes.

        ``frame`` is its plain frame, None where each session has to make one; ``forks`` is `fork_count`. Gives TAKEN,
        or CLOSES or LAGS for a message that is left out. Raises what an extension raises.
        """
        if self.state != OPEN or self.close_sent or self.forks != forks:
            return CLOSES
        output = self.output
        if self.write_limit and output.length() > self.write_limit:
            return LAGS
        if self.fragmenting is not None:
            return TAKEN if self.fragmenting.postpone(message, self.write_limit) else LAGS
        if frame is None or output.extensions or output.masking:
            output.put_shared(message)
        else:
            output.append_shared(frame)
            output.messages += 1
        return TAKEN

    def flush_offered(self, forks: int) -> int:
        """Flushes what was offered to this connection; raises ``OSError`` for one that is lost."""
        self.awaits_flush = False
        if self.write_watcher is not None or self.state == CLOSED:
            return 0
        transport = self.transport
        if self.forks != forks:
            self._abandon()
        elif not transport.send(self.output):
            self._wait_to_write()
        elif self.state == CLOSING:
            self._flushed()
        return 0

    def flush(self) -> None:
        """Hands to the socket what waits; what it does not take, a watcher sends in the hub."""
        if self.write_watcher is not None or not self.output.length():
            return
        if self.transport.inherited():
            self._abandon()
            return
        try:
            done = self.transport.send(self.output)
        except OSError:
            self._finish()
            return
        if not done:
            self._wait_to_write()
        elif self.state == CLOSING:
            self._flushed()

    def wait_flushed(self) -> None:
        """Blocks until all is with the socket; raises ``ConnectionClosed``."""
        self.flush()
        while self.output.length() and self.state != CLOSED:
            self._wait_event()
        if self.state == CLOSED:
            raise self.over()

    def _wait_drained(self) -> None:
        while self.output.length() > self.write_limit and self.state != CLOSED:
            if self.write_watcher is None:
                self.flush()
            else:
                self._wait_event()
        if self.state == CLOSED:
            raise ConnectionClosed(self.ending())

    def _wait_event(self) -> None:
        if self.drained is None:
            self.drained = Event()
        self.drained.wait()

    def _wait_to_write(self) -> None:
        """Goes on when the socket takes more; under TLS that may take input first."""
        if not self.transport.sending_waits_to_read:
            self._start_writing()
        elif self.paused:
            # Not at once: this may be any greenlet, and only the hub may go on in the one that receives.
            self._resume_soon()

    def _start_writing(self) -> None:
        if self.write_watcher is None and self.state != CLOSED:
            self.write_watcher = self.hub.loop.io(self.transport.descriptor, 2)
            self.write_watcher.start(self._writable)
            self._watch_stalled()

    def _stop_writing(self) -> None:
        watcher, self.write_watcher = self.write_watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _write(self) -> None:
        output = self.output
        before = output.length()
        try:
            done = self.transport.send(output)
        except OSError:
            self._finish()
            return
        # A peer that takes a long message in slowly is alive, though it says nothing.
        if output.length() < before:
            self.alive = True
        if done or self.transport.sending_waits_to_read:
            self._stop_writing()
        if self.transport.receiving_waits_to_write:
            self.transport.receiving_waits_to_write = False
            if not self.paused:
                self._resume()
        if self.drained is not None and output.length() <= self.write_limit // 2:
            self.drained.set()
            self.drained = None
        if self.paused and self.reader.queued <= self.reader.read_limit // 2 and output.length() < OUTPUT_CAP:
            self._resume()
        if done and self.state == CLOSING:
            self._flushed()

    def _watch_stalled(self) -> None:
        """Looks again in ``timeout`` seconds: no watcher tells of a peer that takes nothing, or is lost meanwhile."""
        if self.stall_deadline is None:
            self.stall_deadline = UptakeDeadline(self.transport, self.schedule, self.timeout, self._stall_due)

    def _stall_due(self) -> None:
        deadline, self.stall_deadline = self.stall_deadline, None
        writing = self.write_watcher is not None
        if self.state == CLOSED:
            return
        if self.paused and self.transport.error():
            self._finish()
        elif writing and deadline is not None and not deadline.met():
            if self.close_reason is None:
                late = f"the peer took none of the bytes that wait for it for {self.timeout:g} s"
                self.close_reason = CloseReason(CloseCode.ABNORMAL, late)
                self.failed = True
            self._finish()
        elif writing or self.paused:
            self._watch_stalled()

    # -- Closing
    # -----------------------------------------------------------------------------------------------------------------

    def ending(self) -> CloseReason:
        """Why the WebSocket ends or ended; 1006 where nobody said."""
        if self.close_reason is not None:
            return self.close_reason
        reader = self.reader
        if reader is not None and reader.close_reason is not None:
            return reader.close_reason
        return CloseReason(CloseCode.ABNORMAL)

    def start_close(self, reason: CloseReason) -> None:
        """Begins the closing handshake (RFC 6455 7.1.2) without waiting for it; does nothing on one that has begun.

        Otherwise raises ``ValueError`` or ``TypeError`` for a reason that may not be sent.
        """
        if self.state == OPEN and not self.close_sent and not self.ended:
            payload = reason.to_payload()
            self.close_reason = reason
            self._send_close(payload)
            self.reader.stop()
            self._stop_input()
            self._flush_closing()

    def fail(self, error: ProtocolError) -> None:
        """Fails the WebSocket (RFC 6455 7.1.7): the one place where an error becomes a close."""
        if self.state == CLOSED or self.ended:
            return
        if not self.close_sent:
            self.close_reason = CloseReason.truncated(error.code, error.message)
            self.failed = error.code != CloseCode.INTERNAL_ERROR
            self._send_close(self.close_reason.to_payload())
        self.discarding = True
        self.reader.open = False
        self._stop_input()
        self._flush_closing()

    def sent_close_frame(self, payload: bytes) -> None:
        """Sends a raw session's own Close frame."""
        if self.state != OPEN or self.close_sent:
            raise self.over()
        if self.reader.close_reason is None:
            self.close_reason = CloseReason.from_payload(payload)
        self._send_close(payload)
        self._flush_closing()

    def end_output(self) -> None:
        """Ends without a Close frame, and without waiting: what is in the output goes out, then FIN.

        Input is read on and dropped until the peer's FIN, at most ``timeout`` seconds: closing the socket on top of
        unread input would reset the connection, and take what was just sent along.
        """
        if self.state == OPEN or self.state == CLOSING:
            self.state = CLOSING
            self.close_sent = True
            self.discarding = True
            self._leave_topics()
            self._stop_input()
            self._flush_closing()

    def terminate(self) -> None:
        """Closes the socket at once."""
        self._finish()

    def wait_closed(self, timeout: float | None) -> bool:
        """Blocks until the socket is closed, at most ``timeout`` seconds; tells whether it is."""
        if self.state != CLOSED:
            if self.gone is None:
                self.gone = Event()
            self.gone.wait(timeout)
        return self.state == CLOSED

    def _send_close(self, payload: bytes) -> None:
        self.output.append_frame(0x88, payload, self.output.masking)
        self.close_sent = True
        self.state = CLOSING
        self._leave_topics()

    def _leave_topics(self) -> None:
        """Ends the subscriptions: nothing more can be sent."""
        if self.subscriptions is not None:
            self.subscriptions.connection_ended()

    def _limit_closing(self) -> None:
        if self.close_deadline is None:
            self.close_deadline = UptakeDeadline(self.transport, self.schedule, self.timeout, self._close_due)

    def _close_due(self) -> None:
        """Ends a close that takes too long, but for one whose last messages are on their way over a slow link."""
        deadline, self.close_deadline = self.close_deadline, None
        if self.output.length() and deadline is not None and deadline.met():
            self._limit_closing()
        else:
            self._finish()

    def _stop_input(self) -> None:
        """Ends `receive`, and reads on for the peer's Close frame alone."""
        self.input_over = True
        self._wake_soon()
        if self.paused and self.state != CLOSED:
            self._resume()

    def _peer_closed(self) -> None:
        """The peer's Close frame is here, and what came before it has been handed on (RFC 6455 5.5.1)."""
        self.discarding = True
        self.input_over = True
        self._wake_soon()
        if self.raw and not self.close_sent:
            return
        if not self.close_sent:
            reason = self.close_reason = self.reader.close_reason
            assert reason is not None
            self._send_close(b"" if reason.code == CloseCode.NO_STATUS else reason.code.to_bytes(2, "big"))
        self._flush_closing()

    def _end_of_input(self) -> None:
        """The peer sent FIN: over, once what is queued and buffered is worked off."""
        self.ended = True
        self.input_over = True
        self.discarding = True
        self.read_watcher.stop()
        if self.close_reason is None:
            self.close_reason = self.ending()
        # A receiver that is waiting may still answer what it got; nobody sends after that.
        self._deliver()
        if self.state != CLOSED:
            self.state = CLOSING
            self._flush_closing()

    def _flush_closing(self) -> None:
        """Sends what is left, and limits the time for what is to wait for then; most often there is nothing."""
        if self.output.length():
            self.flush()
        elif self.state == CLOSING:
            self._flushed()
        if self.state == CLOSING:
            self._limit_closing()

    def _flushed(self) -> None:
        """Closing, and the last byte is with the socket: what is left to wait for?"""
        if self.ended:
            self._finish()
        elif self.reader.close_reason is not None and not self.client:
            # The server closes first (RFC 6455 7.1.1).
            self._finish()
        elif self.reader.close_reason is not None:
            # And its client waits for that, so that what TCP keeps of the connection for a while is the server's.
            return
        elif self.discarding and not self.transport.inherited():
            # After a violation the peer may still be sending: FIN, and read on to its own, for a reset would take our
            # Close frame along.
            self.transport.shut_down()

    def broke(self, told: str) -> None:
        """Ends this connection with 1011 for the current exception, which is logged as what is ``told``.

        Nothing gets out that would end the hub's loop, or what is done for many connections.
        """
        try:
            self.schedule.log_exception(told)
            self.fail(ProtocolError(CloseCode.INTERNAL_ERROR, ""))
            if self.ended:
                # `fail` leaves such a connection alone, and nothing else would end it now.
                self._finish()
        except (SystemExit, KeyboardInterrupt):
            self._finish()
            raise
        except BaseException:
            # What failed fails again: the connection ends without a Close frame.
            with suppress(Exception, GreenletExit):
                self._finish()

    def _finish(self) -> None:
        """The one way to CLOSED. Watchers stop before the descriptor closes, or they would fire for its next owner."""
        if self.state == CLOSED:
            return
        opened = self.state != CONNECTING
        self.state = CLOSED
        self.input_over = True
        try:
            if self.close_reason is None:
                self.close_reason = self.ending()
        finally:
            if opened:
                self._let_go()

    def _let_go(self) -> None:
        """Closes the socket, and tells all who wait for it."""
        try:
            self._stop_watching()
            self.transport.close()
        finally:
            # Whatever failed: nobody waits on, and the server does not keep the session.
            self._tell_end()

    def _tell_end(self) -> None:
        self.output.clear()
        if self.message_deadline is not None:
            self.message_deadline.cancel()
        if self.stall_deadline is not None:
            self.stall_deadline.cancel()
        if self.close_deadline is not None:
            self.close_deadline.cancel()
        # They call this object back, and would keep it.
        self.message_deadline = self.stall_deadline = self.close_deadline = None
        if self.drained is not None:
            self.drained.set()
        if self.gone is not None:
            self.gone.set()
        self._wake_soon()
        session, self.session = self.session, None
        try:
            self._leave_topics()
        finally:
            if session is not None:
                session.ended()

    def _abandon(self) -> None:
        """Leaves the connection to the process that this one is a fork of; the hub has its watchers here too."""
        self.state = CLOSED
        self.input_over = True
        self._stop_watching()

    def _stop_watching(self) -> None:
        self._stop_writing()
        watchers = (self.read_watcher, self.slice_timer)
        self.read_watcher = self.slice_timer = None
        for watcher in watchers:
            if watcher is not None:
                watcher.stop()
                watcher.close()

    def _wake_soon(self) -> None:
        if self.receiver is not None:
            self.hub.loop.run_callback(self._wake)

    def _wake(self) -> None:
        if self.receiver is not None and self.input_over:
            switch(self.receiver)
