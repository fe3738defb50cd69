"""Agreeing on extensions: RFC 6455 9.1 for any, RFC 7692 7.1 for permessage-deflate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest

from geventws.frames import Frame
from geventws.protocol.deflate import PermessageDeflate
from geventws.protocol.extensions import Extension
from geventws.protocol.handshake import negotiate, parse_extensions

Parameters = Mapping[str, "str | None"]


class Session:
    """A session's instance of no extension at all."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        return frame

    def encode(self, frame: Frame) -> Frame:
        return frame


class Fake:
    """An extension that accepts the offers that it is told to, and answers with their parameters or its own."""

    def __init__(
        self, name: str, rsv: int = 0, only: Parameters | None = None, answer: Parameters | None = None
    ) -> None:
        self.name = name
        self.rsv = rsv
        self.only = only
        self.answer = answer
        self.offers: list[Parameters] = []

    def accept(self, parameters: Parameters) -> tuple[Parameters, Session] | None:
        self.offers.append(parameters)
        if self.only is not None and parameters != self.only:
            return None
        return (parameters if self.answer is None else self.answer), Session(parameters)


def answer(header: str, *extensions: Extension) -> str | None:
    """What the server answers to a client's Sec-WebSocket-Extensions."""
    value, sessions = negotiate(parse_extensions(header), extensions)
    assert len(sessions) == (0 if value is None else value.count(",") + 1)
    return value


class TestRFC6455Section91:
    """9.1: which extensions are agreed on, and in which order."""

    def test_nothing_offered_or_nothing_configured(self) -> None:
        assert negotiate((), [Fake("a")]) == (None, [])
        assert negotiate(parse_extensions("a, b"), []) == (None, [])
        assert answer("a, b", Fake("c")) is None

    def test_the_answer_is_in_the_server_s_order_which_is_the_order_of_use(self) -> None:
        first, second = Fake("b", 4), Fake("a", 2)
        value, sessions = negotiate(parse_extensions("a; x, b; y=1"), [first, second])
        assert value == "b; y=1, a; x"
        assert [session.parameters for session in sessions if isinstance(session, Session)] == [{"y": "1"}, {"x": None}]

    def test_the_first_acceptable_of_several_offers_is_taken(self) -> None:
        """RFC 7692 5.1: a client lists fallbacks."""
        extension = Fake("a", only={"x": "2"})
        assert answer("a; x=1, b, a; x=2, a; x=3", extension) == "a; x=2"
        assert extension.offers == [{"x": "1"}, {"x": "2"}]

    def test_none_acceptable(self) -> None:
        assert answer("a; x=1, a; x=2", Fake("a", only={})) is None

    def test_each_extension_is_agreed_on_once(self) -> None:
        assert answer("a, a; x", Fake("a"), Fake("a")) == "a"

    def test_two_that_claim_one_rsv_bit_are_never_both_agreed_on(self) -> None:
        assert answer("a, b, c", Fake("a", 4), Fake("b", 6), Fake("c", 2)) == "a, c"
        assert answer("a, b", Fake("a", 0), Fake("b", 0)) == "a, b"

    def test_one_that_is_declined_claims_no_bit(self) -> None:
        assert answer("a, b", Fake("a", 4, only={"x": None}), Fake("b", 4)) == "b"

    def test_names_are_compared_in_whatever_case_and_answered_as_configured(self) -> None:
        assert answer("x-THING; Key=Value", Fake("X-Thing")) == "X-Thing; key=Value"

    @pytest.mark.parametrize("value", ['a"b', "", "a b", "a,b", "a;b", "a\r\nSet-Cookie: x", "\xff"])
    def test_an_answer_is_of_tokens(self, value: str) -> None:
        """9.1: a quoted value must be a token as well, so what would need quotes can't be said."""
        with pytest.raises(ValueError, match="extension a"):
            answer("a", Fake("a", answer={"x": value}))
        with pytest.raises(ValueError, match="extension a"):
            answer("a", Fake("a", answer={value: None}))

    def test_names_of_attributes_are_names_like_others(self) -> None:
        """A3 row 33."""
        assert answer("__proto__, constructor, __class__; accept", PermessageDeflate()) is None
        assert answer("permessage-deflate; __proto__, permessage-deflate; constructor=1", PermessageDeflate()) is None


def expected_answer(options: dict[str, Any], offer: dict[str, str | None]) -> str | None:
    """RFC 7692 7.1 as a table of its own: the answer of a server with ``options`` to ``offer``."""
    numbers = ["8", "9", "10", "11", "12", "13", "14", "15"]
    known = {
        "server_no_context_takeover": [None],
        "client_no_context_takeover": [None],
        "server_max_window_bits": numbers[1:],  # zlib can't compress with 8
        "client_max_window_bits": [None, *numbers],
    }
    if any(name not in known or value not in known[name] for name, value in offer.items()):
        return None
    words = ["permessage-deflate"]
    words += [name for name in list(known)[:2] if name in offer or options.get(name, False)]
    server = options.get("server_max_window_bits", 12)
    if server == 8:
        return None
    if "server_max_window_bits" in offer:
        words.append(f"server_max_window_bits={min(server, int(offer['server_max_window_bits'] or 0))}")
    elif server < 15:
        words.append(f"server_max_window_bits={server}")
    if "client_max_window_bits" in offer:
        client = options.get("client_max_window_bits", 12)
        words.append(f"client_max_window_bits={min(client, int(offer['client_max_window_bits'] or 15))}")
    return "; ".join(words)


