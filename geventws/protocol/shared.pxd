cimport cython

from geventws.protocol.buffer cimport Buffer


cdef int DIRECT_SIZE


cdef class SharedFrame:
    cdef readonly int first
    cdef readonly bytes payload, whole


cdef class SharedMessage:
    cdef readonly int opcode
    cdef readonly bytes payload
    cdef readonly dict deflated
    cdef SharedFrame _plain

    @cython.locals(plain=SharedFrame)
    cpdef SharedFrame plain(self)
