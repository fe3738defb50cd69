"""Content converters: objects in messages, what is told of wrong ones, and to whom."""

from __future__ import annotations

import datetime
import enum
import json
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

pytest.importorskip("msgspec")

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import geventws
from geventws import JSONConverter, MsgspecConverter, ProtocolError
from tests.peer import Peer, serving
from tests.programs import PATIENCE, development_server
from tests.wire import close_frame, frame


@dataclass
class Point:
    x: int
    y: int = 0


class Color(enum.Enum):
    RED = "red"


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Everything(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0
    color: Color = Color.RED
    identity: uuid.UUID | None = None
    at: datetime.datetime | None = None
    numbers: list[int] = []
    prices: dict[str, int] = {}
    by_number: dict[int, int] = {}
    animal: Cat | Dog | None = None
    letter: Literal["x", "y"] = "x"
    short: Annotated[str, msgspec.Meta(pattern="^a+$", max_length=3)] = "a"
    large: Annotated[int, msgspec.Meta(ge=3)] = 3
    pair: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.number == 666:
            raise ValueError("SECRET - at `$.number`")


# -- JSON by the standard library --------------------------------------------------------------------------------------


def test_json_in_text_or_binary() -> None:
    for binary, message in ((False, '{"a":"é"}'), (True, '{"a":"é"}'.encode())):
        converter = JSONConverter(binary=binary)
        assert converter.serialize({"a": "é"}) == message
        for data in ('{"a":"é"}', '{"a":"é"}'.encode()):
            assert converter.deserialize(data, dict) == {"a": "é"}


@pytest.mark.parametrize("binary", [1, None, "yes"])
def test_json_binary_is_a_bool(binary: Any) -> None:
    with pytest.raises(ValueError, match="binary must be True or False"):
        JSONConverter(binary=binary)


@pytest.mark.parametrize("message", [r'"\ud800"', r'["\udc00 \ud83d\ude00 \ude00\ud83d"]', r'{"\ud800":"é"}'])
def test_half_a_pair_goes_out_as_it_came(message: str) -> None:
    """JSON may hold half of a surrogate pair as an escape (RFC 8259 8.2), and UTF-8 has no form for it."""
    for binary in (False, True):
        converter = JSONConverter(binary=binary)
        value = converter.deserialize(message)
        answer = converter.serialize(value)
        data = answer if isinstance(answer, bytes) else answer.encode()
        assert converter.deserialize(data) == converter.deserialize(data.decode()) == value


@pytest.mark.parametrize(
    "message", ["1e999", '{"a":[-1E+400]}', "1" * 400 + ".0"], ids=["exponent", "within", "digits"]
)
def test_what_is_read_can_be_sent(message: str) -> None:
    """A number beyond a float's range would be read as infinite, which JSON has no form for."""
    with pytest.raises(ProtocolError, match="1007 a message is not JSON"):
        JSONConverter().deserialize(message)
    assert JSONConverter().deserialize("[1e-999, 1.5e308]") == [0.0, 1.5e308]


# -- msgspec -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("json", None), str),
        (("json", True), bytes),
        (("json", False), str),
        (("msgpack", None), bytes),
        (("msgpack", True), bytes),
    ],
)
def test_objects_and_back(arguments: tuple[Any, bool | None], kind: type) -> None:
    form, binary = arguments
    converter = MsgspecConverter(form, binary=binary)
    message = converter.serialize(Point(1, 2))
    assert type(message) is kind
    assert converter.deserialize(message) == {"x": 1, "y": 2}
    assert converter.deserialize(message, Point) == Point(1, 2)
    assert converter.deserialize(converter.serialize([Point(1)]), list[Point]) == [Point(1)]
    assert converter.deserialize(converter.serialize(None), Point | None) is None
    if form == "json":
        # Of either kind, whatever goes out.
        assert converter.deserialize(b'{"x":1}', Point) == converter.deserialize('{"x":1}', Point) == Point(1)


