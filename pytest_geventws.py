"""The fixture of geventws for pytest, which loads this in every run where geventws is installed.

It stands beside the package, so that nothing of geventws or gevent is imported until a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture
def websocket_connect() -> Iterator[Callable[..., Any]]:
    """``geventws.testing.connect``, whose WebSockets are closed at the end of the test.

    What left their handlers is then raised, as at the end of a ``with`` block.
    """
    from geventws.testing import connect

    with ExitStack() as stack:

        def enter(app: Any, path: str = "/", **options: Any) -> Any:
            """As ``geventws.testing.connect``, without a ``with`` block."""
            return stack.enter_context(connect(app, path, **options))

        yield enter
