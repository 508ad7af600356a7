from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser

from tests.browser import browser_path, launched
from tests.freshet import Freshet
from tests.servers import KafkaServer, Missing, OldKafkaServer, PrometheusServer, RedisServer, Server

# Set in CI: a missing server or browser fails instead of skipping.
REQUIRED = os.environ.get("REQUIRE_SERVICES") == "1"
_missing: set[str] = set()


def skip(reason: str) -> NoReturn:
    """Skip what cannot be tested here, loudly; or fail, where it is required."""
    _missing.add(reason)
    if REQUIRED:
        pytest.fail(f"REQUIRE_SERVICES=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def _run(kind: type[Server], folder: Path, starting: bool = True) -> Iterator[Server]:
    try:
        server = kind(folder)
        if starting:
            server.start()
    except Missing as exc:
        skip(str(exc))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _run(RedisServer, tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _run(KafkaServer, tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="module")
def old_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _run(OldKafkaServer, tmp_path_factory.mktemp("old-kafka"))


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started: what it scrapes is the test's to say."""
    yield from _run(PrometheusServer, tmp_path_factory.mktemp("prometheus"), starting=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MB, in memory; never required, since it takes the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        reason = f"a full disk: none can be mounted here (it takes root): {mounted.stderr.strip()}"
        _missing.add(reason)
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The command that makes one list of objects of a kustomization."""
    if (found := shutil.which("kubectl")) is None:
        # Debian's is too old for our kustomization, so it is not required; but that is said aloud.
        _missing.add(
            reason := "what kustomize makes: kubectl is not installed (https://kubernetes.io/docs/tasks/tools)"
        )
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser that runs without a screen."""
    try:
        return browser_path()
    except Missing as exc:
        skip(str(exc))


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Browser]:
    """The browser.

    For no more than a module: while Playwright runs, so does its event loop, and tests of others cannot start theirs.
    """
    with launched(browser) as running:
        yield running


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Of pytest-xdist: what a worker tells the process that it works for.
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        told["missing"] = sorted(_missing)
    for process in Freshet.started:
        if process.poll() is None:  # Its test failed.
            process.kill()
            process.wait()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _missing.update(getattr(node, "workeroutput", {}).get("missing", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        terminalreporter.section(
            "NOT TESTED: servers, a browser or a command are missing", sep="!", red=True, bold=True
        )
        for reason in sorted(_missing):
            terminalreporter.line(reason)
