"""Keys, channels and payloads of topics in Redis, byte by byte."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.topics.nouns import Member, Position
from geventws.topics.wire import (
    ORIGINS,
    Malformed,
    Names,
    Origins,
    Plain,
    Positioned,
    PresenceChange,
    Topic,
    TopicTable,
    decode,
    decode_entry,
    encode_plain,
    encode_presence,
    is_text,
    kind_of,
    missing_before,
)

ORIGIN = b"8 bytes."
names_of_topics = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: len(name.encode()) <= 255
)


def hash_tag(channel: bytes) -> bytes:
    """As the specification of Redis Cluster has it."""
    start = channel.index(b"{")
    end = channel.index(b"}", start + 1)
    return channel[start + 1 : end]


def test_names() -> None:
    names = Names("geventws")
    assert names.channel("room/7") == b"geventws:{room/7}"
    assert names.channel("*") == b"geventws:{*}"
    assert names.channel("{}") == b"geventws:{{%7D}"
    assert names.channel("%7D") == b"geventws:{%257D}"
    assert names.channel("\r\n\0") == b"geventws:{\r\n\0}"
    assert names.channel("é" * 127) == b"geventws:{" + "é".encode() * 127 + b"}"
    assert names.workers == b"geventws:workers"
    assert names.worker("ab.1") == b"geventws:worker:ab.1"


@pytest.mark.parametrize("topic", ["", "x" * 256, "é" * 128, "\ud800"])
def test_what_is_no_topic(topic: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Names("geventws").channel(topic)


@pytest.mark.parametrize("namespace", ["", "x" * 65, "a:b", "a b", "a{", "é", "a\n", None, b"x"])
def test_what_is_no_namespace(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace must be"):
        Names(namespace)


@given(names_of_topics, names_of_topics, st.sampled_from(["a", "a.b", "b"]), st.sampled_from(["a", "a.b", "b"]))
def test_no_two_topics_share_a_key(one: str, other: str, namespace: str, another: str) -> None:
    ours, theirs = Names(namespace).channel(one), Names(another).channel(other)
    assert (ours == theirs) == ((namespace, one) == (another, other))
    # Its stream and members are in the same slot, and are nobody's channel.
    tag = hash_tag(ours)
    assert tag
    topic = Topic(one, ours, 0, 0)
    assert hash_tag(topic.stream) == hash_tag(topic.members) == tag
    assert theirs not in (topic.stream, topic.members)
    assert Names(another).workers not in (ours, topic.stream, topic.members)


@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("payload", [b"", b"hello", b"\0" * 70000])
def test_messages_without_a_position(opcode: int, payload: bytes) -> None:
    data = encode_plain(opcode, ORIGIN, 258, payload)
    assert data == b"\x01" + (b"T" if opcode == 1 else b"B") + ORIGIN + b"\0\0\0\0\0\0\1\2" + payload
    assert decode(data) == Plain(opcode, ORIGIN, 258, payload)


def test_messages_with_a_position() -> None:
    assert decode(b"\x01t17-4 hello you") == Positioned(1, Position(17, 4), b"hello you")
    assert decode(b"\x01b17-4 ") == Positioned(2, Position(17, 4), b"")
    longest = b"9" * 19 + b"-" + b"9" * 19
    assert decode(b"\x01b" + longest + b" x") == Positioned(2, Position(int("9" * 19), int("9" * 19)), b"x")
    assert (kind_of(1), kind_of(2)) == (b"t", b"b")


def test_members() -> None:
    member = Member("Ada\0 Löve\n", "k.1")
    assert encode_presence("join", member) == b"\x01Jk.1 Ada\0 L\xc3\xb6ve\n"
    assert decode(encode_presence("join", member)) == PresenceChange("join", member)
    assert decode(encode_presence("leave", Member("", "k"))) == PresenceChange("leave", Member("", "k"))
    for key in ("", "a b"):
        with pytest.raises(ValueError, match="a member's key"):
            encode_presence("join", Member("Ada", key))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02T" + ORIGIN * 2,
        b"hello",
        b"\x01X" + ORIGIN * 2,
        b"\x01T1234567",
        b"\x01B" + ORIGIN + b"1234567",
        b"\x01t",
        b"\x01t17 x",
        b"\x01t17-4",
        b"\x01t-4 x",
        b"\x01t17-4x x",
        b"\x01t\xb2-1 x",
        b"\x01t" + b"9" * 20 + b"-1 x",
        b"\x01b" + b"1" * 100 + b" ",
        b"\x01J",
        b"\x01J ",
        b"\x01Jkey",
        b"\x01L name",
        b"\x01Jk \xff",
        pickle.dumps({"method": "emit"}),
        pickle.dumps(["x"], 0),
    ],
)
def test_what_is_no_payload(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_something_or_malformed(data: bytes, ours: bool) -> None:
    try:
        decode(b"\x01" + data if ours else data)
    except Malformed:
        pass


def test_entries_of_a_stream() -> None:
    assert decode_entry([b"5-1", [b"k", b"t", b"p", b"x"]]) == (1, b"x")
    assert decode_entry([b"5-1", [b"k", b"b", b"p", b""]]) == (2, b"")
    for fields in ([b"k", b"t"], [b"p", b"x", b"k", b"t"], [b"k", b"x", b"p", b""], None, []):
        with pytest.raises(Malformed):
            decode_entry([b"5-1", fields])


def test_what_is_text() -> None:
    assert is_text(b"")
    assert is_text(b"abc\0")
    assert is_text("Ä€😀".encode())
    assert not is_text(b"\xff")
    assert not is_text(b"\xed\xa0\x80")


def test_what_is_missing_of_a_history() -> None:
    assert missing_before(Position(5, 3), Position(5, 3), []) == 0
    assert missing_before(Position(5, 3), Position(5, 6), [4, 5, 6]) == 0
    assert missing_before(Position(5, 3), Position(5, 9), [8, 9]) == 4
    assert missing_before(Position(5, 3), Position(6, 1), [1]) is None
    assert missing_before(Position(5, 3), Position(5, 2), []) is None


def test_what_is_missing_of_an_origin() -> None:
    origins = Origins()
    # Nothing is known of what was before the first.
    assert origins.missing(ORIGIN, 57) == 0
    assert origins.missing(ORIGIN, 58) == 0
    assert origins.missing(ORIGIN, 62) == 3
    # It has begun anew, and the first ones were lost: nobody can tell.
    assert origins.missing(ORIGIN, 2) == 0
    assert origins.missing(ORIGIN, 3) == 0
    assert origins.missing(b"another.", 0) == 0
    assert origins.missing(ORIGIN, 0) == 0
    for number in range(5 * ORIGINS):
        assert origins.missing(b"%8d" % number, number) == 0
    assert len(origins) == ORIGINS


def test_the_topics_used_last_are_known() -> None:
    table = TopicTable(3, lambda name: Topic(name, name.encode(), 0, 0))
    a = table.get("a")
    assert table.get("a") is a
    for name in "bcad":
        table.get(name)
    assert len(table) == 3
    assert table.get("a") is a
    first = [table.get(name) for name in "xyz"]
    assert all(one is not other for one, other in pairwise(first))
    assert table.get("a") is not a
