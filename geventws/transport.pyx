"""The compiled twin of transport.py: the same over system calls. What it does is told there."""

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.time cimport time_t

import os
from socket import SHUT_WR, SO_ERROR, SOL_SOCKET

cdef extern from "Python.h":
    char* PyByteArray_AS_STRING(object) noexcept
    Py_ssize_t PyByteArray_GET_SIZE(object) noexcept
    char* PyBytes_AS_STRING(object) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t writev(int, const iovec*, int)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void*, size_t, int)
    ssize_t send(int, const void*, size_t, int)
    enum: SHUT_RDWR
    int shutdown(int, int)

cdef extern from "<sys/ioctl.h>" nogil:
    enum: TIOCOUTQ
    int ioctl(int, unsigned long, ...)

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


cdef int _forks = 0
cdef bint _has_children = False


def _in_child():
    global _forks, _has_children
    _forks += 1
    _has_children = False


def _in_parent():
    global _has_children
    _has_children = True


os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)


cpdef int fork_count() noexcept:
    return _forks


cdef class Transport:
    def __init__(self, socket):
        self.socket = socket
        self.descriptor = socket.fileno()
        self.keeps_input = self.encrypted = self.receiving_waits_to_write = self.sending_waits_to_read = False
        self.received = self.sent = 0
        self.forks = _forks

    cpdef bint inherited(self) noexcept:
        return self.forks != _forks

    cpdef Py_ssize_t receive(self, bytearray target) except -2:
        cdef ssize_t got
        while True:
            got = recv(self.descriptor, PyByteArray_AS_STRING(target), PyByteArray_GET_SIZE(target), 0)
            if got >= 0:
                self.received += got
                return got
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    cpdef Py_ssize_t receive_into(self, Buffer target, Py_ssize_t most) except -2:
        cdef ssize_t got
        most = min(most, target.capacity - target.end)
        while True:
            got = recv(self.descriptor, target._data() + target.end, most, 0)
            if got >= 0:
                self.received += got
                target.end += got
                return got
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    cpdef bint send(self, Buffer source) except -1:
        cdef iovec parts[3]
        cdef ssize_t written
        cdef int count = 0
        cdef Py_ssize_t before = source.end - source.start
        if source.body is not None:
            if before == 0:
                # Most often a frame that many share, of which the socket takes all.
                written = send(
                    self.descriptor,
                    PyBytes_AS_STRING(source.body) + source.body_start,
                    PyBytes_GET_SIZE(source.body) - source.body_start,
                    0,
                )
                if written == PyBytes_GET_SIZE(source.body) - source.body_start:
                    self.sent += written
                    source.body = None
                    return True
                if written >= 0:
                    self.sent += written
                    source.body_start += written
                    return False
                if errno == EAGAIN:
                    return False
                if errno != EINTR:
                    PyErr_SetFromErrno(OSError)
            before = source.mark - source.start
        if before:
            parts[0].iov_base = source._data() + source.start
            parts[0].iov_len = before
            count = 1
        if source.body is not None:
            parts[count].iov_base = PyBytes_AS_STRING(source.body) + source.body_start
            parts[count].iov_len = PyBytes_GET_SIZE(source.body) - source.body_start
            count += 1
            if source.end > source.mark:
                parts[count].iov_base = source._data() + source.mark
                parts[count].iov_len = source.end - source.mark
                count += 1
        if count == 0:
            return True
        while True:
            # send() costs less than writev() of one part.
            if count == 1:
                written = send(self.descriptor, parts[0].iov_base, parts[0].iov_len, 0)
            else:
                written = writev(self.descriptor, parts, count)
            if written >= 0:
                self.sent += written
                source.consume(written)
                return source.length() == 0
            if errno == EAGAIN:
                return False
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    cpdef shut_down(self):
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            pass

    cpdef error(self):
        return self.socket.getsockopt(SOL_SOCKET, SO_ERROR)

    cpdef long queued(self):
        cdef int count = 0
        return count if ioctl(self.descriptor, TIOCOUTQ, &count) == 0 else 0

    cpdef close(self):
        if _has_children and not self.inherited():
            shutdown(self.descriptor, SHUT_RDWR)
        self.descriptor = -1
        self.socket.close()
