cimport cython

from geventws.connection cimport Connection
from geventws.schedule cimport Entry, Schedule
from geventws.transport cimport Transport, monotonic


cdef class Pinger:
    cdef Connection _connection
    cdef Entry _entry
    cdef bytes _payload
    cdef double _sent_at
    cdef long long _ahead, _taken
    cdef public double period, timeout
    cdef public bint any_input
    cdef public object latency

    @cython.locals(connection=Connection, transport=Transport, now=double)
    cpdef _due(self)
    @cython.locals(transport=Transport, before=cython.longlong)
    cdef bint _drains(self) except -1
    cdef _wake_at(self, double when, double now)
    cpdef stop(self)
