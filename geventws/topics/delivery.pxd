cimport cython

from geventws.connection cimport Connection
from geventws.protocol.shared cimport SharedMessage
from geventws.topics.prefetching cimport prefetch
from geventws.transport cimport fork_count, monotonic


cdef int SMALL_SIZE, CONNECTIONS_BETWEEN_LOOKS, TAKEN, LAGS
cdef double SLICE_SECONDS


cdef class Delivery:
    cdef list connections
    cdef SharedMessage message
    cdef bint closes
    cdef Py_ssize_t position
    cdef readonly Py_ssize_t taken, lagging
    cdef readonly bint done
    cdef object _finished

    cpdef wait(self)
    @cython.locals(first=Py_ssize_t)
    cpdef withdraw(self, Connection connection)
    cpdef end(self)


cdef class Deliverer:
    cdef object hub, timer
    cdef list deliveries, offered, flushing
    cdef Py_ssize_t position, stop
    cdef double ends
    cdef bint called, running

    cpdef begin(self, Delivery delivery)
    cpdef run(self)
    cdef _run_later(self)
    @cython.locals(now=double)
    cdef bint _late(self) except -1
    @cython.locals(delivery=Delivery)
    cdef _offer(self)
    @cython.locals(
        connections=list, message=SharedMessage, connection=Connection, small=cython.bint,
        between=Py_ssize_t, start=Py_ssize_t, result=int, forks=int, frame=bytes, first_of_turn=cython.bint,
    )
    cdef _offer_one(self, Delivery delivery)
    cdef _flush(self)
    @cython.locals(connections=list, stop=Py_ssize_t, connection=Connection, forks=int)
    cdef _flush_some(self)


@cython.locals(deliverer=Deliverer, delivery=Delivery)
cpdef Delivery deliver(list connections, SharedMessage message, bint closes=*)
