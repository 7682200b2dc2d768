"""A headless Chromium, driven over its DevTools protocol: open pages, press keys, read the page, take
screenshots."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no chromium, chromium-browser or google-chrome on PATH"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
PATIENCE = 20.0
"""Seconds to wait for a page to become what a test expects."""


class Browser:
    """One browser process with a profile of its own; use it as a context."""

    def __init__(self, profile: Path) -> None:
        self.profile = profile
        self.process = subprocess.Popen(
            [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if result := re.search(r"ws://\S+", line):
                self.address = result.group()
                break
        self.opened = contextlib.ExitStack()
        self.connection = self.opened.enter_context(connect(self.address, max_size=None))
        self.numbers = itertools.count(1)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.opened.close()
        self.process.terminate()
        self.process.wait(10)

    def page(self, url: str, *, width: int = 1280, height: int = 900, private: bool = True) -> Page:
        """A new page, by default with cookies and storage of its own."""
        context = (
            {"browserContextId": self.send("Target.createBrowserContext")["browserContextId"]}
            if private
            else {}
        )
        target = self.send("Target.createTarget", url="about:blank", **context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.size(width, height)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.send("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """A DevTools command and its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.connection.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self.connection.recv(timeout=60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def send(self, method: str, **parameters: Any) -> Any:
        """A DevTools command for this tab."""
        return self.browser.send(method, self.session, **parameters)

    def size(self, width: int, height: int) -> None:
        """Give the tab a size in pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; while a page is loading, what it reads may not be there yet."""
        deadline = time.monotonic() + PATIENCE
        guarded = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        while not self.js(guarded):
            assert time.monotonic() < deadline, f"still false: {expression}\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """What the page shows."""
        return str(self.js("document.body.innerText"))

    def key(self, key: str, *, control: bool = False) -> None:
        """Press a key, such as `3`, `Tab` or `Enter`."""
        codes = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}
        code = codes.get(key, ord(key.upper()[0]))
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({} if control else text))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def screenshot(self, file: Path, *, whole: bool = False) -> Path:
        """Write what the tab shows, or the whole page, as PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(picture))
        return file