def test_options_of_msgspec() -> None:
    assert MsgspecConverter(strict=False).deserialize('{"x":"1"}', Point) == Point(1)
    with pytest.raises(ProtocolError):
        MsgspecConverter().deserialize('{"x":"1"}', Point)
    converter = MsgspecConverter(
        enc_hook=lambda value: [value.real, value.imag], dec_hook=lambda type, value: type(*value)
    )
    assert converter.deserialize(converter.serialize(1 + 2j), complex) == 1 + 2j


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('{"number":"SECRET"}', "$.number: Expected `int`, got `str`"),
        ('{"color":"SECRET"}', "$.color: Invalid enum value"),
        ('{"color":"SECRET - at `$.SECRET`"}', "$.color: Invalid enum value"),
        ('{"identity":"SECRET"}', "$.identity: Invalid UUID"),
        ('{"at":"SECRET"}', "$.at: Invalid RFC3339 encoded datetime"),
        ('{"numbers":[1,"SECRET"]}', "$.numbers[1]: Expected `int`, got `str`"),
        ('{"prices":{"SECRET":"SECRET"}}', "$.prices[...]: Expected `int`, got `str`"),
        ('{"by_number":{"SECRET":1}}', "$.by_number: Expected `int`, got `str`"),
        ('{"animal":{"type":"SECRET"}}', "$.animal.type: Invalid value"),
        ('{"animal":{"lives":7}}', "$.animal: Object missing required field `type`"),
        ('{"letter":"SECRET"}', "$.letter: Invalid enum value"),
        ('{"short":"SECRET"}', None),
        ('{"large":1}', "$.large: Expected `int` >= 3"),
        ('{"pair":[1]}', "$.pair: Expected `array` of length 2"),
        ('{"SECRET":1}', "the message: Object contains an unknown field"),
        ('{"number":666}', "not valid"),
        ("[]", "the message: Expected `object`, got `array`"),
    ],
)
def test_what_is_told_names_the_field_but_no_value(message: str, told: str | None) -> None:
    with pytest.raises(ProtocolError) as raised:
        MsgspecConverter().deserialize(message, Everything)
    assert raised.value.code == 1007
    assert "SECRET" not in raised.value.message
    assert told is None or raised.value.message.endswith(told)
    # The developer's log has the rest.
    assert isinstance(raised.value, TypeError)
    assert isinstance(raised.value.__cause__, msgspec.ValidationError)


def test_a_value_at_the_root_is_not_told() -> None:
    for message in ('"SECRET"', '"SECRET - at `$.x`"'):
        with pytest.raises(ProtocolError) as raised:
            MsgspecConverter().deserialize(message, Color)
        assert raised.value.message == "the message: Invalid enum value"


@pytest.mark.parametrize(
    ("form", "message", "told"),
    [
        ("json", "{", "a message is not JSON"),
        ("json", b"\xff", "a message is not JSON"),
        ("json", "[" * 100_000, "a message is not JSON"),
        ("msgpack", b"\xc1", "a message is not MessagePack"),
        ("msgpack", b"\x91" * 100_000, "a message is not MessagePack"),
        ("msgpack", "text", "a message is text, not MessagePack"),
    ],
)
def test_what_is_no_message(form: Any, message: Any, told: str) -> None:
    with pytest.raises(ProtocolError, match=told) as raised:
        # Of any type: a nested one would be found to be wrong at its head.
        MsgspecConverter(form).deserialize(message)
    assert raised.value.code == 1007
    assert not isinstance(raised.value, TypeError)


def test_a_caller_s_own_faults() -> None:
    with pytest.raises(TypeError) as raised:
        MsgspecConverter().deserialize("1", lambda: None)
    assert not isinstance(raised.value, ProtocolError)
    with pytest.raises(TypeError):
        MsgspecConverter().serialize(object())
    with pytest.raises(ValueError, match="format must be"):
        MsgspecConverter("yaml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no text"):
        MsgspecConverter("msgpack", binary=False)
    with pytest.raises(ValueError, match="binary must be"):
        MsgspecConverter(binary=1)  # type: ignore[arg-type]


def test_types_made_for_each_message_do_not_stay() -> None:
    converter = MsgspecConverter()
    for number in range(600):
        assert converter.deserialize(str(number), Literal[number]) == number  # type: ignore[valid-type]
    assert len(converter._decoders) <= 256
    # What can't be hashed is taken too.
    assert converter.deserialize("1", Annotated[int, msgspec.Meta(extra_json_schema={"a": 1})]) == 1


def test_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"geventws\[msgspec\]"):
        MsgspecConverter()


