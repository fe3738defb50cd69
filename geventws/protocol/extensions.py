"""What an extension is (RFC 6455 9): negotiated once a handshake, then frames in and frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from geventws.frames import Frame

__all__ = ["ClientExtension", "Extension", "ExtensionSession"]


class ExtensionSession(Protocol):
    """One session's instance of a negotiated extension. It gets every data frame, but no control frames.

    Frames pass through the negotiated extensions in their order on the way out, and in reverse on the way in. One that
    works on messages looks at ``fin``, and keeps what it needs until then.
    """

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        """Decodes a received frame: returns it with its own RSV bits cleared, and at most ``limit`` bytes of payload.

        Raises ``ProtocolError`` with 1009 as soon as the limit is exceeded, with 1002 or 1007 for an invalid frame.
        """
        ...

    def encode(self, frame: Frame) -> Frame:
        """Encodes a frame: returns the one to send for ``frame``."""
        ...


class Extension(Protocol):
    """An extension as an app configures it, shared by all its sessions."""

    #: The token that names it in Sec-WebSocket-Extensions.
    name: str
    #: The RSV bits that it claims: 4 for RSV1, 2 for RSV2, 1 for RSV3, or their sum; 0 for none.
    rsv: int

    def accept(self, parameters: Mapping[str, str | None]) -> tuple[Mapping[str, str | None], ExtensionSession] | None:
        """Answers a client's offer: returns the parameters to agree on and a session's instance, or None to decline.

        ``parameters`` are those of the offer: names in lower case, values unquoted, None for one without a value.
        Decline an invalid offer too, instead of raising.
        """
        ...


class ClientExtension(Extension, Protocol):
    """An extension that clients can offer too."""

    def offers(self) -> Sequence[Mapping[str, str | None]]:
        """The parameters of each offer, in order of preference; names and values are tokens, None is no value."""
        ...

    def agree(self, parameters: Mapping[str, str | None]) -> ExtensionSession:
        """Takes the parameters that the server answered with, and gives a session's instance.

        Raises ``ValueError``, which says why, for an answer that fits none of the offers: the handshake then fails.
        """
        ...
