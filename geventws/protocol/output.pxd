cimport cython

from geventws.protocol.buffer cimport Buffer
from geventws.protocol.shared cimport SharedFrame, SharedMessage


cdef int DIRECT_SIZE


cdef class Output(Buffer):
    cdef readonly Py_ssize_t messages
    cdef public tuple extensions
    cdef public bint masking
    cdef bint raw

    cpdef int put(self, int first, payload) except -1
    @cython.locals(first=int)
    cpdef int put_data(self, int opcode, payload, bint fin) except -1
    @cython.locals(frame=SharedFrame)
    cpdef int put_shared(self, SharedMessage message) except -1
