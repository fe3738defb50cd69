"""``geventwebsocket.logging``: the loggers of servers."""

from __future__ import annotations

import logging

__all__ = ["create_logger"]


def create_logger(name: str, debug: bool = False, format: str | None = None) -> logging.Logger:
    """The logger of this name; with ``debug`` it writes all of its records to stderr, in ``format``."""
    logger = logging.getLogger(name)
    if debug:
        logger.setLevel(logging.DEBUG)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(format))
            logger.addHandler(handler)
    return logger
