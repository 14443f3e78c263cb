"""Debian's Chromium, headless, through Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from patience import PATIENCE_S, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page


@contextmanager
def browser_page(width: int = 1280, height: int = 860, *, tolerated: str | None = None) -> Iterator["Page"]:
    """Open an empty page; afterwards, fail on script errors and on requests to other hosts. Skips without Chromium.

    Console messages that contain `tolerated` are no errors.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_S * 1000)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
        page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
        page.on("request", lambda request: _is_local(request.url) or faults.append(f"request to {request.url}"))
        try:
            yield page
        finally:
            browser.close()
        faults = [fault for fault in faults if tolerated is None or tolerated not in fault]
        assert not faults, faults


def until(page: "Page", condition: str) -> None:
    """Wait until a JavaScript expression is true; Playwright's own waiting takes eval, which the page forbids."""
    eventually(lambda: bool(page.evaluate(condition)), condition)


def _is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:"))
