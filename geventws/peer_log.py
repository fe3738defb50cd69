"""What peers do wrong, in a log that an operator can live with: one line each, harmless to read, and never a flood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Hub

__all__ = ["PeerLog", "escape", "format_address", "shorten"]

#: Characters of one line about a peer, and lines a second about one kind of fault.
LOG_LINE = 256
LOG_RATE = 10


def escape(text: str) -> str:
    """``text`` with control, bidi and other invisible characters as backslash escapes, fit for one line of a log."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


class PeerLog:
    """What peers do wrong, one line each; of a flood of one kind, ten lines a second and their number."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._counts: dict[str, int] = {}

    def log(self, kind: str, address: Any, detail: str = "") -> None:
        """Logs a fault. ``kind`` is one of few constant texts; ``detail`` may come from the peer."""
        if self.admit(kind):
            line = f"{format_address(address)}: {kind}"
            self.write(shorten(f"{line}: {detail}" if detail else line))

    def write(self, line: str) -> None:
        """Writes a line; from the hub by a greenlet, for a handler of ``logging`` may block."""
        if isinstance(gevent.getcurrent(), Hub):
            gevent.spawn(self._write, line)
        else:
            self._write(line)

    def admit(self, kind: str) -> bool:
        """Counts a fault of this kind; tells whether it may have a line."""
        if not self._counts:
            gevent.spawn_later(1.0, self._sum_up)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count <= LOG_RATE

    def _sum_up(self) -> None:
        counts, self._counts = self._counts, {}
        for kind, count in counts.items():
            if count > LOG_RATE:
                self._write(f"{count - LOG_RATE} more in a second: {kind}")


def shorten(line: str) -> str:
    """One line of at most 256 characters, escaped."""
    line = escape(line[:LOG_LINE])
    return line if len(line) <= LOG_LINE else line[: LOG_LINE - 3] + "..."


def format_address(address: Any) -> str:
    """A socket address as people write it."""
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    return str(address) or "unix socket"
