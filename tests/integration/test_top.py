"""`freshet top` on a terminal that is none, resized and left without a service, against the real command."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from tests.freshet import KEY, ROOT, Freshet
from tests.servers import eventually, free_port


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "freshet"), "top", *arguments]


def environ(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", **more}


class Terminal:
    """A terminal of so many lines and columns, in which a command runs."""

    def __init__(self, arguments: list[str], lines: int = 30, columns: int = 100) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self._size(lines, columns)
        self.process = subprocess.Popen(
            command(*arguments), stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            env=environ(FRESHET_API_KEY=KEY), preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, lines: int, columns: int) -> None:
        self.text()
        self.screen.resize(lines, columns)
        self.screen.reset()
        self._size(lines, columns)

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def text(self) -> str:
        """What stands on it now."""
        while select.select([self.master], [], [], 0.05)[0]:
            read = os.read(self.master, 1 << 16)
            self.raw += read
            self._stream.feed(read)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def shows(self, pattern: str, within_s: float = 20) -> None:
        eventually(lambda: re.search(pattern, self.text()) is not None, within_s, f"{pattern!r} is shown")

    def ends(self) -> int:
        status = self.process.wait(15)
        self.text()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def _size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Freshet]:
    one = Freshet(tmp_path, "up", api_key=KEY, admin_key="the admin's")
    yield one
    if one.process.poll() is None:
        one.stop()


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


def test_the_screen_follows_the_service_and_its_own_size_until_q(
    service: Freshet, terminals: list[Terminal], tmp_path: Path
) -> None:
    terminal = Terminal(["--url", f"http://127.0.0.1:{service.port}"])
    terminals.append(terminal)
    terminal.shows(r"1 of 1 ready")
    terminal.shows(r"events/0 .* ready")
    assert "dead letters  none" in terminal.text()
    assert "quality       nothing scored yet" in terminal.text()
    terminal.shows(r"/learners +\d")

    terminal.resize(20, 70)
    terminal.shows(r"dead letters")
    assert max(len(line) for line in terminal.text().splitlines()) <= 70
    terminal.resize(40, 140)
    terminal.shows(r"dead letters")

    service.stop()
    terminal.shows(r"does not answer.*asking again")
    again = Freshet(tmp_path, "up", api_key=KEY, port=service.port)
    try:
        terminal.shows(r"(?m)^live$", 30)
        assert "does not answer" not in terminal.text()
        terminal.press(b"xq")
        assert terminal.ends() == 0
    finally:
        again.stop()
    # The terminal is as it was: its lines are back, its keys are echoed, its cursor is seen.
    assert terminal.raw.rstrip().endswith((b"\x1b[?1049l\x1b[?25h", b"\x1b[?25h\x1b[?1049l"))
    assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize("end", ["ctrl-c", "sigterm"])
def test_ctrl_c_and_a_signal_end_it_and_leave_the_terminal_as_it_was(end: str, terminals: list[Terminal]) -> None:
    terminal = Terminal(["--url", f"http://127.0.0.1:{free_port()}"])
    terminals.append(terminal)
    terminal.shows(r"does not answer")
    if end == "ctrl-c":
        terminal.press(b"\x03")
    else:
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.ends() == 0
    assert b"\x1b[?1049l" in terminal.raw
    assert b"Traceback" not in terminal.raw
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_once_prints_it_and_says_by_its_status_whether_the_service_answers(service: Freshet, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY + "\n")

    def once(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        where = ["--url", f"http://127.0.0.1:{service.port}"]
        return subprocess.run(
            command(*where, *arguments), env=environ(**more), capture_output=True, text=True, timeout=60, check=False
        )

    eventually(lambda: "1 of 1 ready" in once("--once", FRESHET_API_KEY=KEY).stdout, 30, "it is ready")
    # Where there is no terminal, without being told to.
    done = once(FRESHET_API_KEY_FILE=str(key))
    assert done.returncode == 0, done.stderr
    assert "dead letters  none" in done.stdout
    assert "quality       nothing scored yet" in done.stdout
    assert "\x1b" not in done.stdout
    assert once("--once", "--api-key", KEY).returncode == 0
    refused = once("--once", FRESHET_API_KEY="wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "401 unauthorized" in refused.stderr
    service.stop()
    gone = once("--once", FRESHET_API_KEY=KEY)
    assert gone.returncode == 1
    assert "does not answer" in gone.stderr
