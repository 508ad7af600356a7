"""A real browser without a screen, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.servers import Missing


def browser_path() -> str:
    """Where one is; raises `Missing`."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    raise Missing("neither chromium nor google-chrome is on the PATH (Debian: apt-get install chromium)")


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """A browser that asks for nothing by itself, with a profile of its own, which goes with it."""
    quiet = ("quic", "background-networking", "component-update", "sync")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{one}" for one in quiet)],
        )
        yield running
        running.close()
