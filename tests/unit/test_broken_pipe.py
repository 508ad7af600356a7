"""Whoever reads a command's output may stop at any time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import service.__main__
from tests.freshet import ROOT

FRESHET = str(Path(sys.executable).parent / "freshet")
ENVIRON = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "command", [["demo", "--users", "2", "--rounds", "10"], ["check", "--offline"], ["--help"], ["fit", "--help"]]
)
def test_a_command_whose_output_nobody_reads_ends_without_a_traceback(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([FRESHET, *command], env=ENVIRON, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_is_read_until_then_is_there() -> None:
    pipe = f"'{FRESHET}' demo --users 2 --rounds 10 2>&1 | head -n 1"
    done = subprocess.run(["sh", "-c", pipe], env=ENVIRON, capture_output=True, text=True, check=True)
    assert done.stdout == "2 users, 10 slates each, 5 of 20 items shown\n"
    assert done.stderr == ""


def test_the_broken_pipe_of_another_connection_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise BrokenPipeError("of a socket")

    monkeypatch.setattr("service.commands.main.main", broken)
    with Path(os.devnull).open("w") as nowhere, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nowhere)
        patch.setattr(sys, "stderr", nowhere)
        with pytest.raises(BrokenPipeError, match="of a socket"):
            service.__main__.main()
