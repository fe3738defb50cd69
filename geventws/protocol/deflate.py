"""The extension permessage-deflate (RFC 7692): messages compressed with zlib.

Here are the options and the negotiation; deflating.py has what works on messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from geventws.arguments import check_flag, check_function, check_number
from geventws.frames import Frame
from geventws.protocol.deflating import DeflateSession
from geventws.protocol.extensions import ExtensionSession

__all__ = ["PermessageDeflate"]

_RSV1 = 4

_MAX_WINDOW_BITS = 15
_WINDOW_BITS: dict[str | None, int] = {str(bits): bits for bits in range(8, _MAX_WINDOW_BITS + 1)}


class PermessageDeflate:
    """Compresses messages with permessage-deflate (RFC 7692), for clients that offer it and servers that take it.

    Servers and clients have the same options: ``server_...`` is about messages from the server, on either side.

    The defaults take 43 KB for a session that both sends and receives, 72 KB if the client doesn't limit its window. A
    window of 15 bits and a memory level of 8, as elsewhere, take 300 KB, for messages shorter by a tenth or less.

    Compression can leak a secret in a message that also has an attacker's text (RFC 7692 8); leave such messages out
    with ``compress_if``.

    :param server_no_context_takeover: compress each message on its own: no memory between messages, larger messages.
    :param client_no_context_takeover: make the client do so.
    :param server_max_window_bits: the base-2 logarithm of the window in bytes that messages are compressed with, 8 to
        15. zlib can't compress with 8, so with 8 no client gets compression, and a client that asks for 8 never does.
    :param client_max_window_bits: the same for the client, 8 to 15. A client that doesn't offer to limit its window
        uses 15.
    :param level: 1 is the fastest and 9 the smallest, 0 doesn't compress, -1 is zlib's own choice.
    :param memory_level: how much memory zlib takes for its hash table, 1 to 9.
    :param min_size: shorter unfragmented messages, in bytes, go out uncompressed. The headers of WebSocket, TCP, IP and
        TLS around them take more bytes than compression could save. A session that sends no others never creates a
        compressor.
    :param compress_if: called with the first frame of each message of at least ``min_size`` bytes; False sends the
        message uncompressed. It must not block. If it raises, so does ``send``, and the message is not sent.

    Raises ``ValueError`` that names the option.
    """

    #: The token that names it in Sec-WebSocket-Extensions.
    name = "permessage-deflate"
    #: It claims RSV1.
    rsv = _RSV1

    __slots__ = (
        "client_max_window_bits",
        "client_no_context_takeover",
        "compress_if",
        "level",
        "memory_level",
        "min_size",
        "server_max_window_bits",
        "server_no_context_takeover",
    )

    def __init__(
        self,
        *,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int = 12,
        client_max_window_bits: int = 12,
        level: int = 1,
        memory_level: int = 5,
        min_size: int = 64,
        compress_if: Callable[[Frame], bool] | None = None,
    ) -> None:
        check_flag("server_no_context_takeover", server_no_context_takeover)
        check_flag("client_no_context_takeover", client_no_context_takeover)
        check_number("server_max_window_bits", server_max_window_bits, least=8, most=_MAX_WINDOW_BITS)
        check_number("client_max_window_bits", client_max_window_bits, least=8, most=_MAX_WINDOW_BITS)
        check_number("level", level, least=-1, most=9)
        check_number("memory_level", memory_level, least=1, most=9)
        check_number("min_size", min_size, "bytes", least=0)
        check_function("compress_if", compress_if, "a frame")
        self.server_no_context_takeover = server_no_context_takeover
        self.client_no_context_takeover = client_no_context_takeover
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits
        self.level = level
        self.memory_level = memory_level
        self.min_size = min_size
        self.compress_if = compress_if

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"PermessageDeflate({options})"

    def accept(self, parameters: Mapping[str, str | None]) -> tuple[dict[str, str | None], ExtensionSession] | None:
        """Answers one offer of a client (RFC 7692 5.1 and 7.1): parameters and a session's instance, or None."""
        server_no_context_takeover = self.server_no_context_takeover
        client_no_context_takeover = self.client_no_context_takeover
        server_bits = self.server_max_window_bits
        # A client that doesn't offer to limit its window may not be told to (RFC 7692 7.1.2.2).
        client_bits = None
        for name, value in parameters.items():
            if name == "client_max_window_bits":
                bits = _MAX_WINDOW_BITS if value is None else _WINDOW_BITS.get(value)
                if bits is None:
                    return None
                client_bits = min(bits, self.client_max_window_bits)
            elif name == "server_max_window_bits":
                bits = _WINDOW_BITS.get(value)
                if bits is None:
                    return None
                server_bits = min(bits, server_bits)
            elif value is not None:
                return None
            elif name == "server_no_context_takeover":
                server_no_context_takeover = True
            elif name == "client_no_context_takeover":
                client_no_context_takeover = True
            else:
                return None
        # zlib refuses to compress with a window of 8 bits, or takes one of 9 in its place.
        if server_bits == 8:
            return None
        answer: dict[str, str | None] = {}
        if server_no_context_takeover:
            answer["server_no_context_takeover"] = None
        if client_no_context_takeover:
            answer["client_no_context_takeover"] = None
        # The client may save memory by our limit even where it didn't ask for one (RFC 7692 7.1.2.1).
        if server_bits < _MAX_WINDOW_BITS or "server_max_window_bits" in parameters:
            answer["server_max_window_bits"] = str(server_bits)
        if client_bits is not None:
            answer["client_max_window_bits"] = str(client_bits)
        return answer, DeflateSession(
            self.level,
            self.memory_level,
            self.min_size,
            self.compress_if,
            server_no_context_takeover,
            client_no_context_takeover,
            server_bits,
            _MAX_WINDOW_BITS if client_bits is None else client_bits,
        )

    def offers(self) -> Sequence[Mapping[str, str | None]]:
        """What a client offers (RFC 7692 5.1): its limit for the server's window, and for servers without one none."""
        common: dict[str, str | None] = {}
        if self.server_no_context_takeover:
            common["server_no_context_takeover"] = None
        if self.client_no_context_takeover:
            common["client_no_context_takeover"] = None
        # Without a value: a server may limit our window in any way.
        common["client_max_window_bits"] = None
        if self.server_max_window_bits == _MAX_WINDOW_BITS:
            return [common]
        return [{**common, "server_max_window_bits": str(self.server_max_window_bits)}, common]

    def agree(self, parameters: Mapping[str, str | None]) -> ExtensionSession:
        """Takes a server's answer (RFC 7692 7.1); raises ``ValueError`` for one that answers no offer of `offers`."""
        server_bits = client_bits = _MAX_WINDOW_BITS
        for name, value in parameters.items():
            if name in ("server_no_context_takeover", "client_no_context_takeover"):
                if value is not None:
                    raise ValueError(f"{name} has a value")
            elif name not in ("server_max_window_bits", "client_max_window_bits"):
                raise ValueError("it has an unknown parameter")
            elif value not in _WINDOW_BITS or value is None:
                raise ValueError(f"{name} is not 8 to 15")
            elif name == "server_max_window_bits":
                server_bits = _WINDOW_BITS[value]
            else:
                client_bits = _WINDOW_BITS[value]
        if self.server_no_context_takeover and "server_no_context_takeover" not in parameters:
            # RFC 7692 7.1.1.1: one that accepts such an offer says so.
            raise ValueError("server_no_context_takeover was asked for and is missing")
        # A smaller window than agreed is always right for who compresses.
        client_bits = min(client_bits, self.client_max_window_bits)
        compress_if = self.compress_if
        if client_bits == 8:
            # zlib can't compress with it: messages go out as they are, which is right as well.
            client_bits, compress_if = 9, _never
        return DeflateSession(
            self.level,
            self.memory_level,
            self.min_size,
            compress_if,
            # Its own side's come first: those that it compresses by.
            self.client_no_context_takeover or "client_no_context_takeover" in parameters,
            "server_no_context_takeover" in parameters,
            client_bits,
            server_bits,
        )


def _never(frame: Frame) -> bool:
    return False
