cimport cython


cdef class Arrivals:
    cdef object loop
    cdef list connections
    cdef long iteration

    @cython.locals(iteration=long)
    cpdef bint wait(self, connection) except -1
    cpdef run(self)
