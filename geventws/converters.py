"""What turns objects into messages and back, for ``send_serialized`` and ``receive_deserialized``."""

from __future__ import annotations

import json
from typing import Any, Protocol

from geventws.errors import ProtocolError
from geventws.frames import CloseCode

__all__ = ["ContentConverter", "JSONConverter"]


class ContentConverter(Protocol):
    """Turns objects into messages and back."""

    def serialize(self, value: Any) -> str | bytes:
        """Gives the message for ``value``: a str goes out as text, bytes as binary."""
        ...

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """Gives the object that ``message`` stands for; ``type`` is the expected one, where the converter can use it.

        Raises ``ProtocolError`` with 1007 for a message that is none.
        """
        ...


class _WrongTypeError(ProtocolError, TypeError):
    """A message is another object than the caller expects. It is a ``TypeError`` too, but the peer's fault."""


class JSONConverter:
    """JSON in text messages, by the standard library."""

    def serialize(self, value: Any) -> str:
        """``value`` as JSON; raises ``TypeError`` or ``ValueError`` for what JSON has no form for."""
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """The object in ``message``; raises ``ProtocolError`` (1007) where it is no JSON.

        Where it is no ``type``, what is raised is a ``TypeError`` too.
        """
        try:
            value = json.loads(message, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message is not JSON") from None
        if type is not None and not isinstance(value, type):
            wrong, right = value.__class__.__name__, getattr(type, "__name__", type)
            raise _WrongTypeError(CloseCode.INVALID_PAYLOAD, f"the message is {wrong}, not {right}")
        return value


def _refuse(constant: str) -> Any:
    """Refuses NaN and the infinities, which Python reads though JSON lacks them."""
    raise ValueError(constant)
