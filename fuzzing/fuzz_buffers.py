"""Whatever is done to a Buffer in whatever order, as far as its contract allows it, both builds hold the same bytes and
both Utf8Validators judge them alike.
"""

from __future__ import annotations

from typing import Any

from fuzzing.builds import fuzz, load
from fuzzing.inputs import records

COMPILED, PURE = load()

from tests.wire import server_frames  # noqa: E402

#: Repetitions of a payload: what fits into the first memory, what grows it, what is beyond what an empty one keeps.
TIMES = (1, 2, 20, 700)


def outgoing(data: bytes) -> None:
    """What a connection writes: frames, large payloads that stay where they lie, and parts taken from the front."""
    compiled, pure = COMPILED.buffer.Buffer(), PURE.buffer.Buffer()
    for first, payload in records(data, 200):
        what, amount = first & 7, payload * TIMES[first >> 3 & 3]
        if what == 0:
            for buffer in (compiled, pure):
                buffer.append(bytearray(amount) if first & 0x40 else memoryview(amount))
        elif what == 1:
            for buffer in (compiled, pure):
                buffer.append_frame(0x82, amount.decode("latin-1") if first & 0x40 else amount)
        elif what in (2, 3) and not amount:
            # Only a large payload has a body of its own.
            continue
        elif what == 2:
            for buffer in (compiled, pure):
                buffer.append_header(0x82, len(amount))
                buffer.append_body(amount)
        elif what == 3:
            for buffer in (compiled, pure):
                buffer.append_body(amount)
        elif what == 4:
            seen = compiled.peek(len(amount) + 1)
            assert seen == pure.peek(len(amount) + 1)[: len(seen)]
            assert bool(seen) == bool(len(pure))
        elif what == 5:
            count = min(len(amount), len(pure))
            for buffer in (compiled, pure):
                buffer.consume(count)
        elif what == 6:
            # What a connection does: as much as the socket takes of a look.
            seen = compiled.peek(65536)
            for buffer in (compiled, pure):
                buffer.consume(len(seen) - len(seen) // 3 if first & 0x40 else len(seen))
        elif first & 0x40:
            for buffer in (compiled, pure):
                buffer.clear()
        assert len(compiled) == len(pure)
    while len(pure):
        seen = compiled.peek(1 << 20)
        assert seen
        assert pure.peek(len(seen)) == seen
        for buffer in (compiled, pure):
            buffer.consume(len(seen))
        assert len(compiled) == len(pure)


def incoming(data: bytes) -> None:
    """What a Reader collects: unmasked pieces, checked as text, then taken as a whole."""
    compiled, pure = COMPILED.buffer.Buffer(), PURE.buffer.Buffer()
    judges = [COMPILED.buffer.Utf8Validator(), PURE.buffer.Utf8Validator()]
    valid = True
    for first, payload in records(data, 200):
        what, amount = first & 7, bytearray(payload * TIMES[first >> 3 & 3])
        before = len(pure)
        if what <= 2:
            # Unmasked with a key of zeros where the text matters, and from any place to any other.
            key = 0 if what < 2 else int.from_bytes(payload[:4], "big")
            start = min(first >> 5, len(amount))
            for buffer in (compiled, pure):
                buffer.append_unmasked(amount, start, len(amount), key, first >> 5)
        elif what == 3:
            compiled.expect(len(amount))
            pure.expect(len(amount))
        elif what == 4:
            assert compiled.take_bytes() == pure.take_bytes()
            judges, valid = [COMPILED.buffer.Utf8Validator(), PURE.buffer.Utf8Validator()], True
        elif what == 5:
            text = text_of(compiled)
            assert text == text_of(pure)
            assert text is not None or not (valid and judges[1].complete)
            for buffer in (compiled, pure):
                buffer.clear()
            judges, valid = [COMPILED.buffer.Utf8Validator(), PURE.buffer.Utf8Validator()], True
        elif what == 6:
            count = min(len(amount), len(pure))
            for buffer in (compiled, pure):
                buffer.consume(count)
            valid = False
        else:
            for buffer in (compiled, pure):
                buffer.append(amount)
        assert len(compiled) == len(pure)
        if valid and len(pure) > before:
            verdicts = [judge.check(buffer, before) for judge, buffer in zip(judges, (compiled, pure), strict=True)]
            assert verdicts[0] == verdicts[1], verdicts
            valid = verdicts[0]
            assert not valid or judges[0].complete == judges[1].complete
    assert compiled.take_bytes() == pure.take_bytes()


def text_of(buffer: Any) -> str | None:
    """All of a buffer as text, or None for what is none."""
    try:
        text: str = buffer.take_text()
    except UnicodeDecodeError:
        return None
    return text


def functions(data: bytes) -> None:
    """The functions over a bytearray, at every place."""
    for first, payload in records(data):
        amount = payload * TIMES[first >> 3 & 3]
        start, end = min(first & 7, len(amount)), max(min(first & 7, len(amount)), len(amount) - (first >> 5))
        key = int.from_bytes(payload[:4], "big")
        results = []
        for build in (COMPILED.buffer, PURE.buffer):
            given = bytearray(amount)
            try:
                text = build.unmasked_text(given, start, end, key)
            except UnicodeDecodeError:
                text = None
            copied = build.copy_bytes(bytearray(amount), start, end)
            unmasked = build.unmasked_bytes(given, start, end, key)
            assert given == amount
            assert text is None or text.encode() == unmasked
            masked = build.Buffer()
            masked.append_frame(0x82, amount, True)
            results.append((text, copied, unmasked, len(masked)))
        assert results[0] == results[1]
        plain = COMPILED.buffer.Buffer()
        plain.append_frame(0x82, amount)
        assert server_frames(plain.take_bytes()) == [(0x82, amount)]


def one_input(data: bytes) -> None:
    """Does to two Buffers what one input says."""
    (outgoing, incoming, functions)[data[0] % 3 if data else 0](data[1:])


if __name__ == "__main__":
    fuzz(one_input)
