"""The opening handshake by RFC 6455, section by section: environ in, refusal or 101 out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.errors import HandshakeError
from geventws.protocol import handshake
from geventws.protocol.handshake import (
    Handshake,
    accept_value,
    check_origin,
    choose_protocol,
    is_upgrade,
    parse_extensions,
    parse_protocols,
    read_handshake,
    response_head,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def environ(**changes: Any) -> dict[str, Any]:
    """The environ of a browser's handshake, with ``changes``; None leaves a variable out."""
    variables: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "server.example.com",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_ORIGIN": "http://example.com",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        **changes,
    }
    return {name: value for name, value in variables.items() if value is not None}


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` gives, or the refusal that it raises."""
    try:
        return function(*arguments)
    except HandshakeError as error:
        return error


def refusal(**changes: Any) -> HandshakeError:
    """The error that a handshake with ``changes`` raises, its message checked for what all of them must be."""
    error = outcome(read_handshake, environ(**changes))
    assert isinstance(error, HandshakeError)
    check_message(error)
    return error


def check_message(error: HandshakeError) -> None:
    """A message is one line, in ASCII, and a short one, whatever the input was."""
    assert error.message.isascii()
    assert error.message.isprintable()
    assert error.message.endswith(".")
    assert len(error.message) < 300


class TestRFC6455Section421:
    """4.2.1: what a server reads of the client's opening handshake."""

    def test_the_handshake_of_section_1_2(self) -> None:
        protocols = "chat, superchat"
        assert read_handshake(environ(HTTP_SEC_WEBSOCKET_PROTOCOL=protocols)) == Handshake(KEY, ("chat", "superchat"))

    def test_the_handshake_of_a_browser(self) -> None:
        result = read_handshake(
            environ(
                HTTP_CONNECTION="keep-alive, Upgrade",
                HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate; client_max_window_bits",
            )
        )
        assert result == Handshake(KEY, (), (("permessage-deflate", {"client_max_window_bits": None}),))

    @pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "CONNECT", "get", "", "G\x1b[2J"])
    def test_the_method_is_get(self, method: str) -> None:
        """A3 row 37."""
        error = refusal(REQUEST_METHOD=method)
        assert error.status == 405
        assert error.headers == [("Allow", "GET")]
        assert "GET" in error.message

    @pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2", "http/1.1", "", None])
    def test_the_version_of_http_is_1_1(self, version: str | None) -> None:
        """A3 row 37."""
        error = refusal(SERVER_PROTOCOL=version)
        assert error.status == 400
        assert "HTTP/1.1" in error.message

    @pytest.mark.parametrize(
        "body",
        [
            {"CONTENT_LENGTH": "1"},
            {"CONTENT_LENGTH": "-1"},
            {"CONTENT_LENGTH": "0,0"},
            {"CONTENT_LENGTH": "x"},
            {"HTTP_TRANSFER_ENCODING": "chunked"},
            {"HTTP_TRANSFER_ENCODING": ""},
            {"CONTENT_LENGTH": "0", "HTTP_TRANSFER_ENCODING": "chunked"},
        ],
    )
    def test_there_is_no_body(self, body: dict[str, str]) -> None:
        """A3 rows 37 and 38."""
        error = refusal(**body)
        assert error.status == 400
        assert "Content-Length" in error.message

    @pytest.mark.parametrize("length", ["", "0"])
    def test_a_length_of_nothing_is_no_body(self, length: str) -> None:
        assert read_handshake(environ(CONTENT_LENGTH=length)).key == KEY

    @pytest.mark.parametrize(
        "host", [None, "", "a,b", "a:b", "a b", "user@a", "a/b", "http://a", "[::1", "::1", "\xff", "a:080080"]
    )
    def test_the_host_is_one_host(self, host: str | None) -> None:
        """A3 row 38."""
        error = refusal(HTTP_HOST=host)
        assert error.status == 400
        assert "Host" in error.message

    @pytest.mark.parametrize(
        "host", ["a", "a:80", "a:", "A_b.example.", "127.0.0.1:8000", "[::1]", "[::1]:80", "[fe80::1%25eth0]", "a%2db"]
    )
    def test_hosts_that_are_well_formed(self, host: str) -> None:
        assert read_handshake(environ(HTTP_HOST=host)).key == KEY

    @pytest.mark.parametrize(
        "upgrade", [None, "", "h2c", "xwebsocket", "websockets", "web socket", "websocket/13", "websocket;x", ",,"]
    )
    def test_upgrade_lists_websocket(self, upgrade: str | None) -> None:
        """A3 row 37."""
        error = refusal(HTTP_UPGRADE=upgrade)
        assert error.status == 426
        assert error.headers == [("Upgrade", "websocket")]
        assert not is_upgrade(environ(HTTP_UPGRADE=upgrade))

    @pytest.mark.parametrize(
        "upgrade", ["WebSocket", "WEBSOCKET", "h2c, websocket", "websocket,\th2c", ", websocket ,"]
    )
    def test_upgrade_is_a_list_in_whatever_case(self, upgrade: str) -> None:
        assert is_upgrade(environ(HTTP_UPGRADE=upgrade))
        assert read_handshake(environ(HTTP_UPGRADE=upgrade)).key == KEY

    @pytest.mark.parametrize(
        "connection", [None, "", "keep-alive", "close", "xupgrade", "notupgrade", "upgrades", "up grade", "\xa0upgrade"]
    )
    def test_connection_lists_upgrade(self, connection: str | None) -> None:
        """A3 row 37."""
        error = refusal(HTTP_CONNECTION=connection)
        assert error.status == 400
        assert "Connection" in error.message

    @pytest.mark.parametrize(
        "connection", ["upgrade", "UPGRADE", "keep-alive, Upgrade", "Upgrade,keep-alive", ",upgrade,"]
    )
    def test_connection_is_a_list_in_whatever_case(self, connection: str) -> None:
        """A3 row 37."""
        assert read_handshake(environ(HTTP_CONNECTION=connection)).key == KEY

    @pytest.mark.parametrize(
        "key",
        [
            None,
            "",
            "=" * 24,
            KEY[:-1],
            KEY + "=",
            KEY[1:],
            "AAAAAAAAAAAAAAAAAAAA",  # 15 bytes
            "AAAAAAAAAAAAAAAAAAAAAAA=",  # 17 bytes
            "AAAAAAAAAAAAAAAAAAAAAAAA",  # 18 bytes
            "dGhlIHNhbXBsZSBub25j-_==",  # the alphabet of URLs
            "dGhlIHNhbXBsZSBub25jZ\n==",
            "dGhlIHNhbXBsZSBub25jZ\xff==",
            KEY[:-1] + "\n",
            f"{KEY},{KEY}",
            f"{KEY}, {KEY}",
            pytest.param("A" * 1024 * 1024, id="1 MiB"),
        ],
    )
    def test_the_key_is_16_bytes_in_base64(self, key: str | None) -> None:
        """A3 row 35."""
        error = refusal(HTTP_SEC_WEBSOCKET_KEY=key)
        assert error.status == 400
        assert "Sec-WebSocket-Key" in error.message

    @pytest.mark.parametrize("key", ["+/+/+/+/+/+/+/+/+/+/+/==", "0123456789abcdefABCDEF=="])
    def test_the_bits_behind_the_key_may_be_any(self, key: str) -> None:
        """4.2.1: the decoded value is not looked at; so the four bits left over are not either."""
        assert read_handshake(environ(HTTP_SEC_WEBSOCKET_KEY=key)).key == key

    def test_every_message_names_what_is_wrong_and_repeats_little(self) -> None:
        error = refusal(HTTP_SEC_WEBSOCKET_KEY="\x1b[2J\r\nFAKE <script>\u202e\xff" + "A" * 10_000)
        assert len(error.message) < 250
        assert r"\x1b[2J\r\nFAKE" in error.message

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.text(st.characters(max_codepoint=255), max_size=60)
                for name in [
                    "REQUEST_METHOD",
                    "SERVER_PROTOCOL",
                    "CONTENT_LENGTH",
                    "HTTP_HOST",
                    "HTTP_UPGRADE",
                    "HTTP_CONNECTION",
                    "HTTP_SEC_WEBSOCKET_KEY",
                    "HTTP_SEC_WEBSOCKET_VERSION",
                    "HTTP_SEC_WEBSOCKET_PROTOCOL",
                    "HTTP_SEC_WEBSOCKET_EXTENSIONS",
                ]
            },
        )
    )
    def test_nothing_but_a_refusal_leaves(self, changes: dict[str, str]) -> None:
        result = outcome(read_handshake, environ(**changes))
        if isinstance(result, HandshakeError):
            assert result.status in (400, 405, 426)
            check_message(result)
        else:
            response_head(result.key, protocol=next(iter(result.protocols), None))


class TestRFC6455Section44:
    """4.4: versions."""

    @pytest.mark.parametrize("version", [None, "", "8", "7", "0", "12", "14", "013", "13.0", "+13", "hybi", "\xb9\xb3"])
    def test_another_version_is_426_that_names_13(self, version: str | None) -> None:
        """A3 row 36."""
        error = refusal(HTTP_SEC_WEBSOCKET_VERSION=version)
        assert error.status == 426
        assert dict(error.headers) == {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
        assert "Sec-WebSocket-Version" in error.message

    @pytest.mark.parametrize("version", ["13,12", "12,13", "13, 13", "13,", ",13", "8, 7"])
    def test_a_repeated_version_is_400(self, version: str) -> None:
        """A3 row 38."""
        error = refusal(HTTP_SEC_WEBSOCKET_VERSION=version)
        assert error.status == 400
        assert "Sec-WebSocket-Version" in error.message


class TestRFC6455Section1134:
    """11.3.4 and 4.1: Sec-WebSocket-Protocol."""

    @pytest.mark.parametrize(
        ("value", "protocols"),
        [
            ("chat", ("chat",)),
            ("chat,superchat", ("chat", "superchat")),
            (" chat\t, \tsuperchat ", ("chat", "superchat")),
            ("chat, Chat", ("chat", "Chat")),
            (",, chat,, v1,", ("chat", "v1")),
            ("!#$%&'*+-.^_`|~09azAZ", ("!#$%&'*+-.^_`|~09azAZ",)),
            ("constructor, __proto__", ("constructor", "__proto__")),
        ],
    )
    def test_a_list_of_tokens(self, value: str, protocols: tuple[str, ...]) -> None:
        assert read_handshake(environ(HTTP_SEC_WEBSOCKET_PROTOCOL=value)).protocols == protocols

    @pytest.mark.parametrize(
        "value",
        [
            "",
            " ",
            ",",
            " , ,\t",
            "a b",
            "a;b",
            "a/b",
            "a=b",
            '"a"',
            "a\r\nSet-Cookie: x",
            "a\x00",
            "a\x7f",
            "\xff\xfe",  # A3 row 34
            "caf\xe9",
            "a\xa0",  # str.strip would take it for a space
            "a\x85, b",
            "\x1ca",
        ],
    )
    def test_what_is_no_token_is_400(self, value: str) -> None:
        """A3 rows 34 and 39."""
        error = refusal(HTTP_SEC_WEBSOCKET_PROTOCOL=value)
        assert error.status == 400
        assert "Sec-WebSocket-Protocol" in error.message

    @pytest.mark.parametrize("value", ["a, a", "a,b,a", "a,,a"])
    def test_a_protocol_named_twice_is_400(self, value: str) -> None:
        """4.1: the elements are all unique strings."""
        assert refusal(HTTP_SEC_WEBSOCKET_PROTOCOL=value).status == 400

    def test_the_list_is_bounded(self) -> None:
        names = [f"v{number}" for number in range(101)]
        assert len(parse_protocols(",".join(names[:100]))) == 100
        assert refusal(HTTP_SEC_WEBSOCKET_PROTOCOL=",".join(names)).status == 400
        assert parse_protocols("a" * 8192) == ("a" * 8192,)
        assert refusal(HTTP_SEC_WEBSOCKET_PROTOCOL="a" * 8193).status == 400
        assert refusal(HTTP_SEC_WEBSOCKET_PROTOCOL="," * 60_000).status == 400


