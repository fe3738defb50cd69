"""What all tests share: the build under test is the one that was asked for, and nothing blocks for ever."""

from __future__ import annotations

import os

import pytest

import geventws


def pytest_report_header() -> str:
    return f"geventws {geventws.__version__}: {geventws.build()} build from {os.path.dirname(geventws.__file__)}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The faults are measured: nothing else runs beside them."""
    return 0 if config.option.markexpr == "faults" else min(os.cpu_count() or 1, 4)


def pytest_configure() -> None:
    expected = os.environ.get("GEVENTWS_EXPECT_BUILD")
    if expected and expected != geventws.build():
        raise RuntimeError(f"the tests are to run on the {expected} build, but the {geventws.build()} one was imported")
