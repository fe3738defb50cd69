cimport cython

from geventws.protocol.buffer cimport Buffer, Utf8Validator, copy_bytes, memory_of_text, unmasked_bytes, unmasked_text


cdef int MESSAGE_COST, FRAME_COST, FRAMES_AT_A_TIME, MAX_HEADER, LARGE_REST


cdef class Reader:
    cdef public Buffer replies
    cdef public bint client, raw, open, masking, answered
    cdef public Py_ssize_t limit, max_fragments, read_limit, queued, begun
    cdef readonly Py_ssize_t waiting, received
    cdef public object close_reason
    cdef public list pongs
    cdef readonly tuple extensions
    cdef object inflater
    cdef readonly list queue
    cdef int rsv_allowed, first, message_opcode
    cdef bint counted
    cdef unsigned int key
    cdef readonly Py_ssize_t remaining
    cdef Py_ssize_t head, offset, fragments
    cdef bytes partial
    cdef Buffer payload, message
    cdef Utf8Validator utf8

    cpdef bint within_message(self)
    cpdef pop(self)
    cpdef stop(self)
    @cython.locals(frames=int, size=Py_ssize_t)
    cpdef Py_ssize_t feed(self, bytearray data, Py_ssize_t position, Py_ssize_t end) except -1
    @cython.locals(held=Py_ssize_t, size=Py_ssize_t, head=bytearray)
    cdef Py_ssize_t _continue_header(self, bytearray data, Py_ssize_t position, Py_ssize_t end) except -1
    @cython.locals(available=Py_ssize_t, first=int, second=int, opcode=int, length=Py_ssize_t, size=Py_ssize_t, i=Py_ssize_t, key=cython.uint)
    cdef Py_ssize_t _read_header(self, bytearray data, Py_ssize_t position, Py_ssize_t end) except -1
    @cython.locals(held=Py_ssize_t, slack=Py_ssize_t)
    cdef int _check_limits(self, int first, Py_ssize_t length) except -1
    @cython.locals(stop=Py_ssize_t, first=int)
    cdef Py_ssize_t _begin_payload(self, bytearray data, Py_ssize_t position, Py_ssize_t end) except -1
    @cython.locals(target=Buffer)
    cpdef Buffer rest(self)
    @cython.locals(target=Buffer)
    cpdef took(self, Py_ssize_t count)
    cdef Buffer _target(self)
    @cython.locals(target=Buffer, count=Py_ssize_t, before=Py_ssize_t)
    cdef Py_ssize_t _read_payload(self, bytearray data, Py_ssize_t position, Py_ssize_t end) except -1
    @cython.locals(first=int, data_frame=cython.bint)
    cdef int _took(self, Buffer target, Py_ssize_t before, Py_ssize_t count) except -1
    cdef int _check_text(self, Buffer target, Py_ssize_t before) except -1
    cdef int _end_frame(self, bytes payload) except -1
    @cython.locals(first=int)
    cdef int _end_other_frame(self, bytes payload) except -1
    @cython.locals(first=int, data=bytes)
    cdef int _end_deflated(self, bytes payload) except -1
    cdef _limit_left(self)
    @cython.locals(before=Py_ssize_t)
    cdef int _append_decoded(self, bytes payload) except -1
    cdef int _check_text_end(self) except -1
    @cython.locals(message=Buffer, opcode=int)
    cdef int _end_message(self) except -1
    @cython.locals(opcode=int)
    cdef int _control(self, int first, bytes payload) except -1
    cdef int _put(self, item) except -1
    cdef Py_ssize_t _size(self, item) except -1
