"""``python -m geventws connect``: a client on a terminal, or in a pipe."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from math import isfinite
from time import monotonic

import gevent
from gevent.socket import wait_read

from geventws.arguments import check_seconds
from geventws.client import connect
from geventws.client_session import DefaultWebSocketClientSession
from geventws.dialing import tls_context
from geventws.errors import ConnectionClosed, WebSocketError
from geventws.frames import CloseCode

__all__ = ["main", "seconds"]

#: Bytes that one system call may read of standard input.
_PIECE = 64 * 1024
#: How a WebSocket ends that has ended well.
_GOOD = (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS)
#: Seconds between looks whether something has come.
_LOOK_SECONDS = 0.1
#: The status of a process that Ctrl-C ends, as shells have it.
_INTERRUPTED = 130


def main(arguments: list[str]) -> None:
    """Connects, sends the lines of standard input, and prints what comes; ends with status 1 where that fails."""
    options = _parser().parse_args(arguments)
    if options.insecure and not options.url.lower().startswith("wss:"):
        _parser().error("--insecure is for wss:// URLs, whose certificate it does not verify")
    headers = []
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon:
            _parser().error(f"--header must be 'NAME: VALUE', not {header!r}")
        headers.append((name.strip(), value.strip()))
    # Python's own handler would run in the hub, which prints what it raises.
    interrupt = gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        session = connect(
            options.url,
            protocols=options.protocol,
            headers=headers,
            origin=options.origin,
            ssl_context=_insecure() if options.insecure else None,
            unix_socket=options.unix,
            open_timeout=options.timeout,
            ping_interval=options.ping,
            max_frame_size=None,
        )
    except (OSError, WebSocketError) as error:
        # Before the others: a certificate that is not valid is a ValueError too.
        sys.exit(f"no connection to {_named(options.url)}: {_told(error)}")
    except (ValueError, TypeError) as error:
        _parser().error(str(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        interrupt.cancel()
    sys.exit(_Conversation(session, options).run())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m geventws connect",
        description="Connects to a WebSocket: sends each line of standard input as a message, and prints each message "
        "that comes. On a terminal Ctrl-D closes. From a pipe it closes when the input is over and the server has been "
        "silent for a second.",
        epilog="An HTTP proxy is taken from the environment: HTTPS_PROXY for wss, HTTP_PROXY for ws, else ALL_PROXY; "
        "NO_PROXY names hosts without. SSL_CERT_FILE names a file (PEM) of certificates of authorities to trust. "
        "The exit status is 1 where the connection fails or ends with "
        "another code than 1000, 1001 or 1005, or where a line of a pipe was not sent.",
    )
    parser.add_argument("url", help="ws://HOST:PORT/PATH or wss://...")
    parser.add_argument(
        "--protocol", action="append", default=[], metavar="NAME", help="a subprotocol to offer; may be repeated"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a header to add; may be repeated"
    )
    parser.add_argument("--origin", help="the header Origin")
    parser.add_argument("--binary", action="store_true", help="send lines as binary messages, not as text")
    parser.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    parser.add_argument("--unix", metavar="PATH", help="a Unix socket to connect to in place of the URL's host")
    parser.add_argument(
        "--ping", type=seconds, default=20.0, metavar="SECONDS", help="between keepalive pings, 20 by default"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="how long it may take to open, 10 by default"
    )
    parser.add_argument(
        "--wait",
        type=_wait,
        default=1.0,
        metavar="SECONDS",
        help="how long the server must be silent before a pipe whose input is over closes, 1 by default; inf: it does "
        "not, and the server closes",
    )
    return parser


def seconds(text: str) -> float:
    """The duration that an argument of the command line names; what argparse says of another is its error."""
    try:
        value = float(text)
        check_seconds("it", value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds above 0, not {text!r}") from None
    return value


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds from 0 up, or inf, not {text!r}")
    return seconds


def _insecure() -> ssl.SSLContext:
    context = tls_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _named(url: str) -> str:
    """``url`` without user and password."""
    before, at, behind = url.rpartition("@")
    return f"{before.partition('://')[0]}://{behind}" if at else url


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
        return error.strerror
    return str(error) or type(error).__name__


class _Conversation:
    """One session, with standard input on one side of it and standard output on the other."""

    def __init__(self, session: DefaultWebSocketClientSession, options: argparse.Namespace) -> None:
        self._session = session
        self._binary = options.binary
        self._wait = options.wait
        self._interactive = sys.stdin.isatty()
        self._interrupted = False
        #: Whether all lines were sent.
        self._complete = True

    def run(self) -> int:
        """Runs to the end of the session; gives the process's exit status."""
        session = self._session
        if self._interactive:
            spoken = f", speaking {session.protocol}" if session.protocol else ""
            _note(f"connected to {session.url}{spoken}; Ctrl-D closes")
        gevent.signal_handler(signal.SIGINT, self._interrupt)
        sender = gevent.spawn(self._send)
        try:
            self._print_all()
        except BrokenPipeError:
            # Who reads has had enough.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            session.close()
        finally:
            sender.kill()
        session.wait_closed()
        if self._interrupted:
            return _INTERRUPTED
        reason = session.close_reason
        assert reason is not None
        good = reason.code in _GOOD
        if self._interactive or not good:
            _note(f"closed: {_harmless(str(reason))}")
        return 0 if good and (self._complete or self._interactive) else 1

    def _interrupt(self) -> None:
        """Ctrl-C: the first time it closes, the second time at once."""
        if self._interrupted:
            self._session.terminate()
        self._interrupted = True
        self._session.start_close(CloseCode.GOING_AWAY)

    def _print_all(self) -> None:
        for message in self._session:
            self._print(message)

    def _print(self, message: str | bytes) -> None:
        output = sys.stdout
        if not output.isatty():
            output.buffer.write((message.encode() if isinstance(message, str) else message) + b"\n")
        elif isinstance(message, str):
            # A terminal obeys what it is sent.
            output.write(f"< {_harmless(message)}\n")
        else:
            output.write(f"< {len(message)} bytes: {message[:1000].hex(' ')}{' ...' if len(message) > 1000 else ''}\n")
        output.flush()

    def _send(self) -> None:
        session = self._session
        try:
            for line in _lines(sys.stdin.fileno()):
                if self._binary:
                    session.send(line)
                    continue
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    _note("a line is not UTF-8, and is not sent: --binary sends it as it is")
                    self._complete = False
                    continue
                session.send(text)
            if not self._interactive:
                self._wait_for_silence()
        except ConnectionClosed:
            return
        if self._interactive or isfinite(self._wait):
            session.close()

    def _wait_for_silence(self) -> None:
        """Blocks until the server has all that was sent, and then nothing came for as long as --wait says."""
        session = self._session
        if not isfinite(self._wait):
            return
        # A server that reads one message after the other comes to the ping last.
        with suppress(TimeoutError):
            session.ping()
        heard, since = self._heard(), monotonic()
        while (left := since + self._wait - monotonic()) > 0 and not session.wait_closed(min(left, _LOOK_SECONDS)):
            if heard != (heard := self._heard()):
                since = monotonic()

    def _heard(self) -> tuple[int, int]:
        """What came so far: messages, and kilobytes, as one may be on its way for long; pongs are no sound."""
        stats = self._session.stats()
        return stats.messages_received, stats.bytes_received // 1024


def _lines(descriptor: int) -> Iterator[bytes]:
    """The lines of a file, without their ends; blocks no other greenlets."""
    # Files can't be watched, and never make anybody wait.
    mode = os.fstat(descriptor).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
    rest = b""
    while True:
        if waits:
            wait_read(descriptor)
        piece = os.read(descriptor, _PIECE)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
    if rest:
        yield rest


def _harmless(text: str) -> str:
    return "".join(each if each.isprintable() or each in "\t\n" else ascii(each)[1:-1] for each in text)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