def reference_extensions(text: str) -> list[tuple[str, dict[str, str | None]]] | None:
    """RFC 6455 9.1 read letter by letter, None where it can't be; slow, and unlike the code under test."""
    token = set("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    position = 0

    def peek() -> str:
        return text[position] if position < len(text) else ""

    def spaces() -> None:
        nonlocal position
        while peek() and peek() in " \t":
            position += 1

    def read_token() -> str:
        nonlocal position
        start = position
        while peek() in token:
            position += 1
        return text[start:position]

    def read_value() -> str:
        nonlocal position
        if peek() != '"':
            return read_token()
        position += 1
        content = ""
        while True:
            character = peek()
            position += 1
            if character == "":
                return ""
            if character == '"':
                return content if set(content) <= token else ""
            if character == "\\":
                character = peek()
                position += 1
            content += character

    extensions = []
    found = False
    while True:
        spaces()
        if peek() not in (",", ""):
            found = True
            name = read_token()
            if not name:
                return None
            parameters: list[tuple[str, str | None]] = []
            spaces()
            while peek() == ";":
                position += 1
                spaces()
                key = read_token()
                value = None
                spaces()
                if peek() == "=":
                    position += 1
                    spaces()
                    value = read_value()
                    spaces()
                if not key or value == "":
                    return None
                parameters.append((key.lower(), value))
            if len(dict(parameters)) == len(parameters):
                extensions.append((name.lower(), dict(parameters)))
        if peek() == "":
            return extensions if found else None
        if peek() != ",":
            return None
        position += 1


class TestRFC6455Section91:
    """9.1: Sec-WebSocket-Extensions."""

    @pytest.mark.parametrize(
        ("value", "extensions"),
        [
            ("foo", [("foo", {})]),
            ("foo; bar; baz=2", [("foo", {"bar": None, "baz": "2"})]),
            ("foo;bar;baz=2", [("foo", {"bar": None, "baz": "2"})]),
            ("foo, bar; baz=2", [("foo", {}), ("bar", {"baz": "2"})]),
            ("foo; a=1, foo; a=2, foo", [("foo", {"a": "1"}), ("foo", {"a": "2"}), ("foo", {})]),
            ('foo; a="1"', [("foo", {"a": "1"})]),
            (r'foo; a="\1\0"', [("foo", {"a": "10"})]),
            ("foo\t;\ta\t=\t1\t,\tbar", [("foo", {"a": "1"}), ("bar", {})]),
            (", ,foo,,bar,", [("foo", {}), ("bar", {})]),
            ("FOO; Bar=Baz", [("foo", {"bar": "Baz"})]),
            (
                "__proto__, constructor; __proto__=__proto__",
                [("__proto__", {}), ("constructor", {"__proto__": "__proto__"})],
            ),
        ],
    )
    def test_the_grammar(self, value: str, extensions: list[Any]) -> None:
        assert read_handshake(environ(HTTP_SEC_WEBSOCKET_EXTENSIONS=value)).extensions == tuple(extensions)
        assert reference_extensions(value) == extensions

    @pytest.mark.parametrize(
        "value",
        [
            "",
            ",",
            ";",
            "=",
            "foo;",
            "foo;;bar",
            "foo; =1",
            "foo; a=",
            "foo; a==1",
            "foo; a=1=2",
            "foo; a=1 2",
            "foo bar",
            "foo=1",
            '"foo"',
            'foo; "a"=1',
            'foo; a="',
            'foo; a=""',
            'foo; a="1',
            'foo; a=1"',
            'foo; a="1"2',
            'foo; a="1 2"',
            'foo; a=" 1"',
            'foo; a="1,2"',
            'foo; a="1;2"',
            'foo; a="1=2"',
            r'foo; a="\""',
            r'foo; a="1\"',
            r'foo; a="\\"',
            r'foo; a="1\\"',
            r'foo; a="\\\1"',
            r'foo; a="\,"',
            r'foo; a="1\", bar; b="2"',
            "foo; a=\xff",
            "f\xf6\xf6",
            "foo\x00",
            "foo\xa0",
            "foo; a=1\x85",
            "__proto__, constructor, ;;,=",  # A3 row 33
        ],
    )
    def test_what_breaks_the_grammar_is_400(self, value: str) -> None:
        """A3 row 33."""
        error = refusal(HTTP_SEC_WEBSOCKET_EXTENSIONS=value)
        assert error.status == 400
        assert "Sec-WebSocket-Extensions" in error.message
        assert reference_extensions(value) is None

    @pytest.mark.parametrize(
        "value", ["foo; a; a, bar", "foo; a=1; a=1, bar", "foo; a; A=1, bar", 'foo; a=1; b; a="2", bar']
    )
    def test_an_extension_that_repeats_a_parameter_is_declined(self, value: str) -> None:
        """RFC 7692 7.1; A2 row 24."""
        assert parse_extensions(value) == (("bar", {}),)

    @given(st.text(st.sampled_from('aB1,;="\\ \t\xff'), max_size=24))
    def test_it_reads_what_the_grammar_says(self, value: str) -> None:
        expected = reference_extensions(value)
        if expected is None:
            with pytest.raises(HandshakeError):
                parse_extensions(value)
        else:
            assert list(parse_extensions(value)) == expected

    def test_the_list_is_bounded(self) -> None:
        assert len(parse_extensions(",".join("a" * 100))) == 100
        assert len(parse_extensions("a" + "".join(f"; p{number}" for number in range(99)))[0][1]) == 99
        for value in [",".join("a" * 101), "a" + ";b" * 100, "a" * 8193, "," * 60_000, ";" * 60_000]:
            assert refusal(HTTP_SEC_WEBSOCKET_EXTENSIONS=value).status == 400


LONG_HEADERS = [
    pytest.param(parse, make, id=f"{parse.__name__}-{name}")
    for name, make in {
        "spaces": lambda size: "b" + " " * size + "x",
        "spaces around commas": lambda size: "b" + " , " * (size // 3),
        "unclosed escapes": lambda size: 'ext; a="' + "\\x" * (size // 2),
        "closed escapes": lambda size: 'ext; a="' + "\\x" * (size // 2) + '"',
        "backslashes": lambda size: 'ext; a="' + "\\" * size + '"',
        "quotation marks": lambda size: "ext; a=" + '"' * size,
        "unclosed quotations": lambda size: 'a; b="' * (size // 6),
        "commas": lambda size: "," * size,
        "semicolons": lambda size: "a" + ";" * size,
        "equals signs": lambda size: "a; b" + "=" * size,
        "extensions": lambda size: "a," * (size // 2),
        "parameters": lambda size: "a" + ";b" * (size // 2),
        "one token": lambda size: "a" * size + "\x00",
        "tabs": lambda size: "\t" * size,
    }.items()
    for parse in (parse_extensions, parse_protocols)
]


class TestLinearTime:
    """A3 row 32: no input makes a parser take more than time in proportion to its length."""

    @pytest.mark.parametrize(("parse", "make"), LONG_HEADERS)
    def test_eight_times_the_input_takes_no_more_than_eight_times_as_long(
        self, parse: Callable[[str], Any], make: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is quadratic takes 64 times as long, of milliseconds; 24 leaves room for a busy machine."""
        monkeypatch.setattr(handshake, "MAX_LIST_LENGTH", sys.maxsize)
        monkeypatch.setattr(handshake, "MAX_LIST_ELEMENTS", sys.maxsize)

        def best(size: int) -> float:
            value = make(size)
            times = []
            for _ in range(7):
                start = time.process_time()
                outcome(parse, value)
                times.append(time.process_time() - start)
            return min(times)

        assert best(64 * 1024) < 24 * best(8 * 1024) + 0.001

    @pytest.mark.parametrize(("parse", "make"), LONG_HEADERS)
    def test_the_bounds_bound_the_work(self, parse: Callable[[str], Any], make: Callable[[int], str]) -> None:
        """Counted in calls, Python's and C's: the longest headers taken, and any longer, take no more than these."""
        for size in (1024, 8000, 64_000):
            calls = 0

            def count(frame: Any, event: str, argument: Any) -> None:
                nonlocal calls
                calls += event in ("call", "c_call")

            value = make(size)
            sys.setprofile(count)
            try:
                outcome(parse, value)
            finally:
                sys.setprofile(None)
            assert calls < 1500

    @pytest.mark.parametrize("name", ["HTTP_ORIGIN", "HTTP_HOST", "HTTP_UPGRADE", "HTTP_CONNECTION"])
    @pytest.mark.parametrize("piece", ["a", ":", "a:", "a://", "[", "[:", "%a", ".", "a,", " ,", "\t", "0", "@"])
    def test_other_fields_take_linear_time_too(self, name: str, piece: str) -> None:
        """Eight times the input takes no more than eight times as long; 24 leaves room for a busy machine."""

        def best(size: int) -> float:
            variables = environ(**{"HTTP_ORIGIN": "http://a", name: piece * (size // len(piece)) + "\x00"})
            times = []
            for _ in range(5):
                start = time.process_time()
                outcome(read_handshake, variables)
                outcome(check_origin, variables, "same")
                outcome(check_origin, variables, ("https://a.example",))
                times.append(time.process_time() - start)
            return min(times)

        assert best(64 * 1024) < 24 * best(8 * 1024) + 0.001

    @pytest.mark.parametrize("value", ["b" + " " * 32_000 + "x", 'ext; a="' + "\\x" * 4000])
    def test_the_inputs_of_the_advisories(self, value: str) -> None:
        """CVE-2021-32640, CVE-2020-7662 and CVE-2020-7663."""
        assert refusal(HTTP_SEC_WEBSOCKET_EXTENSIONS=value).status == 400
        assert refusal(HTTP_SEC_WEBSOCKET_PROTOCOL=value).status == 400

    def test_no_work_is_done_for_a_long_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A3 row 35."""
        monkeypatch.setattr(handshake, "_is_key", None)
        assert refusal(HTTP_SEC_WEBSOCKET_KEY="A" * 1024 * 1024).status == 400


class TestRFC6455Section422:
    """4.2.2: the server's opening handshake."""

    def test_the_accept_value_of_section_1_3(self) -> None:
        assert accept_value(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

    def test_a_plain_101_byte_by_byte(self) -> None:
        """A3 row 40: no header describes a body."""
        assert response_head(KEY) == (
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
            b"\r\n"
        )

    def test_a_full_101_byte_by_byte(self) -> None:
        """A3 row 40."""
        headers = [
            ("Set-Cookie", "a=b; HttpOnly"),
            ("Set-Cookie", "c=d"),
            ("X-Empty", ""),
            ("X-Latin", "caf\xe9\t\xff"),
        ]
        assert response_head(KEY, protocol="chat", extensions="a; b=1, c", headers=headers) == (
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
            b"Sec-WebSocket-Protocol: chat\r\n"
            b"Sec-WebSocket-Extensions: a; b=1, c\r\n"
            b"Set-Cookie: a=b; HttpOnly\r\n"
            b"Set-Cookie: c=d\r\n"
            b"X-Empty: \r\n"
            b"X-Latin: caf\xe9\t\xff\r\n"
            b"\r\n"
        )

    @pytest.mark.parametrize("protocol", ["a\r\nSet-Cookie: x", "a\nb", "a b", "", "a,b", "caf\xe9", "\u4e2d", "a\x00"])
    def test_a_protocol_is_a_token(self, protocol: str) -> None:
        """A3 row 39."""
        with pytest.raises(ValueError, match="Sec-WebSocket-Protocol"):
            response_head(KEY, protocol=protocol)

    @pytest.mark.parametrize("extensions", ["a\r\nSet-Cookie: x", "a\x00", "\u4e2d"])
    def test_extensions_add_no_header(self, extensions: str) -> None:
        """A3 row 39."""
        with pytest.raises(ValueError, match="Sec-WebSocket-Extensions"):
            response_head(KEY, extensions=extensions)

    @pytest.mark.parametrize("key", ["a\r\nSet-Cookie: x", "\u4e2d" * 24])
    def test_the_key_adds_no_header(self, key: str) -> None:
        try:
            head = response_head(key)
        except ValueError:
            return
        assert b"Set-Cookie" not in head

    @pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "a\x00", "\xe9", "\u4e2d", " a", "a ", "a(b)"])
    def test_the_name_of_a_header_is_a_token(self, name: str) -> None:
        """A3 row 39."""
        with pytest.raises(ValueError, match="name of a header"):
            response_head(KEY, headers=[("X-Fine", "1"), (name, "1")])

    @pytest.mark.parametrize(
        "value", ["a\r\nb", "a\nSet-Cookie: x", "a\r", "a\n", "\x00", "\x1b[2J", "\x7f", "\x0b", "\u4e2d", "\u0100"]
    )
    def test_the_value_of_a_header_has_no_control_characters(self, value: str) -> None:
        """A3 row 39."""
        with pytest.raises(ValueError, match="X-Name"):
            response_head(KEY, headers=[("X-Name", value)])

    @pytest.mark.parametrize(
        "name",
        [
            "Connection",
            "UPGRADE",
            "upgrade",
            "Sec-WebSocket-Accept",
            "sec-websocket-protocol",
            "Sec-WebSocket-Extensions",
            "Sec-WebSocket-Version",
            "SEC-WEBSOCKET-ANYTHING",
            "Content-Length",
            "content-length",
            "Transfer-Encoding",
            "Trailer",
        ],
    )
    def test_headers_that_an_app_may_not_set(self, name: str) -> None:
        """A3 rows 39 and 40."""
        with pytest.raises(ValueError, match=name):
            response_head(KEY, headers=[(name, "x")])

    @pytest.mark.parametrize("header", [("X-Count", 5), (b"X-Count", "5"), ("X-Count", b"5"), ("X-Count", None)])
    def test_headers_are_str(self, header: Any) -> None:
        with pytest.raises(TypeError, match="X-Count"):
            response_head(KEY, headers=[header])

    @given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3))
    def test_whatever_is_added_the_head_stays_one(self, headers: list[tuple[str, str]]) -> None:
        try:
            head = response_head(KEY, headers=headers)
        except ValueError:
            return
        lines = head.split(b"\r\n")
        assert lines[-2:] == [b"", b""]
        assert lines[4:-2] == [f"{name}: {value}".encode("latin-1") for name, value in headers]
        assert head.count(b"\n") == head.count(b"\r") == len(lines) - 1

    @pytest.mark.parametrize(
        ("offered", "supported", "chosen"),
        [
            ((), (), None),
            (("a",), (), None),
            ((), ("a",), None),
            (("a", "b"), ("b", "a"), "b"),
            (("a", "b"), ("c", "a"), "a"),
            (("a",), ("A",), None),
            (("a",), ("b", "c"), None),
        ],
    )
    def test_the_server_prefers_a_protocol(
        self, offered: tuple[str, ...], supported: tuple[str, ...], chosen: str | None
    ) -> None:
        assert choose_protocol(offered, supported) == chosen


def allows(origin: str | None, host: str = "a.example", origins: Any = "same") -> bool:
    error = outcome(check_origin, environ(HTTP_HOST=host, HTTP_ORIGIN=origin), origins)
    if error is None:
        return True
    assert error.status == 403
    assert "origins" in error.message
    check_message(error)
    return False


HOSTILE_ORIGINS = [
    "https://evil.example",
    "null",
    "https://a.example.evil",
    "https://evila.example",
    "https://a.example@evil",
    "https://evil@a.example",
    "https://user:password@a.example",
    "https://a.example,https://evil",
    "https://a.example, https://a.example",
    "https://a.example https://evil",
    "https://a.example/",
    "https://a.example/path",
    "https://a.example?x",
    "https://a.example#x",
    "https://a.example\\.evil",
    "https://a.example:",
    "https://a.example:x",
    "https://a.example:443:443",
    "https://a.example:4430000",
    "https://a.example:000443",
    pytest.param("https://a.example:" + "4" * 5000, id="5000 digits"),  # which int refuses
    "https:/a.example",
    "https:a.example",
    "//a.example",
    "a.example",
    "://a.example",
    "https://",
    "https://.",
    "",
    " https://a.example",
    "https://a.example\n",
    "https://a.example\x00",
    "https://a.example\xff",
    "\xff",
    pytest.param("A" * 100_000, id="100 kB"),
]


class TestRFC6455Section102:
    """10.2: which pages may connect; A3 row 41."""

    @pytest.mark.parametrize("origin", HOSTILE_ORIGINS)
    def test_hostile_origins_are_403(self, origin: str) -> None:
        assert not allows(origin)
        assert not allows(origin, origins=("https://a.example", "https://b.example:8443"))

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            (None, "a.example"),
            ("http://a.example", "a.example"),
            ("https://a.example", "a.example"),  # a proxy ends TLS
            ("https://a.example", "a.example:443"),
            ("https://a.example:443", "a.example"),
            ("http://a.example:80", "a.example"),
            ("http://a.example", "a.example:80"),
            ("http://a.example", "a.example:"),
            ("HTTP://A.Example", "a.eXample"),
            ("http://a.example:8000", "a.example:8000"),
            ("https://a.example:8000", "a.example:8000"),
            ("http://localhost:5000", "localhost:5000"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://[::1]:5000", "[::1]:5000"),
            ("http://[::1]", "[::1]"),
            ("https://[2001:DB8::1]", "[2001:db8::1]:443"),
            ("http://my_host", "my_host"),
            ("ws://a.example", "a.example"),
        ],
    )
    def test_the_same_host_passes(self, origin: str | None, host: str) -> None:
        assert allows(origin, host)

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://host:81", "host"),
            ("http://host", "host:81"),
            ("http://host:81", "host:82"),
            ("https://host", "host:80"),
            ("http://host", "host:443"),
            ("http://host", "host."),
            ("http://host", "other"),
            ("http://host", ""),
            ("http://host", "host,host"),
            ("http://host", "user@host"),
            ("http://[::1]", "[::2]"),
            ("http://[::1]", "::1"),
            ("http://[::1]:81", "[::1]"),
            ("chrome-extension://host", "host"),
            ("capacitor://host", "host"),
            ("file://host", "host"),
        ],
    )
    def test_another_host_or_port_is_403(self, origin: str, host: str) -> None:
        assert not allows(origin, host)

    def test_a_list_compares_serialisations(self) -> None:
        """RFC 6454 6.2."""
        origins = ("HTTPS://A.example:443", "http://b.example:8000", "http://[::1]:80", "capacitor://localhost", "null")
        for origin in [
            "https://a.example",
            "https://a.example:443",
            "HTTPS://A.EXAMPLE",
            "http://b.example:8000",
            "http://[::1]",
            "capacitor://localhost",
            "null",
            None,
        ]:
            assert allows(origin, "elsewhere", origins), origin
        for origin in [
            "http://a.example",
            "https://a.example:80",
            "https://b.example:8000",
            "http://b.example",
            "http://elsewhere",
            "capacitor://localhost:1",
            "NULL",
            "",
        ]:
            assert not allows(origin, "elsewhere", origins), origin

    def test_an_empty_list_allows_no_page(self) -> None:
        assert not allows("https://a.example", origins=())
        assert allows(None, origins=())

    def test_an_origin_that_is_none_matches_no_garbage(self) -> None:
        assert not allows("garbage", origins=("garbage",))
        assert not allows("more garbage", origins=("garbage",))

    @pytest.mark.parametrize("origin", [*HOSTILE_ORIGINS, None, "https://a.example"])
    def test_none_lets_all_in(self, origin: str | None) -> None:
        assert allows(origin, origins=None)

    @given(
        st.text(st.characters(max_codepoint=255), max_size=40), st.text(st.characters(max_codepoint=255), max_size=40)
    )
    def test_nothing_but_a_refusal_leaves(self, origin: str, host: str) -> None:
        allows(origin, host)
        allows(f"https://{origin}", host, ("https://a.example",))
