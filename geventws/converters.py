"""What turns objects into messages and back, for ``send_serialized`` and ``receive_deserialized``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isinf
from typing import Any, Literal, Protocol

from geventws.arguments import check_flag, check_function, missing_extra, shown
from geventws.errors import ProtocolError
from geventws.frames import CloseCode

__all__ = ["ContentConverter", "JSONConverter", "MsgspecConverter"]

#: Types that a converter keeps a decoder of.
_DECODERS = 256


class ContentConverter(Protocol):
    """Turns objects into messages and back.

    One converter serves all sessions of an app, from any greenlet: it must not block, nor keep anything of a session.
    The caller handles what `serialize` raises. For a bad message `deserialize` raises a ``ProtocolError``, whose text
    the peer gets as the reason: it should say what is wrong, and contain nothing that the peer may not know.
    """

    def serialize(self, value: Any) -> str | bytes:
        """Returns the message for ``value``: a str goes out as text, bytes as binary."""
        ...

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """Returns the object in ``message``; ``type`` is the expected type, if the converter can use it.

        Raises ``ProtocolError`` with 1007 for a message that it can't read.
        """
        ...


class _WrongTypeError(ProtocolError, TypeError):
    """A message is another object than the caller expects. It is a ``TypeError`` too, but the peer's fault."""


class JSONConverter:
    """JSON with the standard library, sent as text, or as binary with ``binary``. It reads either.

    ``type`` is a class, and the object must be an instance of it; `MsgspecConverter` checks more.
    """

    def __init__(self, *, binary: bool = False) -> None:
        check_flag("binary", binary)
        self._binary = binary

    def serialize(self, value: Any) -> str | bytes:
        """``value`` as JSON; raises ``TypeError`` or ``ValueError`` for a value that JSON can't hold."""
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        if not self._binary and text.isascii():
            return text
        try:
            data = text.encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair, as a peer may have sent it: JSON has an escape for it (RFC 8259 8.2), UTF-8
            # nothing. To refuse it at reading would end the connection of whoever pastes half an emoji.
            text = json.dumps(value, separators=(",", ":"), allow_nan=False)
            data = text.encode()
        return data if self._binary else text

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """The object in ``message``; raises ``ProtocolError`` (1007) if it isn't JSON, or not of ``type``.

        In the second case the error is a ``TypeError`` too.
        """
        try:
            value = json.loads(message, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message is not JSON") from None
        if type is not None and not isinstance(value, type):
            wrong, right = value.__class__.__name__, getattr(type, "__name__", type)
            raise _WrongTypeError(CloseCode.INVALID_PAYLOAD, f"the message is {wrong}, not {right}")
        return value


def _refuse(constant: str) -> Any:
    """Refuses NaN and the infinities, which Python reads though JSON lacks them."""
    raise ValueError(constant)


def _finite(text: str) -> float:
    """Refuses numbers that Python reads as infinite: what was received could not be sent."""
    value = float(text)
    if isinf(value):
        raise ValueError(text)
    return value


class MsgspecConverter:
    """Typed JSON or MessagePack with msgspec (the extra ``msgspec``).

    ``receive_deserialized`` returns an object of the type that you ask for: a ``msgspec.Struct``, a dataclass, a
    ``TypedDict``, ``list[int]``, a union and so on, checked field by field.

    :param format: ``"json"`` or ``"msgpack"``.
    :param binary: whether messages go out as binary; by default JSON as text. MessagePack is always binary. JSON is
        read from either.
    :param strict: msgspec's own option: with False, a str that looks like a number is accepted as one.
    :param enc_hook: msgspec calls it with an object that it doesn't know, to get one that it does.
    :param dec_hook: msgspec calls it with a type that it doesn't know, and an object to make into one.

    Raises ``ImportError`` without msgspec, ``ValueError`` that names the option.
    """

    def __init__(
        self,
        format: Literal["json", "msgpack"] = "json",
        *,
        binary: bool | None = None,
        strict: bool = True,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        try:
            import msgspec
        except ModuleNotFoundError as error:
            raise missing_extra(error, "msgspec", "MsgspecConverter", "msgspec") from None
        if format not in ("json", "msgpack"):
            raise ValueError(f'format must be "json" or "msgpack", not {shown(format)}')
        if format == "msgpack" and binary is False:
            raise ValueError("binary must be True or None for MessagePack, which is no text")
        if binary is not None:
            check_flag("binary", binary)
        check_flag("strict", strict)
        check_function("enc_hook", enc_hook, "an object")
        check_function("dec_hook", dec_hook, "a type and an object")
        self._binary = format == "msgpack" if binary is None else binary
        self._msgspec = msgspec
        self._format = format
        self._name = "JSON" if format == "json" else "MessagePack"
        kind: Any = msgspec.json if format == "json" else msgspec.msgpack
        self._encode: Callable[[Any], bytes] = kind.Encoder(enc_hook=enc_hook).encode
        self._make: Callable[[Any], Any] = lambda type: kind.Decoder(type, strict=strict, dec_hook=dec_hook)
        self._decoders: dict[Any, Any] = {}

    def serialize(self, value: Any) -> str | bytes:
        """``value`` as a message; raises ``TypeError`` for a type that msgspec doesn't know."""
        data = self._encode(value)
        return data if self._binary else data.decode()

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """The object in ``message``, of ``type``; raises ``ProtocolError`` (1007) for any other message.

        The error's text, which the peer gets as the reason, names the field and what was expected there, but never a
        value; msgspec's own error is its cause. If only the type is wrong, it is a ``TypeError`` too. Raises a plain
        ``TypeError`` for a ``type`` that msgspec doesn't know.
        """
        if self._format == "msgpack" and isinstance(message, str):
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message is text, not MessagePack")
        decoder = self._decoder(Any if type is None else type)
        try:
            return decoder.decode(message)
        except self._msgspec.ValidationError as error:
            raise _WrongTypeError(CloseCode.INVALID_PAYLOAD, _reason(error)) from error
        except (self._msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, f"a message is not {self._name}") from error

    def _decoder(self, type: Any) -> Any:
        try:
            decoder = self._decoders.get(type)
        except TypeError:
            # As an Annotated is with what can't be hashed.
            return self._make(type)
        if decoder is None:
            decoder = self._make(type)
            if len(self._decoders) >= _DECODERS:
                # Types that are made anew for each message would stay for ever.
                self._decoders.clear()
            self._decoders[type] = decoder
        return decoder


#: Where msgspec found something: "- at `$.items[1].name`", of a key "- at `key` in `$.prices`".
_PLACE = re.compile(r"(.*) - at (?:`key` in )?`(\$[^`']*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `[^`]*`")
#: "Invalid UUID" and the like. "Invalid enum value 'x'" goes on with the value.
_INVALID = re.compile(r"Invalid (?:enum value|value|[A-Za-z0-9 ]+$)")


def _reason(error: Exception) -> str:
    """What is wrong with a message and where, without anything that came in it."""
    told = str(error)
    found = _PLACE.fullmatch(told)
    what, place = (found[1], found[2]) if found is not None else (told, "the message")
    if error.__cause__ is not None:
        # What a hook or a __post_init__ of the app said, who knows what of.
        what = "not valid"
    elif what.startswith("Object contains unknown field"):
        what = "Object contains an unknown field"
    elif not (what.startswith("Expected `") or _MISSING.fullmatch(what)):
        invalid = _INVALID.match(what)
        what = "not valid" if invalid is None else invalid[0]
    return f"{place}: {what}"
