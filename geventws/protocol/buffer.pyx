"""The compiled twin of buffer.py: the same names over plain memory. What they do is told there."""

from os import urandom

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

cdef extern from "Python.h":
    PyObject* PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(char*, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject**, Py_ssize_t) except -1
    char* PyBytes_AS_STRING(PyObject*) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept
    char* PyByteArray_AS_STRING(object) noexcept
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL
    int PyUnicode_IS_ASCII(object) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object) noexcept
    unicode PyUnicode_New(Py_ssize_t, Py_UCS4)
    void* PyUnicode_1BYTE_DATA(object) noexcept

# An empty buffer gives memory beyond this back, so that an idle connection holds none of its last message.
cdef enum:
    KEPT = 4096


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Vectors of 32 bytes; where the C library can choose at load time, once for AVX2 and once for any machine. */
    typedef uint8_t geventws_vector __attribute__((vector_size(32)));
    #if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
    __attribute__((target_clones("avx2", "default")))
    #endif
    static int geventws_xor(uint8_t *target, const uint8_t *source, size_t count, uint32_t key, size_t offset) {
        /* Tells whether the result is all ASCII, which costs less here than another look at it. */
        uint8_t mask[32], seen = 0;
        geventws_vector wide, block, all = {0};
        size_t i, j;
        for (i = 0; i < 4; i++) mask[i] = (uint8_t)(key >> (24 - 8 * ((i + offset) & 3)));
        for (i = 4; i < 32; i += 4) memcpy(mask + i, mask, 4);
        memcpy(&wide, mask, 32);
        for (i = 0; i + 128 <= count; i += 128)
            for (j = i; j < i + 128; j += 32) {
                memcpy(&block, source + j, 32);
                block ^= wide;
                all |= block;
                memcpy(target + j, &block, 32);
            }
        for (; i + 32 <= count; i += 32) {
            memcpy(&block, source + i, 32);
            block ^= wide;
            all |= block;
            memcpy(target + i, &block, 32);
        }
        for (j = 0; i < count; i++, j++) seen |= target[i] = source[i] ^ mask[j];
        memcpy(mask, &all, 32);
        for (j = 0; j < 32; j++) seen |= mask[j];
        return seen < 0x80;
    }
    """
    bint xor_copy "geventws_xor"(
        uint8_t* target, const uint8_t* source, size_t count, uint32_t key, size_t offset
    ) noexcept nogil


cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__GLIBC__)
    #include <malloc.h>
    static void geventws_keep_freed_memory(void) {
        mallopt(M_MMAP_THRESHOLD, 32 * 1024 * 1024);
        mallopt(M_TRIM_THRESHOLD, 64 * 1024 * 1024);
    }
    static void geventws_give_back_freed_memory(void) { malloc_trim(0); }
    #else
    static void geventws_keep_freed_memory(void) {}
    static void geventws_give_back_freed_memory(void) {}
    #endif
    """
    void geventws_keep_freed_memory() noexcept
    void geventws_give_back_freed_memory() noexcept nogil


cpdef keep_freed_memory():
    geventws_keep_freed_memory()


cpdef give_back_freed_memory():
    geventws_give_back_freed_memory()


