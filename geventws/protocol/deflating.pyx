"""The compiled twin of deflating.py: the same over zlib itself. What it does is told there.

Messages in one frame, and outgoing ones without context takeover, share zlib's states: one for each kind, for all
sessions of all threads. That is safe as the GIL is held while one is in use, and nothing of Python runs then that
could come back here.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.string cimport memcpy, memset

from geventws.errors import ProtocolError
from geventws.frames import Frame
from geventws.protocol.shared cimport SharedFrame, SharedMessage

cdef extern from "Python.h":
    PyObject* PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(char*, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject**, Py_ssize_t) except -1
    char* PyBytes_AS_STRING(PyObject*) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL

cdef extern from "zlib.h":
    ctypedef struct z_stream:
        unsigned char* next_in
        unsigned int avail_in
        unsigned char* next_out
        unsigned int avail_out
        void* (*zalloc)(void*, unsigned int, unsigned int) noexcept
        void (*zfree)(void*, void*) noexcept
        void* opaque
    int Z_OK, Z_STREAM_END, Z_BUF_ERROR, Z_MEM_ERROR, Z_SYNC_FLUSH, Z_NO_FLUSH, Z_DEFLATED, Z_DEFAULT_STRATEGY
    int inflateInit2(z_stream*, int) nogil
    int inflate(z_stream*, int) noexcept
    int inflateReset(z_stream*) noexcept
    int inflateSetDictionary(z_stream*, const unsigned char*, unsigned int) noexcept
    int inflateEnd(z_stream*) noexcept
    int deflateInit2(z_stream*, int, int, int, int, int) nogil
    int deflate(z_stream*, int) noexcept
    int deflateReset(z_stream*) noexcept
    int deflateEnd(z_stream*) noexcept
    const char* zlibVersion() noexcept

ZLIB = f"zlib {zlibVersion().decode()}, called directly"

cdef enum:
    RSV1 = 0x40
    INPUT_SIZE = 8 * 1024
    OUTPUT_SIZE = 32 * 1024
    # A message of more than one piece begins with this much: few are larger, and what is not used is not touched.
    FIRST_SIZE = 3 * OUTPUT_SIZE
    # zlib counts its input in 32 bits.
    DEFLATED_AT_A_TIME = 1 << 30
    MAX_STREAMS = 16
    TAIL_SIZE = 4
    FINAL_SIZE = 5
    END_SIZE = TAIL_SIZE + FINAL_SIZE

cdef const char* END = b"\x00\x00\xff\xff\x01\x00\x00\xff\xff"

# Where zlib puts its output first, and the states that are shared: by window bits; by level, window bits, memory level.
cdef char scratch[OUTPUT_SIZE]
cdef z_stream* inflaters[16]
cdef z_stream* deflaters[11][16][10]


cdef void* allocate(void* opaque, unsigned int count, unsigned int size) noexcept:
    return PyMem_RawMalloc(<size_t> count * size)


cdef void release(void* opaque, void* memory) noexcept:
    PyMem_RawFree(memory)


cdef z_stream* new_stream() except NULL:
    cdef z_stream* stream = <z_stream*> PyMem_RawMalloc(sizeof(z_stream))
    if stream == NULL:
        raise MemoryError()
    memset(stream, 0, sizeof(z_stream))
    stream.zalloc = allocate
    stream.zfree = release
    return stream


cdef z_stream* new_inflater(int bits) except NULL:
    cdef z_stream* stream = new_stream()
    if inflateInit2(stream, -bits) != Z_OK:
        PyMem_RawFree(stream)
        raise MemoryError()
    return stream


cdef z_stream* new_deflater(int level, int bits, int memory_level) except NULL:
    cdef z_stream* stream = new_stream()
    if deflateInit2(stream, level, Z_DEFLATED, -bits, memory_level, Z_DEFAULT_STRATEGY) != Z_OK:
        PyMem_RawFree(stream)
        raise MemoryError()
    return stream


cdef class DeflateSession:
    cdef object _compress_if
    cdef Py_ssize_t _min_size
    # A ring once it is full: a window of 32 KiB is not to be moved for each small message.
    cdef char* _window
    cdef Py_ssize_t _window_size, _window_room, _window_next
    # Between the fragments of a message alone; whether a DEFLATE stream has begun there and not ended.
    cdef z_stream* _inflater
    cdef bint _begun
    cdef z_stream* _deflater
    # Whether it lacks the last message that the peer has, one for many sessions: then it begins afresh.
    cdef bint _outdated
    cdef signed char _level, _memory_level, _server_bits, _client_bits
    cdef bint _server_no_context_takeover, _client_no_context_takeover, _inflating, _deflating

    def __init__(
        self,
        int level,
        int memory_level,
        min_size,
        compress_if,
        bint server_no_context_takeover,
        bint client_no_context_takeover,
        int server_bits,
        int client_bits,
    ):
        if not (-1 <= level <= 9 and 1 <= memory_level <= 9 and 9 <= server_bits <= 15 and 8 <= client_bits <= 15):
            raise ValueError("no parameters of zlib")
        self._level = level
        self._memory_level = memory_level
        # No message is longer than the largest of these.
        self._min_size = min(min_size, 2**62)
        self._compress_if = compress_if
        self._server_no_context_takeover = server_no_context_takeover
        self._client_no_context_takeover = client_no_context_takeover
        self._server_bits = server_bits
        self._client_bits = max(client_bits, 9)

    def __dealloc__(self):
        self._end_inflater()
        self._end_deflater()
        PyMem_Free(self._window)

    def __repr__(self):
        takeover = bool(self._server_no_context_takeover), bool(self._client_no_context_takeover)
        bits = f"window bits {self._server_bits} and {self._client_bits}"
        return f"<permessage-deflate by {ZLIB}, {bits}, no takeover {takeover}>"

    cdef void _end_inflater(self) noexcept:
        if self._inflater != NULL:
            inflateEnd(self._inflater)
            PyMem_RawFree(self._inflater)
            self._inflater = NULL
        self._begun = False

    cdef void _end_deflater(self) noexcept:
        if self._deflater != NULL:
            deflateEnd(self._deflater)
            PyMem_RawFree(self._deflater)
            self._deflater = NULL

    def decode(self, frame, limit):
        opcode, payload, fin, rsv = frame
        data = self.inflated((0x80 if fin else 0) | rsv << 4 | opcode, payload, limit)
        return Frame(opcode, data, fin, rsv & ~4) if self._inflating else frame

    cpdef bytes inflated(self, int first, bytes payload, limit):
        cdef Py_ssize_t most = -1 if limit is None else max(limit, 0)
        if first & 0x0F:
            self._inflating = first & RSV1 != 0
        elif first & RSV1:
            raise ProtocolError(1002, "a continuation frame has RSV1 set")
        if self._inflating:
            return self._inflate(payload, first & 0x80 != 0, most)
        if most >= 0 and PyBytes_GET_SIZE(payload) > most:
            raise too_big(most)
        return payload

    cdef bytes _inflate(self, bytes payload, bint fin, Py_ssize_t limit):
        cdef PyObject* result = NULL
        cdef z_stream* stream = self._inflater
        cdef Py_ssize_t size = 0
        if stream == NULL:
            self._begun = False
            if not fin:
                stream = self._inflater = new_inflater(self._client_bits)
            else:
                stream = inflaters[self._client_bits]
                if stream == NULL:
                    stream = inflaters[self._client_bits] = new_inflater(self._client_bits)
        try:
            size = self._run_inflater(stream, payload, limit, &result)
            if fin:
                if self._begun:
                    self._begun = False
                    finish(stream)
                self._end_inflater()
                if self._client_no_context_takeover:
                    PyMem_Free(self._window)
                    self._window = NULL
                    self._window_size = self._window_room = self._window_next = 0
            if result == NULL:
                return PyBytes_FromStringAndSize(scratch, size)
            _PyBytes_Resize(&result, size)
            return <bytes> result
        finally:
            Py_XDECREF(result)

    cdef Py_ssize_t _run_inflater(
        self, z_stream* stream, bytes payload, Py_ssize_t limit, PyObject** result
    ) except -1:
        cdef unsigned char* source = <unsigned char*> PyBytes_AS_STRING(<PyObject*> payload)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(payload)
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t capacity = OUTPUT_SIZE
        cdef Py_ssize_t room, got
        cdef int streams = 0
        cdef int status
        cdef char* target
        while left:
            stream.next_in = source
            stream.avail_in = min(left, INPUT_SIZE)
            source += stream.avail_in
            left -= stream.avail_in
            while True:
                if not self._begun:
                    inflateReset(stream)
                    self._recall(stream)
                    self._begun = True
                room = OUTPUT_SIZE if limit < 0 else min(OUTPUT_SIZE, limit - size + 1)
                if size + room > capacity:
                    capacity = max(2 * capacity, FIRST_SIZE)
                    if limit >= 0:
                        capacity = min(capacity, limit + 1)
                    if result[0] == NULL:
                        result[0] = PyBytes_FromStringAndSize_raw(NULL, capacity)
                        memcpy(PyBytes_AS_STRING(result[0]), scratch, size)
                    else:
                        _PyBytes_Resize(result, capacity)
                target = &scratch[size] if result[0] == NULL else PyBytes_AS_STRING(result[0]) + size
                stream.next_out = <unsigned char*> target
                stream.avail_out = room
                status = inflate(stream, Z_SYNC_FLUSH)
                got = room - stream.avail_out
                if status == Z_MEM_ERROR:
                    raise MemoryError()
                if status != Z_OK and status != Z_STREAM_END and status != Z_BUF_ERROR:
                    raise ProtocolError(1007, "a message is no DEFLATE data")
                if got:
                    size += got
                    if limit >= 0 and size > limit:
                        raise too_big(limit)
                    self._remember(target, got)
                if status == Z_STREAM_END:
                    self._begun = False
                    if not stream.avail_in:
                        break
                    streams += 1
                    if streams > MAX_STREAMS:
                        raise ProtocolError(1008, "a frame has too many DEFLATE streams")
                elif not stream.avail_in and got < room:
                    break
        return size

    cdef void _recall(self, z_stream* stream) noexcept:
        cdef unsigned char* window = <unsigned char*> self._window
        cdef Py_ssize_t oldest = self._window_next if self._window_size == 1 << self._client_bits else 0
        if self._window_size > oldest:
            inflateSetDictionary(stream, window + oldest, self._window_size - oldest)
        if oldest:
            inflateSetDictionary(stream, window, oldest)

    cdef int _remember(self, const char* chunk, Py_ssize_t count) except -1:
        cdef Py_ssize_t size = 1 << self._client_bits
        cdef Py_ssize_t wanted = min(size, self._window_size + count)
        cdef Py_ssize_t before_end
        cdef void* window
        if wanted > self._window_room:
            window = PyMem_Realloc(self._window, wanted)
            if window == NULL:
                raise MemoryError()
            self._window = <char*> window
            self._window_room = wanted
        if count > size:
            chunk += count - size
            count = size
        before_end = min(count, size - self._window_next)
        memcpy(self._window + self._window_next, chunk, before_end)
        memcpy(self._window, chunk + before_end, count - before_end)
        self._window_next = (self._window_next + count) % size
        self._window_size = wanted
        return 0

    def encode(self, frame):
        opcode, payload, fin, rsv = frame
        data = self.deflated(opcode, payload, fin)
        if data is None:
            return frame
        return Frame(opcode, data, fin, rsv | 4 if opcode else rsv)

    cpdef bytes deflated(self, opcode, payload, bint fin):
        cdef bint begins = opcode != 0
        cdef const char* data
        cdef Py_ssize_t size
        if begins:
            self._deflating = False
        elif not self._deflating:
            return None
        if isinstance(payload, str):
            data = PyUnicode_AsUTF8AndSize(payload, &size)
        else:
            if not isinstance(payload, bytes):
                payload = bytes(payload)
            data = PyBytes_AS_STRING(<PyObject*> payload)
            size = PyBytes_GET_SIZE(payload)
        if begins:
            if fin and size < (self._min_size or 1):
                return None
            if self._compress_if is not None:
                whole = payload.encode() if isinstance(payload, str) else payload
                if not self._compress_if(Frame(opcode, whole, fin)):
                    return None
            self._deflating = True
        return self._deflate(data, size, fin)

    def frame_of(self, SharedMessage message):
        cdef bytes payload = message.payload
        cdef SharedFrame frame
        self._deflating = False
        if PyBytes_GET_SIZE(payload) < (self._min_size or 1):
            return message.plain()
        if self._compress_if is not None and not self._compress_if(Frame(message.opcode, payload)):
            return message.plain()
        self._outdated = True
        parameters = self._level + 1 | self._server_bits << 4 | self._memory_level << 8
        made = message.deflated.get(parameters)
        if made is not None:
            return made
        data = run_deflater(
            self._shared_deflater(), PyBytes_AS_STRING(<PyObject*> payload), PyBytes_GET_SIZE(payload), True
        )
        frame = message.deflated[parameters] = SharedFrame(0xC0 | message.opcode, data)
        return frame

    cdef z_stream* _shared_deflater(self) except NULL:
        cdef z_stream** place = &deflaters[self._level + 1][self._server_bits][self._memory_level]
        if place[0] == NULL:
            place[0] = new_deflater(self._level, self._server_bits, self._memory_level)
        deflateReset(place[0])
        return place[0]

    cdef bytes _deflate(self, const char* data, Py_ssize_t size, bint fin):
        cdef z_stream* stream = self._deflater
        if size == 0:
            if fin and self._server_no_context_takeover:
                self._end_deflater()
            return b"\x00" if fin else b""
        if stream == NULL:
            if fin and self._server_no_context_takeover:
                return run_deflater(self._shared_deflater(), data, size, fin)
            stream = new_deflater(self._level, self._server_bits, self._memory_level)
            self._deflater = stream
        elif self._outdated:
            deflateReset(stream)
        self._outdated = False
        try:
            return run_deflater(stream, data, size, fin)
        except BaseException:
            # Cut short: the next message starts a new one, which the peer's window doesn't mind.
            self._end_deflater()
            raise
        finally:
            if fin and self._server_no_context_takeover:
                self._end_deflater()


cdef bytes run_deflater(z_stream* stream, const char* data, Py_ssize_t size, bint fin):
    cdef list chunks = []
    cdef Py_ssize_t tail = TAIL_SIZE if fin else 0
    cdef Py_ssize_t got
    cdef bint last = False
    while not last:
        stream.next_in = <unsigned char*> data
        stream.avail_in = min(size, DEFLATED_AT_A_TIME)
        data += stream.avail_in
        size -= stream.avail_in
        last = size == 0
        while True:
            stream.next_out = <unsigned char*> scratch
            stream.avail_out = OUTPUT_SIZE
            deflate(stream, Z_SYNC_FLUSH if last else Z_NO_FLUSH)
            if stream.avail_out:
                break
            chunks.append(PyBytes_FromStringAndSize(scratch, OUTPUT_SIZE))
        got = OUTPUT_SIZE - stream.avail_out
        if last and not chunks:
            return PyBytes_FromStringAndSize(scratch, got - tail)
        chunks.append(PyBytes_FromStringAndSize(scratch, got))
    whole = b"".join(chunks)
    return whole[: len(whole) - tail]


cdef int finish(z_stream* stream) except -1:
    cdef unsigned char made_up
    cdef int status
    stream.next_in = <unsigned char*> END
    stream.avail_in = END_SIZE
    stream.next_out = &made_up
    stream.avail_out = 1
    status = inflate(stream, Z_SYNC_FLUSH)
    if status != Z_STREAM_END or not stream.avail_out or stream.avail_in not in (0, FINAL_SIZE):
        raise ProtocolError(1007, "a message ends within its DEFLATE data")
    return 0


cdef object too_big(Py_ssize_t limit):
    return ProtocolError(1009, f"a message is larger than {limit} bytes")
