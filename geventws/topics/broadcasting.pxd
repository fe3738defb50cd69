cimport cython

from geventws.connection cimport Connection
from geventws.protocol.buffer cimport Buffer
from geventws.session cimport DefaultWebSocketSession
from geventws.switching cimport current
from geventws.transport cimport monotonic


cdef int SMALL_SIZE, SESSIONS_BETWEEN_LOOKS, TAKEN, LAGS
cdef double SLICE_SECONDS


cdef class Flusher:
    cdef object hub, timer
    cdef list connections
    cdef Py_ssize_t position

    cpdef add(self, Connection connection)
    @cython.locals(connection=Connection, now=double, ends=double)
    cpdef run(self)
    cdef _rest(self)
    cdef _run_later(self)


cdef tuple _payload(message)
@cython.locals(checked=list, opening=cython.bint, session=DefaultWebSocketSession, connection=Connection)
cdef list _checked(sessions, hub)

@cython.locals(
    session=DefaultWebSocketSession, connection=Connection, frame=bytes, buffer=Buffer, small=cython.bint, result=int,
    count=Py_ssize_t, number=Py_ssize_t, now=double, ends=double,
)
cdef _send_to_all(Flusher flusher, list sessions, int opcode, bytes payload, bint closes)
