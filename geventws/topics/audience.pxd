cimport cython

from geventws.connection cimport Connection


cdef Py_ssize_t SCATTER


cdef class Subscription:
    cdef readonly Audience audience
    cdef readonly Connection connection
    cdef Subscription preceding
    cdef readonly Subscription following
    cdef Py_ssize_t place

    cdef unlink(self)
    @cython.locals(connection=Connection, first=Subscription, audience=Audience)
    cpdef connection_ended(self)


cdef class Audience:
    cdef readonly list connections
    cdef readonly bint lent
    cdef readonly dict subscriptions

    @cython.locals(
        connections=list, subscription=Subscription, moved=Subscription, other=Connection, last=Py_ssize_t, place=Py_ssize_t
    )
    cpdef add(self, Connection connection)
    @cython.locals(subscription=Subscription, moved=Subscription, last=Connection, connections=list)
    cpdef bint remove(self, Connection connection) except -1
    cpdef list lend(self)
    cpdef left(self, Connection connection)
    cdef _own(self)
