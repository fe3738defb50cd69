"""The compiled twin of transport.py: the same over system calls. What it does is told there."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.time cimport time_t

from socket import SHUT_WR, SO_ERROR, SOL_SOCKET

cdef extern from "Python.h":
    char* PyByteArray_AS_STRING(object) noexcept
    Py_ssize_t PyByteArray_GET_SIZE(object) noexcept

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t writev(int, const iovec*, int)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void*, size_t, int)

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int, timespec*)


cpdef double monotonic() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class Transport:
    def __init__(self, socket):
        self.socket = socket
        self.descriptor = socket.fileno()
        self.keeps_input = False

    cpdef Py_ssize_t receive(self, bytearray target) except -2:
        cdef ssize_t got
        while True:
            got = recv(self.descriptor, PyByteArray_AS_STRING(target), PyByteArray_GET_SIZE(target), 0)
            if got >= 0:
                return got
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    cpdef bint send(self, Buffer source) except -1:
        return self._write(source, NULL)

    cpdef bint send_with(self, Buffer source, payload) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            return self._write(source, &view)
        finally:
            PyBuffer_Release(&view)

    cdef bint _write(self, Buffer source, Py_buffer* payload) except -1:
        cdef iovec parts[2]
        cdef ssize_t written
        cdef size_t size = source.length()
        cdef size_t total = size
        cdef int count = 1
        parts[0].iov_base = source._data() + source.start if size else NULL
        parts[0].iov_len = size
        if payload != NULL:
            parts[1].iov_base = payload.buf
            parts[1].iov_len = payload.len
            total += payload.len
            count = 2
        if total == 0:
            return True
        while True:
            written = writev(self.descriptor, parts, count)
            if written >= 0:
                break
            if errno == EAGAIN:
                written = 0
                break
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
        if <size_t> written >= size:
            source.consume(size)
            if payload != NULL and <size_t> written < total:
                written -= size
                source.append_memory(<char*> payload.buf + written, payload.len - written)
        else:
            source.consume(written)
            if payload != NULL:
                source.append_memory(<char*> payload.buf, payload.len)
        return source.length() == 0

    cpdef shut_down(self):
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            pass

    cpdef error(self):
        return self.socket.getsockopt(SOL_SOCKET, SO_ERROR)

    cpdef close(self):
        self.descriptor = -1
        self.socket.close()
