"""Tells the processor what a loop over many connections is going to look at; the compiled build alone.

Thousands of connections don't fit into its cache, and to wait for their memory would take longer than the loop's work.
prefetching.pyx is the compiled twin of this file.
"""

from __future__ import annotations

from geventws.connection import Connection

__all__ = ["prefetch"]


def prefetch(connections: list[Connection], index: int) -> None:
    """Called before a loop looks at ``connections[index]``: fetches what it needs of those some places ahead."""
