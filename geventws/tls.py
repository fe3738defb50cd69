"""The transport of a TLS connection."""

from __future__ import annotations

from ssl import SSLEOFError, SSLError, SSLWantReadError, SSLWantWriteError, SSLZeroReturnError
from typing import Any

from geventws.protocol.buffer import Buffer
from geventws.transport import Transport

__all__ = ["TLSTransport", "transport_of"]

#: The largest TLS record's payload (RFC 8446 5.1).
RECORD = 16384


class TLSTransport(Transport):
    """An established TLS connection, used past the blocking calls of its socket object."""

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        self._tls = socket._sslobj
        self._write = self._tls.write
        self._refused = b""
        self.encrypted = True
        # The reader of the request's head may have left some of its record.
        self.keeps_input = self._tls.pending() > 0

    def receive(self, target: bytearray) -> int:
        """As `Transport.receive`, in plain text."""
        self.receiving_waits_to_write = False
        try:
            # 0 stands for all the room that the target has, and costs one per cent of an echo less than its length.
            count: int = self._tls.read(0, target)
        except SSLWantReadError:
            self.keeps_input = False
            return -1
        except SSLWantWriteError:
            # An answer of TLS itself, as to a KeyUpdate (RFC 8446 4.6.3), does not get through.
            self.receiving_waits_to_write = self.keeps_input = True
            return -1
        except (SSLZeroReturnError, SSLEOFError):
            return 0
        self.received += count
        # A read gives at most one record. Of one that did not fit in there is more; behind a full one another may be at
        # hand, and asking where there is none would raise each time.
        self.keeps_input = count >= RECORD or (count == len(target) and self._tls.pending() > 0)
        return count

    def send(self, source: Buffer) -> bool:
        """As `Transport.send`, in records."""
        self.sending_waits_to_read = False
        while source.length():
            record = self._refused or source.peek(RECORD)
            try:
                count = self._write(record)
            except (SSLWantWriteError, SSLWantReadError) as error:
                # OpenSSL wants the same bytes again (SSL_write(3)).
                self._refused = record
                self.sending_waits_to_read = isinstance(error, SSLWantReadError)
                return False
            self._refused = b""
            source.consume(count)
            self.sent += count
        return True

    def shut_down(self) -> None:
        """Says the end of output: close_notify, then FIN."""
        try:
            self._tls.shutdown()
        except (SSLError, OSError):
            # The peer's own close_notify is not waited for.
            pass
        super().shut_down()


def transport_of(socket: Any) -> Transport:
    """The transport for a connected socket, plain or TLS."""
    return TLSTransport(socket) if getattr(socket, "_sslobj", None) is not None else Transport(socket)
