"""What an extension is (RFC 6455 9): negotiated once a handshake, then frames in and frames out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from geventws.frames import Frame

__all__ = ["ClientExtension", "Extension", "ExtensionSession"]


class ExtensionSession(Protocol):
    """One session's instance of a negotiated extension. It gets every data frame, and no control frame.

    Frames pass through the negotiated extensions in their order on the way out, and in reverse on the way in. One that
    works on messages looks at ``fin``, and keeps what it needs until then.
    """

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        """Gives the frame that the peer meant: its own RSV bits cleared, a payload of at most ``limit`` bytes.

        Raises ``ProtocolError`` with 1009 as soon as the limit is passed, with 1002 or 1007 for what makes no sense.
        """
        ...

    def encode(self, frame: Frame) -> Frame:
        """Gives the frame to put on the wire for ``frame``."""
        ...


class Extension(Protocol):
    """An extension as an app configures it, shared by all its sessions."""

    #: The token that names it in Sec-WebSocket-Extensions.
    name: str
    #: The RSV bits that it claims: 4 for RSV1, 2 for RSV2, 1 for RSV3, or their sum; 0 for none.
    rsv: int

    def accept(self, parameters: Mapping[str, str | None]) -> tuple[Mapping[str, str | None], ExtensionSession] | None:
        """Answers one offer of a client: the parameters to agree on and a session's instance, or None to decline it.

        ``parameters`` are the offer's, names in lower case and unquoted, None for one without a value. An offer that
        makes no sense is declined; nothing here is an error.
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
