"""Builds the compiled core where Cython and a C compiler are at hand; without them the same code runs uncompiled."""

import os
import re
from pathlib import Path

from setuptools import Extension, setup

SOURCES = {
    "geventws.protocol.buffer": "geventws/protocol/buffer.pyx",
    "geventws.protocol.shared": "geventws/protocol/shared.py",
    "geventws.protocol.deflating": "geventws/protocol/deflating.pyx",
    "geventws.protocol.codec": "geventws/protocol/codec.py",
    "geventws.protocol.output": "geventws/protocol/output.py",
    "geventws.transport": "geventws/transport.pyx",
    "geventws.schedule": "geventws/schedule.py",
    "geventws.tls": "geventws/tls.py",
    "geventws.switching": "geventws/switching.pyx",
    "geventws.arrivals": "geventws/arrivals.py",
    "geventws.deadlines": "geventws/deadlines.py",
    "geventws.fragmenting": "geventws/fragmenting.py",
    "geventws.connection": "geventws/connection.py",
    "geventws.pinger": "geventws/pinger.py",
    "geventws.session": "geventws/session.py",
    "geventws.topics.audience": "geventws/topics/audience.py",
    "geventws.topics.prefetching": "geventws/topics/prefetching.pyx",
    "geventws.topics.delivery": "geventws/topics/delivery.py",
    "geventws.topics.broadcasting": "geventws/topics/broadcasting.py",
}


#: What a module links; one whose library or header is missing is left out, and its uncompiled twin serves.
LIBRARIES = {"geventws.protocol.deflating": ["z"]}


def extensions() -> list[Extension]:
    """The extension modules; none where GEVENTWS_PURE is set at build time or Cython is missing."""
    if os.environ.get("GEVENTWS_PURE", "0") not in ("", "0"):
        return []
    try:
        import greenlet
        from Cython.Build import cythonize
    except ImportError:
        return []
    # greenlet brings the header of its C API in its package.
    headers = [str(Path(greenlet.__file__).parent)]
    modules = [
        Extension(
            name,
            [source],
            include_dirs=headers,
            extra_compile_args=["-O3"],
            libraries=LIBRARIES.get(name, []),
        )
        for name, source in SOURCES.items()
    ]
    directives = {
        "language_level": 3,
        "boundscheck": False,
        "wraparound": False,
        "initializedcheck": False,
        "annotation_typing": False,
        "always_allow_keywords": True,
    }
    compiled = cythonize(modules, compiler_directives=directives, build_dir="build/cython")
    for module in compiled:
        # A failing compiler must not fail the install. Cython does not hand this on.
        module.optional = True
    return compiled


#: Where a README's links lead that are relative to it; pictures are not to be shown in GitHub's page.
REPOSITORY = "https://github.com/geventws/geventws/blob/main/"
PICTURES = "https://raw.githubusercontent.com/geventws/geventws/main/"


def description() -> str:
    """The README for PyPI, which has none of the files beside it."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")

    def link(found: re.Match[str]) -> str:
        return f"{found[1]}{PICTURES if found[1].startswith('!') else REPOSITORY}{found[2]}"

    return re.sub(r"(!?\[[^\]\n]*\]\()(?![a-z]+:|#)([^)\s]+)", link, text)


setup(
    ext_modules=extensions(),
    long_description=description(),
    long_description_content_type="text/markdown",
)
