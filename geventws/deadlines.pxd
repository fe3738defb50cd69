cimport cython

from geventws.protocol.codec cimport Reader
from geventws.schedule cimport Entry, Schedule
from geventws.transport cimport Transport, monotonic


cdef class MessageDeadline:
    cdef Reader _reader
    cdef Schedule _schedule
    cdef Entry _entry
    cdef object _missed
    cdef Py_ssize_t _begun
    cdef double _seconds, _since, _paused_at

    cpdef note(self)
    cpdef pause(self)
    cpdef resume(self)
    cpdef cancel(self)
    @cython.locals(left=double)
    cpdef _due(self)


cdef class UptakeDeadline:
    cdef Transport _transport
    cdef Schedule _schedule
    cdef Entry _entry
    cdef long long _sent, _queued

    cpdef bint met(self) except -1
    cpdef cancel(self)
