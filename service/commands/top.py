"""`freshet top`: what learners and a service tell, on one screen of a terminal."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from learner.model.spec import Model
from service.commands.command import Arguments
from service.settings import Settings

if TYPE_CHECKING:
    from freshet import Client, QualityResponse
    from service.top import Reading

INTERVAL_S = 1.0
TIMEOUT_S = 2.0
FORBIDDEN = 403
_ALL_LINES = 1000
_KEY_WAIT_S = 0.1


class TopArguments(Arguments):
    """What was typed."""

    url: str | None
    api_key: str | None
    once: bool


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what it is, and what it takes."""
    parser.description = (
        "Events a second, lag, freshness, each learner with its partitions and state, requests and "
        "latencies by route, dead letters by reason, and how good scores are: what GET /learners, /metrics and "
        "/quality of a service say, once a second. Rates are those of the last 5 seconds, quantiles of the last "
        "minute; requests are of the one service that answers. Where it goes away the screen says so, and goes on "
        "when it is back. q or Ctrl-C ends it."
    )
    parser.epilog = (
        "The key is what FRESHET_API_KEY says, or the file that FRESHET_API_KEY_FILE names. With --once, exit "
        "status 1 if the service does not answer."
    )
    parser.add_argument("--url", help="of the service (default: http://127.0.0.1: and FRESHET_PORT, else 8000)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="instead of FRESHET_API_KEY; others on this machine may see what is typed"
    )
    parser.add_argument(
        "--once", action="store_true", help="print it once, after two looks, and end; so too where there is no terminal"
    )


def run(arguments: TopArguments, settings: Settings, model: Model) -> int:
    """Show it until a key, or once."""
    from freshet import Client

    url = arguments.url or f"http://127.0.0.1:{settings.port}"
    key = settings.api_key if arguments.api_key is None else arguments.api_key
    with Client(url, key, timeout_s=TIMEOUT_S, retries=0) as client:
        if arguments.once or not sys.stdout.isatty():
            return _once(client, url)
        return _show(client, url)


def _once(client: Client, url: str) -> int:
    from rich.console import Console

    from service.top import Readings, screen

    readings = Readings()
    readings.take(look(client))
    time.sleep(INTERVAL_S)
    readings.take(look(client))
    Console(highlight=False).print(screen(url, readings, None, time.monotonic(), _ALL_LINES))
    return 0


def look(client: Client) -> Reading:
    """What a service says now; raises `FreshetError`."""
    from service.top import reading

    told, metrics = client.learners(), client.metrics()
    return reading(time.monotonic(), told, metrics, _quality(client))


def _quality(client: Client) -> QualityResponse | str:
    """How good scores are, or why this key does not see it: a proxy, or an older service, may open the rest alone."""
    from freshet import FreshetError

    try:
        return client.quality()
    except FreshetError as exc:
        if exc.status != FORBIDDEN:
            raise
        return "this key may not read it"


def _show(client: Client, url: str) -> int:
    from rich.console import Console

    from freshet import FreshetError
    from service.top import Readings, screen

    readings, console, trouble = Readings(), Console(highlight=False), None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Not where keys are read: a service that hangs must not keep the screen.
    with ThreadPoolExecutor(1) as pool, _keys(), console.screen() as shown:
        try:
            asked, looked_at, size = pool.submit(look, client), time.monotonic(), None
            while not _pressed(b"q"):
                now, found = time.monotonic(), shutil.get_terminal_size()
                is_due = now - looked_at >= INTERVAL_S
                if not is_due and found == size:
                    continue
                if is_due and asked.done():
                    try:
                        readings.take(asked.result())
                        trouble = None
                    except FreshetError as exc:
                        trouble = str(exc)
                    asked = pool.submit(look, client)
                looked_at, size = (now if is_due else looked_at), found
                shown.update(screen(url, readings, trouble, now, found.lines))
        except KeyboardInterrupt:
            return 0  # The way to end it.
    return 0


@contextmanager
def _keys() -> Iterator[None]:
    """Have keys come as they are pressed, unseen; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(key: bytes) -> bool:
    """Whether a key was pressed in the last tenth of a second."""
    if not sys.stdin.isatty():
        time.sleep(_KEY_WAIT_S)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], _KEY_WAIT_S)
    return bool(ready) and key in os.read(sys.stdin.fileno(), 1024).lower()
