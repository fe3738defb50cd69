"""The compiled twin of switching.py: the same over greenlet's C API, which leaves less on a waiting greenlet's stack."""

cdef extern from *:
    """
    #include "greenlet.h"
    #define geventws_current() ((PyObject *) PyGreenlet_GetCurrent())
    #define geventws_switch(target) PyGreenlet_Switch((PyGreenlet *) (target), NULL, NULL)
    """
    void PyGreenlet_Import()
    void* _PyGreenlet_API
    object geventws_current()
    object geventws_switch(object)

PyGreenlet_Import()
if not _PyGreenlet_API:
    raise ImportError("this greenlet has no C API")


cpdef current():
    return geventws_current()


cpdef switch(target):
    geventws_switch(target)
