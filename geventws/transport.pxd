from geventws.protocol.buffer cimport Buffer


cdef class Transport:
    cdef readonly object socket
    cdef readonly int descriptor
    cdef public bint keeps_input
    cpdef Py_ssize_t receive(self, bytearray target) except -2
    cpdef bint send(self, Buffer source) except -1
    cpdef shut_down(self)
    cpdef error(self)
    cpdef close(self)


cpdef double monotonic() noexcept
