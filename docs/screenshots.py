"""Take the pictures of the live page that README shows: `make screenshots`, with a real Chromium.

`freshet up` learns the sample log, dated up to now, and then a stream of the same users, bad events among them, for as
long as the page's charts reach back. Then somebody plays, and each section is taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, expect

from examples.feed.log import START_MS, events
from learner.log import Entry, open_log
from service.model_file import read_model
from tests.browser import browser_path, launched
from tests.freshet import Freshet

FOLDER = Path(__file__).parent
SECTIONS = {"stream": "live-stream.png", "play": "live-playground.png", "quality": "live-quality.png"}
"""Which section of the page is in which file."""
SECONDS = 300.0
USERS, DAYS = 300, 6
WIDTH, MARGIN = 1240, 16
BAD = (
    b'{"type": "view"}',
    b"{",
    b'{"type": "impression", "request_id": "x", "user_id": "u", "timestamp": 1700000000000, "items": [{"item_id": "a", '
    b'"features": {"colour": 1}}]}',
)


def history(made: Iterator[dict[str, Any]]) -> list[bytes]:
    """The first days of the sample log, dated up to an hour ago."""
    end = START_MS + DAYS * 86_400_000
    shift = time.time_ns() // 1_000_000 - 3_600_000 - end
    some = takewhile(lambda one: one["timestamp"] < end, made)
    return [json.dumps({**one, "timestamp": one["timestamp"] + shift}).encode() for one in some]


def live(made: Iterator[dict[str, Any]], seconds: float) -> Iterator[list[bytes]]:
    """What comes in a tenth of a second, again and again: what follows in the log, dated now, and bad events."""
    rng = np.random.default_rng(7)
    for step in count():
        if step * 0.1 > seconds:
            return
        # More and less, as traffic is.
        n = rng.poisson(0.8 + 1.2 * (1.0 + np.sin(step / 90)) * (1.0 + 0.6 * np.sin(step / 17)))
        now = time.time_ns() // 1_000_000
        raws = [json.dumps({**next(made), "timestamp": now}).encode() for _ in range(n)]
        if rng.random() < 0.015:
            raws.append(BAD[rng.integers(len(BAD))])
        yield raws


def take(browser: Browser, folder: Path, seconds: float) -> None:
    """Run all of it, and write the pictures into a folder."""
    made = events(read_model(""), USERS, 2 * 365)
    with tempfile.TemporaryDirectory() as scratch:
        service = Freshet(Path(scratch), "up")
        try:
            log = open_log(f"sqlite:///{Path(scratch) / 'freshet.db'}")
            send(log, history(made))
            page = browser.new_page(viewport={"width": WIDTH, "height": 900})
            page.goto(f"http://127.0.0.1:{service.port}/")
            expect(page.locator("#link")).to_have_text("live", timeout=30_000)
            for raws in live(made, seconds):
                send(log, raws)
                page.wait_for_timeout(100)
            shoot(page, "stream", folder)
            log.close()
            play(page)
            shoot(page, "play", folder)
            shoot(page, "quality", folder)
        finally:
            service.stop()


def shoot(page: Page, section: str, folder: Path) -> None:
    """Take a section of the page, with a margin."""
    box = page.locator(f"#{section}").bounding_box()
    assert box is not None
    # Where it is in the window, of which a part has gone up.
    top = box["y"] + page.evaluate("scrollY") - MARGIN
    clip = {"x": 0, "y": top, "width": WIDTH, "height": box["height"] + 2 * MARGIN}
    page.screenshot(path=folder / SECTIONS[section], clip=clip, full_page=True)


def send(log: Any, raws: Sequence[bytes]) -> None:
    """Append to the log."""
    if raws:
        log.append([Entry("events", b"", raw) for raw in raws])


def play(page: Page) -> None:
    """Score a slate, click an item, and wait until the page says so, and has quality to show."""
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#said")).to_contain_text("Scored for ann", timeout=30_000)
    page.get_by_role("group", name="Item b").get_by_role("button", name="Click it").click()
    expect(page.locator("#said")).to_contain_text("The click on b was learnt", timeout=30_000)
    expect(page.locator("#quality-shown")).to_be_visible(timeout=60_000)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long events come (default: %(default)s)")
    arguments = parser.parse_args()
    with launched(browser_path()) as browser:
        take(browser, arguments.folder, arguments.seconds)


if __name__ == "__main__":
    main()
