cimport cython

from geventws.connection cimport Connection
from geventws.schedule cimport Entry, Schedule
from geventws.transport cimport monotonic


cdef class Pinger:
    cdef Connection _connection
    cdef Entry _entry
    cdef bytes _payload
    cdef double _sent_at
    cdef public double period, timeout
    cdef public bint any_input
    cdef public object latency

    @cython.locals(connection=Connection, now=double)
    cpdef _due(self)
    cdef _wake_at(self, double when, double now)
    cpdef stop(self)
