"""What all tests share: the build under test is the one that was asked for, nothing blocks for ever, and a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import geventws
from tests.programs import PATIENCE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--picture", metavar="FILE", type=Path, help="write the chat's picture to FILE, as PNG")


def pytest_report_header() -> str:
    return f"geventws {geventws.__version__}: {geventws.build()} build from {os.path.dirname(geventws.__file__)}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The faults are measured: nothing else runs beside them. Of other tests many wait, for a timer or a server."""
    return 0 if config.option.markexpr == "faults" else min((os.cpu_count() or 1) + 1, 4)


def pytest_configure() -> None:
    expected = os.environ.get("GEVENTWS_EXPECT_BUILD")
    if expected and expected != geventws.build():
        raise RuntimeError(f"the tests are to run on the {expected} build, but the {geventws.build()} one was imported")


# Not for a whole run: while Playwright is there, its loop counts as running in this thread, and asyncio runs no second.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium or Chrome on PATH, without a window."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("there is no Chromium on PATH")
    expect.set_options(timeout=PATIENCE * 1000)
    # As root Chromium runs only without its sandbox.
    sandbox = os.geteuid() != 0
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, chromium_sandbox=sandbox) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens a page in a profile of its own. Whatever its scripts raise, and don't catch, fails the test."""
    errors: list[str] = []
    with ExitStack() as stack:

        def open_page(url: str) -> Page:
            page = stack.enter_context(browser.new_page(viewport={"width": 800, "height": 600}))
            page.on("pageerror", lambda error: errors.append(f"{url}: {error}"))
            page.goto(url)
            return page

        yield open_page
    assert not errors
