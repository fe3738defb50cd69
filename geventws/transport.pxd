from geventws.protocol.buffer cimport Buffer


cdef class Transport:
    cdef readonly int descriptor
    cdef int forks
    cdef public bint keeps_input, encrypted, receiving_waits_to_write, sending_waits_to_read
    cdef public long long sent, received
    cdef readonly object socket
    cpdef bint inherited(self) noexcept
    cpdef Py_ssize_t receive(self, bytearray target) except -2
    cpdef Py_ssize_t receive_into(self, Buffer target, Py_ssize_t most) except -2
    cpdef bint send(self, Buffer source) except -1
    cpdef shut_down(self)
    cpdef error(self)
    cpdef long queued(self)
    cpdef close(self)


cpdef int fork_count() noexcept
cpdef double monotonic() noexcept
