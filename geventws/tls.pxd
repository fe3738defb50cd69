cimport cython

from geventws.protocol.buffer cimport Buffer
from geventws.transport cimport Transport


cdef class TLSTransport(Transport):
    cdef object _tls, _write
    cdef bytes _refused

    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t receive(self, bytearray target) except -2
    @cython.locals(record=bytes, count=Py_ssize_t)
    cpdef bint send(self, Buffer source) except -1
    cpdef shut_down(self)
