"""The compiled build and the pure one in the same process, so that what they make of the same bytes can be compared.

`geventws` stands for a package here whose __init__ never ran: that would import gevent, of which the protocol needs
nothing. Its directory is that of the instrumented build, so imports find the compiled modules first; the sources of the
pure twins lie alone in another directory, as the package `pure`. Exceptions and frames are one and the same for both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import atheris

ROOT = Path(__file__).resolve().parent.parent
#: Where fuzzing/run.py puts the instrumented build, and the sources of the pure twins.
BUILT = ROOT / "build" / "fuzzing"
#: The modules that have a pure and a compiled form and no input or output of their own.
TWINS = ("buffer", "codec")


class Build(NamedTuple):
    """One of the two."""

    name: str
    buffer: Any
    codec: Any


def load(*modules: str) -> tuple[Build, Build]:
    """Imports the compiled and the pure build, and ``modules`` of geventws.

    All but the pure twins tell libFuzzer what is covered; these have the branches of the compiled ones again.
    """
    package = ModuleType("geventws")
    package.__path__ = [str(BUILT / "geventws")]
    sys.modules["geventws"] = package
    sys.path.append(str(BUILT))
    with atheris.instrument_imports(include=["geventws"]):
        compiled = Build("compiled", *(import_module(f"geventws.protocol.{name}") for name in TWINS))
        for name in modules:
            import_module(f"geventws.{name}")
    for module in (compiled.buffer, compiled.codec):
        if not module.__file__.endswith(tuple(EXTENSION_SUFFIXES)):
            raise ImportError(f"{module.__name__} is not compiled: {module.__file__}")
    pure_buffer = import_module("pure.buffer")
    with _in_place_of("geventws.protocol.buffer", pure_buffer):
        pure = Build("pure", pure_buffer, import_module("pure.codec"))
    return compiled, pure


@contextmanager
def _in_place_of(name: str, module: ModuleType) -> Iterator[None]:
    """Has an import of ``name`` give ``module``."""
    usual = sys.modules[name]
    sys.modules[name] = module
    try:
        yield
    finally:
        sys.modules[name] = usual


def fuzz(one_input: Callable[[bytes], None]) -> None:
    """Hands over to libFuzzer, with its options from the command line."""
    # To merge, libFuzzer starts its first argument as a program, which a file of Python is not.
    program = os.environ.get("GEVENTWS_FUZZ_PROGRAM", sys.argv[0])
    atheris.Setup([program, *sys.argv[1:]], one_input)
    atheris.Fuzz()
