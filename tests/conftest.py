"""What all tests share: the build under test is the one that was asked for, and nothing blocks for ever."""

from __future__ import annotations

import os

import geventws


def pytest_report_header() -> str:
    return f"geventws {geventws.__version__}: {geventws.build()} build from {os.path.dirname(geventws.__file__)}"


def pytest_configure() -> None:
    expected = os.environ.get("GEVENTWS_EXPECT_BUILD")
    if expected and expected != geventws.build():
        raise RuntimeError(f"the tests are to run on the {expected} build, but the {geventws.build()} one was imported")
