cimport cython

from geventws.arrivals cimport Arrivals
from geventws.deadlines cimport MessageDeadline, UptakeDeadline
from geventws.fragmenting cimport Fragmenting
from geventws.protocol.buffer cimport Buffer
from geventws.protocol.codec cimport Reader
from geventws.protocol.output cimport Output
from geventws.protocol.shared cimport SharedMessage
from geventws.schedule cimport Schedule
from geventws.switching cimport current, switch
from geventws.transport cimport Transport, fork_count, monotonic


cdef int CONNECTING, OPEN, CLOSING, CLOSED
cdef int READING, WRITING, BEGINNING, DELIVERING
cdef int CLOSES, TAKEN, LAGS
cdef int READS_AT_A_TIME, GATHERED_SIZE, MESSAGES_BETWEEN_LOOKS, LARGE_SIZE, OUTPUT_CAP
cdef double TURN_SECONDS, SLICE_SECONDS


cdef class Connection:
    # What a delivery looks at comes first, side by side.
    cdef readonly int state
    cdef int forks
    cdef readonly bint close_sent
    cdef public bint awaits_flush
    cdef readonly Py_ssize_t write_limit
    cdef readonly Output output
    cdef readonly Transport transport
    cdef Fragmenting fragmenting
    cdef readonly object write_watcher, hub
    cdef public object settings, timeout, max_frame_size, close_reason, session, subscriptions
    cdef readonly bint raw, client, paused, failed
    cdef public bint alive
    cdef readonly Reader reader
    cdef readonly object read_watcher, receiver
    cdef readonly bint input_over
    cdef bytearray shared
    cdef Arrivals arrivals
    cdef readonly Schedule schedule
    cdef MessageDeadline message_deadline
    cdef UptakeDeadline stall_deadline, close_deadline
    cdef bytes held
    cdef bint gathering, resting, discarding, ended, in_hub
    cdef readonly double opened_at
    cdef double turn_ends, message_timeout
    cdef Py_ssize_t ends_told
    cdef object drained, gone, slice_timer
    cdef object __weakref__

    cpdef receive(self)
    cpdef over(self)
    cdef _tell_again(self, double seconds)
    @cython.locals(reader=Reader)
    cpdef receive_or_end(self)
    cdef _wait_for_hub(self)
    cdef _look_at_clock(self)
    cpdef receive_within(self, timeout)
    @cython.locals(before=cython.bint)
    cdef _run_for_hub(self, int task)
    @cython.locals(transport=Transport, count=Py_ssize_t, _=int, rest=Buffer)
    cdef _read(self)
    @cython.locals(large=cython.bint)
    cdef _take_rest(self, Py_ssize_t count)
    @cython.locals(reader=Reader, full=cython.bint, late=cython.bint, slice_ends=double, now=double)
    cdef _feed(self, bytearray data, Py_ssize_t position, Py_ssize_t end)
    @cython.locals(waited_for=cython.bint)
    cdef _deliver(self)
    cdef _pong(self)
    cdef _pause(self)
    cdef _resume(self)
    cdef _resume_soon(self)
    cdef _note_message(self)
    cpdef _message_missed(self)
    cpdef send(self, int first, payload)
    cpdef send_message(self, int opcode, payload)
    cpdef send_fragment(self, int opcode, payload, bint fin)
    cdef int _wait_to_send(self) except -1
    cdef int _flush_or_gather(self) except -1
    @cython.locals(output=Output)
    cdef int offer(self, SharedMessage message, bytes frame, int forks) except -1
    @cython.locals(transport=Transport)
    cdef int flush_offered(self, int forks) except -1
    @cython.locals(done=cython.bint)
    cpdef flush(self)
    cdef _wait_drained(self)
    cdef _wait_event(self)
    cdef _wait_to_write(self)
    cdef _start_writing(self)
    cdef _stop_writing(self)
    @cython.locals(output=Output, before=Py_ssize_t, done=cython.bint)
    cdef _write(self)
    cdef _watch_stalled(self)
    @cython.locals(writing=cython.bint, deadline=UptakeDeadline)
    cpdef _stall_due(self)
    cpdef start_close(self, reason)
    cpdef fail(self, error)
    cdef _send_close(self, bytes payload)
    cdef _leave_topics(self)
    cdef _limit_closing(self)
    @cython.locals(deadline=UptakeDeadline)
    cpdef _close_due(self)
    cdef _stop_input(self)
    cdef _peer_closed(self)
    cdef _end_of_input(self)
    cdef _flush_closing(self)
    cdef _flushed(self)
    cpdef broke(self, told)
    cpdef _finish(self)
    cdef _let_go(self)
    cdef _tell_end(self)
    cdef _abandon(self)
    cdef _stop_watching(self)
    cdef _wake_soon(self)
