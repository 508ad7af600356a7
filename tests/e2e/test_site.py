"""The site: built strictly, whole without internet, and its tutorial done as a reader would do it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import learner
from docs.tutorial import PAGES, Printed, Reader, difference
from tests.freshet import ROOT
from tests.servers import KafkaServer, RedisServer, free_port

NEEDS_SERVERS = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_can_be_read_and_searched_from_the_files_alone(site: Path, chromium: Browser) -> None:
    page = chromium.new_page(java_script_enabled=True)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name in ("index", "tutorial/1-a-first-score", "architecture", "model", "adr/index", "source/learner/loop.py"):
        page.goto(f"file://{site}/{name}.html")
        assert page.locator("h1").first.inner_text()
    page.goto(f"file://{site}/index.html")
    page.locator("input[name=query]").click()
    page.keyboard.type("tombstone")
    page.locator(".md-search-result__link").first.wait_for(timeout=60_000)
    page.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert wrong == []


def test_the_drawing_names_packages_that_are_there() -> None:
    drawn = re.findall(r'class="name"[^>]*>([\w.]+)<', (ROOT / "docs" / "architecture.svg").read_text())
    assert {"learner.log", "learner.step", "learner.store", "service.web"} <= set(drawn)
    for name in drawn:
        place = Path(learner.__file__).parents[1].joinpath(*name.split("."))
        assert place.is_dir() or place.with_suffix(".py").exists(), name


class Tutorial:
    """One reader for all pages, who comes to each by those before it."""

    def __init__(self, folder: Path, places: dict[str, str]) -> None:
        self._reader = Reader(folder, places)
        self._read: dict[Path, list[Printed]] = {}

    def page(self, page: Path) -> list[Printed]:
        for one in PAGES[: PAGES.index(page) + 1]:
            if one not in self._read:
                self._read[one] = list(self._reader.read(one))
        return self._read[page]

    def close(self) -> None:
        self._reader.close()


@pytest.fixture(scope="module")
def places() -> dict[str, str]:
    return {f"localhost:{port}": f"127.0.0.1:{free_port()}" for port in (8000, 8001)}


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory, places: dict[str, str]) -> Iterator[Tutorial]:
    if missing := [command for command in ("bash", "curl", "openssl") if shutil.which(command) is None]:
        pytest.skip(f"a reader of the tutorial types {' and '.join(missing)}, which is not installed")
    read = Tutorial(tmp_path_factory.mktemp("tutorial"), places)
    yield read
    read.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tutorial_prints_what_it_says(
    page: Path, tutorial: Tutorial, places: dict[str, str], request: pytest.FixtureRequest
) -> None:
    if PAGES.index(page) + 1 >= NEEDS_SERVERS:
        kafka: KafkaServer = request.getfixturevalue("kafka_server")
        store: RedisServer = request.getfixturevalue("redis_server")
        places.update({"localhost:9092": kafka.bootstrap, "localhost:6379": f"127.0.0.1:{store.port}"})
    done = tutorial.page(page)
    assert any(one.shown for one in done)
    for one in done:
        assert not difference(one.shown or "", one.printed), one.typed


def test_an_output_that_differs_is_told() -> None:
    assert difference("9,665 outcomes of 100 users\n", "9,665 outcomes of 100 users\n") == ""
    assert difference("9,665 outcomes of 100 users\n", "9,664 outcomes of 100 users\n")
    assert difference("a 0.16\nb 0.15\n", "b 0.16\na 0.15\n")
    assert difference("a 0.16\nb 0.15\n", "a 0.16\n")
    assert difference('"score": 0.341,\n', '"score": 0.512,\n')
    assert difference("at 2026-11-26T17:59:20.786+00:00\n", "at 2027-01-02T03:04:05.1+00:00\n") == ""
