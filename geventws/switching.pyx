"""The compiled twin of switching.py: the same over greenlet's C API, which leaves less on a waiting greenlet's stack."""

cdef extern from *:
    """
    #include "greenlet.h"
    #define geventws_current() ((PyObject *) PyGreenlet_GetCurrent())
    #define geventws_switch(target) PyGreenlet_Switch((PyGreenlet *) (target), NULL, NULL)
    static __attribute__((noinline)) PyObject *geventws_start(PyObject *target, PyObject *arguments) {
        /* More than the hub's callbacks take on their way to a switch. */
        volatile char below[8 * 1024];
        PyObject *result;
        below[0] = 0;
        result = PyGreenlet_Switch((PyGreenlet *) target, arguments, NULL);
        below[1] = 0;
        return result;
    }
    """
    void PyGreenlet_Import()
    void* _PyGreenlet_API
    object geventws_current()
    object geventws_switch(object)
    object geventws_start(object, object)

PyGreenlet_Import()
if not _PyGreenlet_API:
    raise ImportError("this greenlet has no C API")


cpdef current():
    return geventws_current()


cpdef switch(target):
    geventws_switch(target)


def start(target, *arguments):
    geventws_start(target, arguments)
