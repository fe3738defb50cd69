cimport cython

from geventws.transport cimport monotonic


cdef double SLICE


cdef class Entry:
    cdef double when
    cdef readonly object call


cdef bint _is_earlier(Entry entry, Entry other)


cdef class Schedule:
    cdef list _entries
    cdef object _earlier, _greenlet
    cdef double _wakes_at
    cdef Py_ssize_t _cancelled

    @cython.locals(when=double, entry=Entry)
    cpdef Entry after(self, double seconds, call)
    cpdef cancel(self, Entry entry)
    @cython.locals(first=Entry, now=double, slice_ends=double)
    cpdef _run(self)
