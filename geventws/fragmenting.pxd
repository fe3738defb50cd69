from geventws.protocol.shared cimport SharedMessage
from geventws.switching cimport current


cdef int MESSAGE_COST


cdef class Fragmenting:
    cdef object _greenlet, _over
    cdef readonly list postponed
    cdef Py_ssize_t _size

    cpdef wait(self)
    cpdef bint postpone(self, SharedMessage message, Py_ssize_t limit) except -1
    cpdef end(self)