ABSENT = "absent"
FLAGS = [ABSENT, None, "", "1", "true"]
BITS = [ABSENT, None, *map(str, range(17)), "08", "8.0", "015", "+9", "-9", " 9", "", "x", "1e1", "\u0661\u0662"]


class TestRFC7692Section71:
    """7.1: every combination of parameters."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"server_no_context_takeover": True},
            {"client_no_context_takeover": True},
            {"server_no_context_takeover": True, "client_no_context_takeover": True},
            {"server_max_window_bits": 9, "client_max_window_bits": 8},
            {"server_max_window_bits": 15, "client_max_window_bits": 15},
            {"server_max_window_bits": 10},
            {"server_max_window_bits": 8},
            {"client_max_window_bits": 14},
        ],
    )
    def test_every_offer(self, options: dict[str, Any]) -> None:
        extension = PermessageDeflate(**options)
        for values in product(FLAGS, FLAGS, BITS, BITS):
            names = (
                "server_no_context_takeover",
                "client_no_context_takeover",
                "server_max_window_bits",
                "client_max_window_bits",
            )
            offer = {name: value for name, value in zip(names, values, strict=True) if value != ABSENT}
            value, _ = negotiate([("permessage-deflate", offer)], [extension])
            assert value == expected_answer(options, offer), offer

    @pytest.mark.parametrize(
        "offer",
        [
            "server_max_window_bits=7",
            "server_max_window_bits=8",
            "server_max_window_bits=16",
            "server_max_window_bits=0",
            "server_max_window_bits=08",
            "server_max_window_bits=8.0",
            "server_max_window_bits",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            "client_max_window_bits; client_max_window_bits",
            "server_max_window_bits=10; server_max_window_bits=10",
            "server_no_context_takeover; server_no_context_takeover",
            "unknown",
            "client_max_window_bits; unknown=1",
        ],
    )
    def test_an_offer_that_makes_no_sense_is_declined_for_the_next_one(self, offer: str) -> None:
        """A2 row 24; RFC 7692 7.1: unknown, repeated and senseless parameters decline an offer, and nothing else."""
        assert answer(f"permessage-deflate; {offer}", PermessageDeflate()) is None
        both = f"permessage-deflate; {offer}, permessage-deflate"
        assert answer(both, PermessageDeflate()) == "permessage-deflate; server_max_window_bits=12"

    def test_a_quoted_value(self) -> None:
        """RFC 7692 5.2 has the example of a quoted value."""
        assert answer('permessage-deflate; server_max_window_bits="10"', PermessageDeflate()) == (
            "permessage-deflate; server_max_window_bits=10"
        )

    @pytest.mark.parametrize(
        ("client", "offer", "expected"),
        [
            (
                "Chromium and Firefox",
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
            ),
            ("Safari", "permessage-deflate", "permessage-deflate; server_max_window_bits=12"),
            ("an old Safari", "x-webkit-deflate-frame", None),
            (
                "RFC 7692 5.1",
                "permessage-deflate; client_max_window_bits; server_max_window_bits=10, "
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; server_max_window_bits=10; client_max_window_bits=12",
            ),
            (
                "one that says that it uses no context",
                "permessage-deflate; client_no_context_takeover",
                "permessage-deflate; client_no_context_takeover; server_max_window_bits=12",
            ),
            (
                "one that can't do what it should",
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_no_context_takeover",
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=12",
            ),
        ],
    )
    def test_clients_as_they_are(self, client: str, offer: str, expected: str | None) -> None:
        assert answer(offer, PermessageDeflate()) == expected

    def test_sessions_share_nothing_but_the_options(self) -> None:
        extension = PermessageDeflate()
        offers = parse_extensions("permessage-deflate")
        assert negotiate(offers, [extension])[1][0] is not negotiate(offers, [extension])[1][0]


class TestOptions:
    """What can't be right is told at construction, by the option's name."""

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("server_no_context_takeover", [None, 0, 1, "yes"]),
            ("client_no_context_takeover", [None, 0, 1, "yes"]),
            ("server_max_window_bits", [7, 16, 0, -12, True, None, "12", 12.0]),
            ("client_max_window_bits", [7, 16, 0, -12, True, None, "12", 12.0]),
            ("level", [-2, 10, True, None, "6", 6.0]),
            ("memory_level", [0, 10, True, None, "5", 5.0]),
            ("min_size", [-1, True, None, "64", 64.0]),
            ("compress_if", [True, "text", 5]),
        ],
    )
    def test_bad_values(self, name: str, values: list[Any]) -> None:
        for value in values:
            with pytest.raises(ValueError, match=name):
                PermessageDeflate(**{name: value})

    def test_good_values(self) -> None:
        for bits in range(9, 16):
            assert PermessageDeflate(server_max_window_bits=bits).server_max_window_bits == bits
        for bits in range(8, 16):
            assert PermessageDeflate(client_max_window_bits=bits).client_max_window_bits == bits
        for level in range(-1, 10):
            assert PermessageDeflate(level=level).level == level
        for level in range(1, 10):
            assert PermessageDeflate(memory_level=level).memory_level == level

    def test_options_are_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            PermessageDeflate(True)  # type: ignore[misc]

    def test_repr_names_the_options(self) -> None:
        assert "level=3" in repr(PermessageDeflate(level=3))
