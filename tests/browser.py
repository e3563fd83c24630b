"""A real Chromium without a window, for tests; skipped where there is none, unless ICEBURG_REQUIRE_BROWSER says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Its own sandbox cannot be had by root, nor within most containers; what it opens here is our own page.
_OPTIONS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium of the system."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium on the PATH: apt-get install chromium"
        if os.environ.get("ICEBURG_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, with what a browser finds wrong with it and whom it has asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def text(self, selector: str) -> str:
        """Return the text of an element as it is in the document."""
        return (self.page.locator(selector).first.text_content() or "").strip()

    def rows(self, selector: str) -> list[list[str]]:
        """Return the cells of a table's rows."""
        found: list[list[str]] = self.page.eval_on_selector_all(
            f"{selector} tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent.trim()))"
        )
        return found

    def wait(self, condition: str, argument: object = None) -> None:
        """Wait until a function of JavaScript answers true."""
        self.page.wait_for_function(condition, arg=argument, timeout=20_000)
