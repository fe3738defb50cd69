"""The old names of the libraries that `geventws.compat` stands in for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from geventws import socketio
from geventws.errors import UsageError

__all__ = ["install"]

#: The packages and modules that have stand-ins, which are found under `PLACE`.
NAMES = ("geventwebsocket", "flask_sockets", "flask_sock")
PLACE = "geventws.compat."


def install() -> None:
    """Makes ``import geventwebsocket``, ``flask_sockets`` and ``flask_sock`` import geventws' versions.

    The libraries needn't be installed. Call it once, before anything imports them: raises ``UsageError`` if something
    has, because that would go on using them.

    The WebSockets of Socket.IO become sessions too: see `geventws.socketio`.
    """
    names = [name for name in NAMES if find_spec(PLACE + name) is not None]
    for name in names:
        loaded = sys.modules.get(name)
        if loaded is not None and not loaded.__name__.startswith(PLACE):
            raise UsageError(
                f"{name} is imported already, from {loaded.__file__}: call geventws.compat.install() before "
                "all imports of it, at the top of the program"
            )
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(names))
    socketio.install()


class _Finder(MetaPathFinder):
    """Finds the stand-ins, and what is in them, by the old names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As the import system asks for it."""
        if fullname.partition(".")[0] not in self._names:
            return None
        found = find_spec(PLACE + fullname)
        if found is None:
            return None
        return ModuleSpec(fullname, _Loader(), is_package=found.submodule_search_locations is not None)


class _Loader(Loader):
    """Gives the one module that has both names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The stand-in, imported by its own name."""
        module = import_module(PLACE + spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; the import system has given it the spec of the old name."""
        module.__spec__ = self._spec
