"""Which build runs: the compiled core, or the same code uncompiled.

The compiled modules lie beside their sources and are found first. GEVENTWS_PURE=1 in the environment has them passed
over.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

__all__ = ["VERSION", "build", "choose_build"]

VERSION = "0.1.0"

#: The modules that have a compiled form.
COMPILED_MODULES = (
    "geventws.protocol.buffer",
    "geventws.protocol.shared",
    "geventws.protocol.codec",
    "geventws.protocol.output",
    "geventws.switching",
    "geventws.transport",
    "geventws.schedule",
    "geventws.tls",
    "geventws.arrivals",
    "geventws.deadlines",
    "geventws.fragmenting",
    "geventws.connection",
    "geventws.pinger",
    "geventws.session",
    "geventws.topics.audience",
    "geventws.topics.prefetching",
    "geventws.topics.delivery",
    "geventws.topics.broadcasting",
)

#: Compiled where its library is at hand, whatever the others are.
OPTIONAL_MODULES = ("geventws.protocol.deflating",)


class _SourceFinder(MetaPathFinder):
    """Finds the sources of the modules that have a compiled form too."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in COMPILED_MODULES + OPTIONAL_MODULES:
            return None
        source = Path(__file__).parent.joinpath(*fullname.split(".")[1:]).with_suffix(".py")
        return spec_from_file_location(fullname, source)


def choose_build() -> None:
    """Makes the imports to come obey GEVENTWS_PURE; called before any of them."""
    if os.environ.get("GEVENTWS_PURE", "0") not in ("", "0"):
        sys.meta_path.insert(0, _SourceFinder())


def build() -> str:
    """ "compiled" or "pure", read off the modules that were imported; raises ``RuntimeError`` for a mixture."""
    compiled = [name for name in COMPILED_MODULES if _is_compiled(name)]
    if compiled and len(compiled) != len(COMPILED_MODULES):
        missing = ", ".join(name for name in COMPILED_MODULES if name not in compiled)
        raise RuntimeError(f"a broken build of geventws: these modules are not compiled, though others are: {missing}")
    return "compiled" if compiled else "pure"


def _is_compiled(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", "") or ""
    return file.endswith(tuple(EXTENSION_SUFFIXES))
