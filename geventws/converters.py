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
        """Gives the object that ``message`` stands for; ``type`` says which the caller expects, where the converter can use it.

        Raises ``ProtocolError`` with 1007 for a message that is none.
        """
        ...


class JSONConverter:
    """JSON in text messages, by the standard library."""

    def serialize(self, value: Any) -> str:
        """``value`` as JSON; raises ``TypeError`` or ``ValueError`` for what JSON has no form for."""
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def deserialize(self, message: str | bytes, type: Any = None) -> Any:
        """The object in ``message``; raises ``TypeError`` where it is no ``type``, ``ProtocolError`` (1007) where it is no JSON."""
        try:
            value = json.loads(message)
        except (ValueError, RecursionError):
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message is not JSON") from None
        if type is not None and not isinstance(value, type):
            raise TypeError(f"the message is {value.__class__.__name__}, not {type.__name__}")
        return value