cdef class Buffer:
    # Bytes in `store`, and at `mark` among them at most one large payload that stays where it lies.

    def __cinit__(self):
        self.store = NULL
        self.start = self.end = self.capacity = self.mark = self.body_start = 0
        self.body = None
        self.ascii = True

    def __dealloc__(self):
        Py_XDECREF(self.store)

    def __len__(self):
        return self.length()

    cdef inline char* _data(self) noexcept:
        return PyBytes_AS_STRING(self.store)

    cdef Py_ssize_t length(self) noexcept:
        cdef Py_ssize_t size = self.end - self.start
        if self.body is not None:
            size += PyBytes_GET_SIZE(self.body) - self.body_start
        return size

    cdef int reserve(self, Py_ssize_t extra) except -1:
        cdef Py_ssize_t size = self.end - self.start
        cdef Py_ssize_t wanted = size + extra
        if self.end + extra <= self.capacity:
            return 0
        if self.start:
            memmove(self._data(), self._data() + self.start, size)
            self.mark -= self.start
            self.start = 0
            self.end = size
            if wanted <= self.capacity:
                return 0
        # Doubling keeps appends linear; realloc moves large blocks by their page tables, not by copying.
        wanted = max(wanted, 2 * self.capacity, 128)
        if self.store == NULL:
            self.store = PyBytes_FromStringAndSize_raw(NULL, wanted)
        else:
            try:
                _PyBytes_Resize(&self.store, wanted)
            except MemoryError:
                self.capacity = self.start = self.end = 0
                raise
        self.capacity = wanted
        return 0

    cpdef append(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.append_memory(<const char*> view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int append_memory(self, const char* source, Py_ssize_t count) except -1:
        if count:
            self.ascii = False
            self.reserve(count)
            memcpy(self._data() + self.end, source, count)
            self.end += count
        return 0

    cpdef append_body(self, bytes payload):
        if self.body is not None:
            self.append_memory(PyBytes_AS_STRING(<PyObject*> payload), PyBytes_GET_SIZE(payload))
            return
        self.body = payload
        self.body_start = 0
        self.mark = self.end

    cdef int append_shared(self, bytes frame) except -1:
        if self.body is None and self.end == self.start:
            self.body = frame
            self.body_start = 0
            self.mark = self.end
            return 0
        return self.append_memory(PyBytes_AS_STRING(<PyObject*> frame), PyBytes_GET_SIZE(frame))

    cpdef expect(self, Py_ssize_t count):
        self.reserve(count)

    cpdef append_header(self, int first, Py_ssize_t length):
        self.reserve(10)
        self._header(first, length, 0)

    cdef void _header(self, int first, Py_ssize_t length, int mask_bit) noexcept:
        cdef uint8_t* target = <uint8_t*> self._data() + self.end
        cdef int i
        target[0] = first
        if length < 126:
            target[1] = mask_bit | length
            self.end += 2
        elif length < 65536:
            target[1] = mask_bit | 126
            target[2] = length >> 8
            target[3] = length & 0xFF
            self.end += 4
        else:
            target[1] = mask_bit | 127
            for i in range(8):
                target[2 + i] = (<uint64_t> length >> (56 - 8 * i)) & 0xFF
            self.end += 10

    cpdef append_frame(self, int first, payload, bint masked=False):
        cdef Py_buffer view
        cdef Py_ssize_t count
        cdef const char* source
        if isinstance(payload, str):
            source = PyUnicode_AsUTF8AndSize(payload, &count)
            self._frame(first, source, count, masked)
            return
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self._frame(first, <const char*> view.buf, view.len, masked)
        finally:
            PyBuffer_Release(&view)

    cdef int _frame(self, int first, const char* source, Py_ssize_t count, bint masked) except -1:
        cdef unsigned int key
        self.reserve(count + 14)
        if masked:
            random = urandom(4)
            key = int.from_bytes(random, "big")
            self._header(first, count, 0x80)
            memcpy(self._data() + self.end, <const char*> random, 4)
            self.end += 4
            xor_copy(<uint8_t*> self._data() + self.end, <const uint8_t*> source, count, key, 0)
        else:
            self._header(first, count, 0)
            memcpy(self._data() + self.end, source, count)
        self.end += count
        return 0

    cpdef append_unmasked(self, bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key, Py_ssize_t offset):
        cdef Py_ssize_t count = end - start
        if count == 0:
            # There may be no memory yet to point to.
            return
        self.reserve(count)
        self.ascii &= xor_copy(
            <uint8_t*> self._data() + self.end, <uint8_t*> PyByteArray_AS_STRING(data) + start, count, key, offset
        )
        self.end += count

    cpdef unmask_last(self, Py_ssize_t count, unsigned int key, Py_ssize_t offset):
        cdef uint8_t* place
        if count:
            place = <uint8_t*> self._data() + self.end - count
            self.ascii &= xor_copy(place, place, count, key, offset)

    cpdef Py_ssize_t room(self) noexcept:
        return self.capacity - self.end

    cpdef bint is_ascii(self) noexcept:
        return self.ascii

    cpdef bytes peek(self, Py_ssize_t most):
        cdef Py_ssize_t before
        if self.body is not None:
            before = self.mark - self.start
            if before == 0:
                return self.body[self.body_start : self.body_start + most]
            # A short piece: the rest comes with the next look.
            most = min(most, before)
        if self.end == self.start:
            return b""
        return PyBytes_FromStringAndSize(self._data() + self.start, min(most, self.end - self.start))

    cpdef consume(self, Py_ssize_t count):
        cdef Py_ssize_t size
        if self.body is not None:
            size = self.mark - self.start
            if count < size:
                self.start += count
                return
            count -= size
            self.start = self.mark
            size = PyBytes_GET_SIZE(self.body) - self.body_start
            if count < size:
                self.body_start += count
                return
            count -= size
            self.body = None
        self.start += count
        if self.start == self.end:
            self.start = self.end = 0
            if self.capacity > KEPT:
                self.clear()

    cpdef bytes take_bytes(self):
        cdef PyObject* store
        if self.end == self.start:
            self.clear()
            return b""
        if self.start:
            taken = PyBytes_FromStringAndSize(self._data() + self.start, self.end - self.start)
            self.clear()
            return taken
        _PyBytes_Resize(&self.store, self.end)
        store = self.store
        self.store = NULL
        self.start = self.end = self.capacity = 0
        self.ascii = True
        taken = <bytes> store
        Py_XDECREF(store)
        return taken

    cpdef str take_text(self):
        if self.end == self.start:
            return ""
        if self.ascii:
            taken = PyUnicode_New(self.end - self.start, 127)
            memcpy(PyUnicode_1BYTE_DATA(taken), self._data() + self.start, self.end - self.start)
        else:
            taken = PyUnicode_DecodeUTF8(self._data() + self.start, self.end - self.start, NULL)
        self.clear()
        return taken

    cpdef clear(self):
        Py_XDECREF(self.store)
        self.store = NULL
        self.body = None
        self.start = self.end = self.capacity = 0
        self.ascii = True


cdef class Utf8Validator:
    def __cinit__(self):
        self.needed = 0
        self.low = 0x80
        self.high = 0xBF

    @property
    def complete(self):
        return self.needed == 0

    cpdef bint check(self, Buffer buffer, Py_ssize_t start):
        cdef const uint8_t* data
        cdef Py_ssize_t i = start
        cdef Py_ssize_t end = buffer.length()
        cdef uint64_t block
        cdef uint8_t byte
        if i >= end:
            return True
        data = <const uint8_t*> buffer._data() + buffer.start
        while i < end:
            if self.needed == 0:
                while i + 8 <= end:
                    memcpy(&block, data + i, 8)
                    if block & 0x8080808080808080ULL:
                        break
                    i += 8
                if i == end:
                    break
                byte = data[i]
                if byte >= 0x80 and not self._begin(byte):
                    return False
            else:
                byte = data[i]
                if byte < self.low or byte > self.high:
                    return False
                self.needed -= 1
                self.low = 0x80
                self.high = 0xBF
            i += 1
        return True

    cdef bint _begin(self, uint8_t byte) noexcept:
        # The well-formed byte sequences of Unicode's table 3-7: the first byte narrows the range of the second.
        if 0xC2 <= byte <= 0xDF:
            self.needed = 1
        elif 0xE0 <= byte <= 0xEF:
            self.needed = 2
            if byte == 0xE0:
                self.low = 0xA0
            elif byte == 0xED:
                self.high = 0x9F
        elif 0xF0 <= byte <= 0xF4:
            self.needed = 3
            if byte == 0xF0:
                self.low = 0x90
            elif byte == 0xF4:
                self.high = 0x8F
        else:
            return False
        return True


cpdef str unmasked_text(bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key):
    cdef Py_ssize_t count = end - start
    cdef uint8_t* place
    if count == 0:
        return ""
    # Most text is ASCII, and made where it is unmasked to.
    text = PyUnicode_New(count, 127)
    place = <uint8_t*> PyUnicode_1BYTE_DATA(text)
    if xor_copy(place, <uint8_t*> PyByteArray_AS_STRING(data) + start, count, key, 0):
        return text
    return PyUnicode_DecodeUTF8(<const char*> place, count, NULL)


cpdef bytes unmasked_bytes(bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int key):
    taken = PyBytes_FromStringAndSize(NULL, end - start)
    xor_copy(
        <uint8_t*> PyBytes_AS_STRING(<PyObject*> taken), <uint8_t*> PyByteArray_AS_STRING(data) + start, end - start, key, 0
    )
    return taken


cpdef Py_ssize_t memory_of_text(str text) noexcept:
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(text)
    return length if PyUnicode_IS_ASCII(text) else 4 * length


cpdef bytes copy_bytes(bytearray data, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(data) + start, end - start)
