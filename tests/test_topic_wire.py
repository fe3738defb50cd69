"""Keys, channels and payloads of topics in Redis, byte by byte."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.topics.nouns import Member, Position
from geventws.topics.wire import (
    GAP,
    MOST_LIVES,
    ORIGINS,
    SEQUENCE_BITS,
    Channel,
    ChannelTable,
    Malformed,
    Names,
    Origins,
    Plain,
    Positioned,
    PresenceChange,
    decode,
    decode_entry,
    encode_gap,
    encode_plain,
    encode_source,
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
    channel = Channel(one, ours, 0, 0)
    assert hash_tag(channel.stream) == hash_tag(channel.members) == tag
    assert theirs not in (channel.stream, channel.members)
    assert Names(another).workers not in (ours, channel.stream, channel.members)


@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("payload", [b"", b"hello", b"\0" * 70000])
def test_messages_without_a_position(opcode: int, payload: bytes) -> None:
    data = encode_plain(opcode, ORIGIN, 258, payload)
    assert data == b"\x01" + (b"T" if opcode == 1 else b"B") + ORIGIN + b"\0\0\0\0\0\0\1\2" + payload
    assert decode(data) == Plain(opcode, ORIGIN, 258, payload)


def test_gaps_without_a_position() -> None:
    data = encode_gap(ORIGIN, 258)
    assert data == b"\x01G" + ORIGIN + b"\0\0\0\0\0\0\1\2"
    assert decode(data) == Plain(GAP, ORIGIN, 258, b"")


def test_messages_with_a_position() -> None:
    source = encode_source(ORIGIN, 258)
    assert source == ORIGIN + b"\0\0\0\0\0\0\1\2"
    assert decode(b"\x01t17-4 " + source + b"hello you") == Positioned(1, Position(17, 4), ORIGIN, 258, b"hello you")
    assert decode(b"\x01b17-4 " + source) == Positioned(2, Position(17, 4), ORIGIN, 258, b"")
    longest = b"9" * 19 + b"-" + b"9" * 19
    end = Position(int("9" * 19), int("9" * 19))
    assert decode(b"\x01b" + longest + b" " + source + b"x") == Positioned(2, end, ORIGIN, 258, b"x")
    gap = decode(b"\x01g17-4 " + source + b"35")
    assert gap == Positioned(GAP, Position(17, 4), ORIGIN, 258, b"35")
    assert gap.lost == 35
    assert (kind_of(1), kind_of(2)) == (b"t", b"b")


def test_members() -> None:
    member = Member("Ada\0 Löve\n", "k.1")
    assert decode(b"\x01Jk.1 Ada\0 L\xc3\xb6ve\n") == PresenceChange("join", member)
    assert decode(b"\x01Lk ") == PresenceChange("leave", Member("", "k"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02T" + ORIGIN * 2,
        b"hello",
        b"\x01X" + ORIGIN * 2,
        b"\x01T1234567",
        b"\x01G" + ORIGIN + b"1234567",
        b"\x01B" + ORIGIN + b"1234567",
        b"\x01t",
        b"\x01t17 x",
        b"\x01t17-4",
        b"\x01t17-4 " + ORIGIN + b"1234567",
        b"\x01g17-4 " + ORIGIN * 2,
        b"\x01g17-4 " + ORIGIN * 2 + b"-1",
        b"\x01g17-4 " + ORIGIN * 2 + b"1" * 20,
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
    source, at = encode_source(ORIGIN, 7), Position(5, 1)

    def entry(*fields: bytes) -> list[object]:
        return [b"5-1", list(fields)]

    assert decode_entry(entry(b"k", b"t", b"s", source, b"p", b"x")) == Positioned(1, at, ORIGIN, 7, b"x")
    # All before it is settled.
    assert decode_entry(entry(b"k", b"b", b"s", source + b"!", b"p", b"")) == Positioned(2, at, ORIGIN, 7, b"")
    assert decode_entry(entry(b"k", b"g", b"s", source + b"!", b"p", b"3")) == Positioned(GAP, at, ORIGIN, 7, b"3")
    for fields in (
        [b"k", b"t"],
        [b"k", b"t", b"p", b"x"],
        [b"p", b"x", b"s", source, b"k", b"t"],
        [b"k", b"x", b"s", source, b"p", b""],
        [b"k", b"", b"s", source, b"p", b""],
        [b"k", b"t", b"s", b"short", b"p", b""],
        [b"k", b"g", b"s", source, b"p", b"x"],
        None,
        [],
    ):
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
    # One that was seen before says nothing new.
    assert origins.missing(ORIGIN, 61) == 0
    assert origins.missing(ORIGIN, 63) == 0
    # It had forgotten the topic, and has begun anew: nobody can tell.
    begun = 1 << SEQUENCE_BITS
    assert origins.missing(ORIGIN, begun + 2) == 0
    assert origins.missing(ORIGIN, begun + 4) == 1
    assert origins.missing(b"another.", 0) == 0
    # A gap tells of all up to its number, of which some are known to have come, or of as many as it says.
    assert origins.missing_up_to(ORIGIN, begun + 9, 7) == 5
    assert origins.missing_up_to(ORIGIN, begun + 9, 7) == 0
    assert origins.missing(ORIGIN, begun + 10) == 0
    assert origins.missing_up_to(b"unknown.", 9, 7) == 7
    assert origins.missing(b"unknown.", 10) == 0
    for number in range(5 * ORIGINS):
        assert origins.missing(b"%8d" % number, number) == 0
    assert len(origins) == ORIGINS
    # Whoever goes on to publish is not forgotten.
    for number in range(5 * ORIGINS):
        assert origins.missing(ORIGIN, 2 * number) == (1 if number else 0)
        origins.missing(b"%8d" % number, 1)
    origins.clear()
    assert len(origins) == 0


def test_what_redis_perhaps_lacks() -> None:
    channel = Channel("a", b"a", 0, 10, MOST_LIVES + 3)
    assert channel.sequence == 3 << SEQUENCE_BITS
    assert channel.sequence < 1 << 53
    channel.settle(5)
    assert channel.first_lost is None
    for sequence in (7, 5, 6):
        channel.lose(sequence)
    assert channel.first_lost == 5
    # One more was lost while Redis was told of those before.
    channel.settle(6)
    assert channel.first_lost == 7
    channel.settle(6)
    assert channel.first_lost == 7
    channel.settle(7)
    assert channel.first_lost is None


def test_the_channels_used_last_are_known() -> None:
    table = ChannelTable(3, lambda topic: Channel(topic, topic.encode(), 0, 0))
    a = table.get("a")
    assert table.get("a") is a
    for name in "bcad":
        table.get(name)
    assert len(table) == 3
    assert table.get("a") is a
    first = [table.get(name) for name in "xyz"]
    assert all(one is not other for one, other in pairwise(first))
    assert table.get("a") is not a
