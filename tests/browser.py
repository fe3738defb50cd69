"""A headless Chromium, driven by the DevTools protocol: opens pages, types, waits for what is shown, takes pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

from tests.programs import PATIENCE, Program

__all__ = ["Browser", "Tab", "find_chromium"]

#: A promise that CONDITION is true of the page; it is looked at again with each change of the document.
_WAIT = """new Promise((resolve) => {
    const observer = new MutationObserver(look);
    function look() {
        if (CONDITION) {
            observer.disconnect();
            resolve();
        }
    }
    observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
    look();
})"""

_OPTIONS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--window-size=800,600",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    # Or the tab that is not in front would run slower.
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome on PATH, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """A Chromium with a new profile in ``directory``, for a ``with`` block: it ends with the block."""

    def __init__(self, executable: str, directory: Path) -> None:
        # As root Chromium runs only without its sandbox.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._program = Program(executable, *_OPTIONS, *sandbox, f"--user-data-dir={directory}", "about:blank")
        self._stack = ExitStack()
        self._last_id = 0

    def __enter__(self) -> Browser:
        with ExitStack() as stack:
            stack.enter_context(self._program)
            address = self._program.wait_for(r"DevTools listening on (ws://\S+)")[1]
            self._connection = stack.enter_context(
                connect(address, max_size=None, compression=None, ping_interval=None, proxy=None)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def call(self, method: str, parameters: dict[str, Any] | None = None, target: str | None = None) -> dict[str, Any]:
        """Calls a method of the protocol, in the session ``target``; gives its result. Raises ``RuntimeError``."""
        self._last_id += 1
        call: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters or {}}
        if target is not None:
            call["sessionId"] = target
        self._connection.send(json.dumps(call))
        while True:
            answer = json.loads(self._connection.recv(timeout=PATIENCE))
            # What has another id, or none, is an event.
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]  # type: ignore[no-any-return]

    def open(self, url: str) -> Tab:
        """Opens a tab, and waits until its page is loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = Tab(self, session)
        tab.go(url)
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol on this page."""
        return self._browser.call(method, parameters, self._session)

    def go(self, url: str) -> None:
        """Goes to another page, and waits until it is loaded."""
        error = self.call("Page.navigate", url=url).get("errorText")
        assert not error, f"{url}: {error}"
        self.evaluate(
            "document.readyState === 'complete' || new Promise((loaded) => addEventListener('load', () => loaded()))"
        )

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise what comes of it; ``RuntimeError`` for an exception."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until a JavaScript expression about the document is true, also across a change to another page."""
        while True:
            try:
                self.evaluate(_WAIT.replace("CONDITION", condition))
                return
            except TimeoutError:
                raise AssertionError(f"{condition} did not come true, the page says:\n{self.text()}") from None
            except RuntimeError as error:
                # The page that was asked is gone: ask the next.
                if "navigated" not in str(error) and "context was destroyed" not in str(error):
                    raise

    def text(self) -> str:
        """What the page shows, as text."""
        return str(self.evaluate("document.body.innerText"))

    def type(self, text: str) -> None:
        """Types into the field that has the focus, once one has: autofocus comes with the first frame drawn."""
        self.wait_for("document.activeElement?.tagName === 'INPUT'")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Presses Enter."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def bring_to_front(self) -> None:
        """Makes this the tab that is seen and typed into."""
        self.call("Page.bringToFront")

    def accessible(self, role: str) -> list[str]:
        """The names under which assistive technology finds elements of a role."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node.get("name", {}).get("value", "") for node in nodes if node.get("role", {}).get("value") == role]

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the page, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
