"""TensorBoard in Chromium: a server over a log folder, and the Attributions tab in a page."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, Frame, Page, sync_playwright
from runs import wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # milliseconds
# TensorBoard's own, of its plugins.
FOREIGN = ("Multiple instances of Three.js",)


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """TensorBoard over a folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--logdir", str(logdir), "--port", str(port)]
    log = logdir.parent / f"tensorboard-{port}.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *words], stdout=stream, stderr=stream
        ) as server,
    ):
        address = f"http://127.0.0.1:{port}/"

        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=5) as answer:
                    return b"attributions" in answer.read()
            except OSError:
                return False

        try:
            wait_until(answers)
            yield address
        finally:
            server.terminate()
    assert "Traceback" not in log.read_text()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """The Attributions tab in a page of its own, 1,280 pixels wide.

    Args:
        browser: The browser.
        address: The address of TensorBoard.
        theme: `light` or `dark`.
    """

    def __init__(self, browser: Browser, address: str, theme: Any = "light") -> None:
        size: Any = {"width": 1280, "height": 1000}
        self.page: Page = browser.new_context(viewport=size, color_scheme=theme).new_page()
        self.address = address
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))

    def open(self, **state: object) -> Frame:
        """Opens a link to a state of the tab, and waits until it is shown."""
        hash_ = "".join(f"&p.attributions.{name}={quote(str(value))}" for name, value in state.items())
        # A change of the hash alone would not load the page.
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#attributions{hash_}")
        return self.shown()

    def shown(self) -> Frame:
        """The frame of the tab, once what was asked for is shown."""
        found = self.page.wait_for_selector('iframe[src*="plugin_entry"]', state="attached", timeout=PATIENCE)
        frame = None if found is None else found.content_frame()
        assert frame is not None
        frame.wait_for_selector("body[data-ready=yes]", timeout=PATIENCE)
        return frame

    def drawn(self) -> Frame:
        """The same, once every picture is drawn."""
        frame = self.shown()
        frame.wait_for_function("() => document.querySelectorAll('.plot:not([data-drawn])').length === 0")
        return frame

    def keep_picture(self, name: str) -> None:
        """Saves a picture to be looked at, where SCREENSHOTS in the environment is a folder."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png")

    def close(self) -> None:
        """Closes the page."""
        self.page.context.close()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(each in text for each in FOREIGN):
            self.complaints.append(f"{kind}: {text}")
