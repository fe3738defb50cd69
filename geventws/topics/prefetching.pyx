"""The compiled twin of prefetching.py. What it does is told there."""

from cpython.object cimport PyObject

from geventws.connection cimport Connection

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define geventws_fetch(address) __builtin_prefetch(address, 1)
    #else
    #define geventws_fetch(address) ((void) 0)
    #endif
    """
    void geventws_fetch(void* address) noexcept

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(list, Py_ssize_t) noexcept
    Py_ssize_t PyList_GET_SIZE(list) noexcept


cpdef void prefetch(list connections, Py_ssize_t index) noexcept:
    cdef Py_ssize_t last = PyList_GET_SIZE(connections) - 1
    cdef char* farther = <char*> PyList_GET_ITEM(connections, min(index + 12, last))
    cdef PyObject* nearer = PyList_GET_ITEM(connections, min(index + 6, last))
    geventws_fetch(farther)
    geventws_fetch(farther + 64)
    if type(<object> nearer) is not Connection:
        return
    geventws_fetch(<void*> (<Connection> nearer).output)
    geventws_fetch(<char*> (<void*> (<Connection> nearer).output) + 64)
    geventws_fetch(<void*> (<Connection> nearer).transport)