# -- In sessions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> geventws.WebSockets:
    app = geventws.WebSockets()

    def move(session: Any) -> None:
        while True:
            point = session.receive_deserialized(Point)
            session.send_serialized(Point(point.x + 1, point.y))

    app.route("/json", content_converter=MsgspecConverter(), endpoint="json")(move)
    app.route("/msgpack", content_converter=MsgspecConverter("msgpack"), endpoint="msgpack")(move)
    app.route("/binary", content_converter=JSONConverter(binary=True), endpoint="binary")(
        lambda session: session.send_serialized(session.receive_deserialized(list))
    )
    app.route("/any", content_converter=JSONConverter(), endpoint="any")(
        lambda session: session.send_serialized(session.receive_deserialized())
    )

    @app.route("/patient", content_converter=MsgspecConverter())
    def patient(session: Any) -> None:
        try:
            session.receive_deserialized(Point)
        except ProtocolError as error:
            session.send_serialized({"wrong": error.message})

    return app


def test_a_session_of_objects(app: geventws.WebSockets) -> None:
    packed = msgspec.msgpack.encode({"x": 1, "y": 5})
    conversations: list[tuple[str, bytes, tuple[int, Any]]] = [
        ("/json", frame(1, b'{"x":1,"y":5}'), (0x81, b'{"x":2,"y":5}')),
        ("/msgpack", frame(2, packed), (0x82, msgspec.msgpack.encode({"x": 2, "y": 5}))),
        ("/binary", frame(1, b"[1, 2]"), (0x82, b"[1,2]")),
        ("/any", frame(1, rb'{"text":"\ud800"}'), (0x81, rb'{"text":"\ud800"}')),
    ]
    with serving(app) as server:
        for path, sent, answer in conversations:
            with Peer(server, path) as peer:
                peer.accepted()
                peer.send(sent)
                assert peer.frame() == answer
                peer.send(close_frame(1000))


def test_the_peer_is_told_what_was_wrong(app: geventws.WebSockets) -> None:
    with serving(app) as server:
        for sent, reason in (
            (b'{"x":"SECRET"}', b"$.x: Expected `int`, got `str`"),
            (b'{"y":1}', b"the message: Object missing required field `x`"),
            (b"SECRET", b"a message is not JSON"),
            (rb'{"x":1,"SECRET":"\ud800 "}', b"a message is not JSON"),
        ):
            with Peer(server, "/json") as peer:
                peer.accepted()
                peer.send(frame(1, sent))
                assert peer.frame() == (0x88, (1007).to_bytes(2, "big") + reason)
        with Peer(server, "/patient") as peer:
            peer.accepted()
            peer.send(frame(1, b'{"x":null}'))
            assert json.loads(peer.frame()[1]) == {"wrong": "$.x: Expected `int`, got `null`"}


# -- The example -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orders() -> Iterator[str]:
    with development_server("examples.typed:app") as (address, program):
        yield f"ws://{address}/orders"
        assert program.stop() == 0
    assert not [line for line in program.rest() if "Traceback" in line]


def test_the_example(orders: str) -> None:
    with connect(orders, proxy=None) as client:
        client.send('{"item": "tea", "quantity": 2}')
        assert json.loads(client.recv(PATIENCE)) == {"item": "tea", "total": 7.0}
        client.send('{"item": "cake"}')
        assert json.loads(client.recv(PATIENCE)) == {"item": "cake", "total": 4.25}
        client.send('{"item": "sand"}')
        assert json.loads(client.recv(PATIENCE)) == {"unknown": "sand"}
        client.send('{"item": "tea", "quantity": "two"}')
        with pytest.raises(ConnectionClosed):
            client.recv(PATIENCE)
        assert (client.close_code, client.close_reason) == (1007, "$.quantity: Expected `int`, got `str`")


def test_type_checkers_read_the_typed_apps() -> None:
    """In CI, which has mypy: here it is only seen to that CI does so, for mypy takes longer than all of these tests."""
    root = Path(geventws.__file__).parent.parent
    assert re.search(r"/mypy\S* --strict examples/\*\.py tests/typed_app\.py", (root / ".ci" / "run").read_text())
    assert "mypy --strict examples/*.py tests/typed_app.py" in (root / "Makefile").read_text()
