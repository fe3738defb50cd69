from cpython.object cimport PyObject


cdef class Buffer:
    cdef bytes body
    cdef Py_ssize_t start, end, body_start, mark, capacity
    cdef PyObject* store
    cdef bint ascii
    cdef inline char* _data(self) noexcept
    cdef int reserve(self, Py_ssize_t extra) except -1
    cdef Py_ssize_t length(self) noexcept
    cdef int append_memory(self, const char* source, Py_ssize_t count) except -1
    cpdef append(self, data)
    cpdef append_frame(self, int first, payload, bint masked=*)
    cpdef append_body(self, bytes payload)
    cdef int append_shared(self, bytes frame) except -1
    cpdef expect(self, Py_ssize_t count)
    cpdef append_header(self, int first, Py_ssize_t length)
    cpdef append_unmasked(self, bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key, Py_ssize_t offset)
    cpdef bytes peek(self, Py_ssize_t most)
    cpdef consume(self, Py_ssize_t count)
    cpdef bytes take_bytes(self)
    cpdef str take_text(self)
    cpdef unmask_last(self, Py_ssize_t count, unsigned int key, Py_ssize_t offset)
    cpdef Py_ssize_t room(self) noexcept
    cpdef bint is_ascii(self) noexcept
    cpdef clear(self)
    cdef void _header(self, int first, Py_ssize_t length, int mask_bit) noexcept
    cdef int _frame(self, int first, const char* source, Py_ssize_t count, bint masked) except -1


cdef class Utf8Validator:
    cdef int needed, low, high
    cpdef bint check(self, Buffer buffer, Py_ssize_t start)
    cdef bint _begin(self, unsigned char byte) noexcept


cpdef keep_freed_memory()
cpdef give_back_freed_memory()
cpdef str unmasked_text(bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key)
cpdef Py_ssize_t memory_of_text(str text) noexcept
cpdef bytes copy_bytes(bytearray data, Py_ssize_t start, Py_ssize_t end)
cpdef bytes unmasked_bytes(bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key)
