cimport cython

from geventws.connection cimport Connection
from geventws.pinger cimport Pinger
from geventws.transport cimport monotonic


cdef int CONNECTING, OPEN


cdef class WebSocketSession


cdef class Messages:
    cdef WebSocketSession session


cdef class WebSocketSession:
    cdef readonly Connection connection
    cdef readonly object call
    cdef public object rules
    cdef dict __dict__
    cdef object __weakref__


cdef class DefaultWebSocketSession(WebSocketSession):
    cdef Pinger _pinger
    cdef object _ping_interval, _pings, _latency

    @cython.locals(connection=Connection)
    cpdef send(self, message)
