"""Tests in a process that gevent has patched, as gunicorn's workers are: the process of the tests itself is not.

A function that is decorated with `patched` runs in such a process, which is started once; `PatchedProcess` starts
others, which call functions of the test's module for it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds that one call may take.
PATIENCE = 50.0

_processes: dict[str, PatchedProcess] = {}
_is_patched = False


class PatchedProcess:
    """A process that calls functions."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.patched"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    def __enter__(self) -> PatchedProcess:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is not None:
            self.process.kill()
        self.close()

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has it call a function of a module; `result` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([function.__module__, function.__qualname__, arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """What the function has returned; raises ``AssertionError`` with the traceback if it has raised."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        value, failure, skipped = json.loads(line)
        if skipped:
            import pytest

            pytest.skip(skipped)
        if failure:
            raise AssertionError(f"in process {self.pid}:\n{failure}")
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function there."""
        self.begin(function, *arguments)
        return self.result()

    def close(self) -> None:
        """Ends it, and waits for that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def patched(test: Callable[..., None]) -> Callable[..., None]:
    """Has a test run in a patched process, which all tests of its module share."""

    @functools.wraps(test)
    def call(*arguments: Any, **named: Any) -> None:
        if _is_patched:
            test(*arguments, **named)
            return
        values = [named[name] for name in test.__code__.co_varnames[: test.__code__.co_argcount] if name in named]
        process = _processes.get(test.__module__)
        if process is None:
            process = _processes[test.__module__] = PatchedProcess()
        process.call(call, *arguments, *values)

    return call


def end_process(module: str) -> None:
    """Ends the process of a module's tests."""
    process = _processes.pop(module, None)
    if process is not None:
        process.close()


def main() -> None:
    from gevent import monkey

    monkey.patch_all()
    import gevent
    import gevent.os

    # What the functions print goes elsewhere than the results.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # As the module that the functions' module has imported, and not as __main__.
    importlib.import_module("tests.patched")._is_patched = True
    # Other greenlets run while it waits.
    gevent.os.make_nonblocking(0)
    lines = b""
    while True:
        while b"\n" not in lines:
            data = gevent.os.nb_read(0, 65536)
            if not data:
                return
            lines += data
        line, _, lines = lines.partition(b"\n")
        module, name, arguments = json.loads(line)
        value = failure = skipped = None
        try:
            with gevent.Timeout(PATIENCE):
                value = getattr(importlib.import_module(module), name)(*arguments)
        except BaseException as error:
            if type(error).__name__ == "Skipped":
                skipped = str(error)
            else:
                failure = traceback.format_exc()
        results.write(json.dumps([value, failure, skipped]) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
