"""Checks of what a caller gives, in one wording: ``NAME must be WHAT IS ALLOWED, not VALUE``."""

from __future__ import annotations

import sys
from math import inf, isfinite
from typing import Any

__all__ = [
    "check_flag",
    "check_function",
    "check_number",
    "check_seconds",
    "check_wait",
    "encode_text",
    "missing_extra",
    "shown",
]

#: Characters of a value that an error repeats.
_LONGEST = 200


def shown(value: Any) -> str:
    """``value`` as an error tells it: its repr, cut where it is long, or its type where it has none."""
    try:
        text = repr(value)
    except Exception:
        # As an int of over 4300 digits has none.
        return f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_seconds(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises ``ValueError`` for what is no duration: a finite number of seconds above 0, or None where ``optional``."""
    if value is None and optional:
        return
    try:
        if _is_number(value) and isfinite(value) and value > 0:
            return
    except OverflowError:
        # An int that no float can hold.
        pass
    raise ValueError(f"{name} must be a number of seconds above 0{', or None' if optional else ''}, not {shown(value)}")


def check_wait(name: str, value: Any) -> None:
    """Raises ``ValueError`` for what does not say how long a call may block: a number of seconds, or None for any.

    One below 0, as the difference of two times may be, is one that is over; NaN would stop all of gevent's timers.
    """
    if value is None or (_is_number(value) and -inf < value <= sys.float_info.max) or value == inf:
        return
    raise ValueError(f"{name} must be a number of seconds, or None for any time, not {shown(value)}")


def check_number(
    name: str, value: Any, of: str = "", *, least: int = 1, most: int | None = None, optional: bool = False
) -> None:
    """Raises ``ValueError`` for what is no whole number from ``least`` to ``most``, or None where ``optional``.

    ``of`` says of what, as in "bytes". What compiled code can't hold is too large without ``most`` too.
    """
    if value is None and optional:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value <= (sys.maxsize if most is None else most):
        return
    if most is not None:
        within = f"from {least} to {most}"
    else:
        within = "above 0" if least == 1 else f"from {least} up"
        if whole and value > sys.maxsize:
            within += f" and below 2**{sys.maxsize.bit_length()}"
    number = f"a whole number of {of}" if of else "a whole number"
    raise ValueError(f"{name} must be {number} {within}{', or None' if optional else ''}, not {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Raises ``ValueError`` for what is not True or False: "no" and 0.0 are not taken for what they may mean."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {shown(value)}")


def check_function(name: str, value: Any, takes: str) -> None:
    """Raises ``ValueError`` for what is no function, of what ``takes`` says, nor None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function of {takes}, or None, not {shown(value)}")


def encode_text(name: str, value: str) -> bytes:
    """``value`` in UTF-8; raises ``ValueError`` for a surrogate by itself, which UTF-8 can't encode."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that UTF-8 can encode, without surrogates, not {shown(value)}") from None


def missing_extra(error: ModuleNotFoundError, package: str, user: str, extra: str) -> ModuleNotFoundError:
    """What to raise for ``error``, where ``user`` needs ``package``, which an extra of ours installs."""
    if (error.name or "").partition(".")[0] != package:
        # It is installed, and something that it needs is not.
        return error
    return ModuleNotFoundError(f"{user} needs {package}: pip install 'geventws[{extra}]'", name=package)
