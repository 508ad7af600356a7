"""Run the tutorial and write what its commands print into it: `python -m docs.tutorial`. A test runs it and compares.

Blocks marked `sh` are run in order, in one shell, in a folder beside `examples`; a block `text` right behind one is
what it printed. Blocks marked `console` are for people: what clones and installs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorial").glob("[1-7]-*.md"))
_BLOCK = re.compile(r"```sh\n(?P<typed>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?", re.DOTALL)
_PORTS = {"FRESHET_PORT": 8000, "FRESHET_LEARNER_PORT": 8001}
MOST_S = 300.0
"""That a block may take."""
_END = "--- that was the block, status "
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
# What no two runs have in common: times, fingerprints, how long something took.
_VARIABLE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|\+00:00)?"), "TIME"),
    (re.compile(r"(?<!\.)\b(?=[0-9a-f]*\d)[0-9a-f]{16}\b"), "FINGERPRINT"),
    (re.compile(r"\b1[67]\d{11}\b"), "TIME"),
    (re.compile(r'(?<="took_ms": )[\d.]+'), "TOOK"),
    (re.compile(r"(?<=learnt in about )[\d.]+ us"), "TOOK"),
    (re.compile(r"(?<=://)[\w.]+:\d+"), "PLACE"),
)  # fmt: skip


class Printed(NamedTuple):
    """What a block printed, and what the page says that it does; None where it says nothing."""

    typed: str
    printed: str
    shown: str | None


class Reader:
    """Somebody who does what the pages say, in one shell.

    Parameters
    ----------
    folder
        Where; it gets the sample logs.
    places
        What stands in the place of the hosts and ports of the pages; asked when a block is run.
    """

    def __init__(self, folder: Path, places: Mapping[str, str]) -> None:
        ports = {name: places.get(f"localhost:{port}", f":{port}").rpartition(":")[2] for name, port in _PORTS.items()}
        self._places = places
        for name in ("examples", "deploy"):
            (folder / name).symlink_to(ROOT / name)
        here = folder / "tutorial"
        here.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), **ports}
        self._errors = folder / "errors"
        with self._errors.open("w") as errors:
            self._shell = subprocess.Popen(
                ["bash"], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, start_new_session=True, env=environ,
            )  # fmt: skip

    def read(self, page: Path) -> Iterator[Printed]:
        """Do what a page says."""
        for block in _BLOCK.finditer(page.read_text()):
            yield Printed(block["typed"], self._run(block["typed"]), block["shown"])

    def _run(self, typed: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        for place, instead in self._places.items():
            typed = typed.replace(place, instead)
        # `freshet up` has its port in the command.
        typed = typed.replace("--port 8000", '--port "$FRESHET_PORT"')
        self._shell.stdin.write(f"failed=0; trap 'failed=$?' ERR\n{typed}\necho \"{_END}$failed\"\n")
        self._shell.stdin.flush()
        printed = ""
        # What waits for something that does not come would wait for ever.
        watch = threading.Timer(MOST_S, self._kill)
        watch.start()
        for line in self._shell.stdout:
            before, end, status = line.partition(_END)
            printed += before
            if end:
                watch.cancel()
                if int(status):
                    break
                for place, instead in self._places.items():
                    printed = printed.replace(instead, place)
                return printed
        watch.cancel()
        why = self._errors.read_text()[-3000:]
        raise AssertionError(f"{typed}\nprinted {printed}\nand failed, or took more than {MOST_S:g} s: {why}")

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the shell and all that it left running."""
        self._kill()
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()


def difference(shown: str, printed: str) -> str:
    r"""The first line in which two outputs differ, empty if none does: times are passed over, numbers may be near.

    >>> difference("b 0.51 of 7\n", "b 0.54 of 7\n")
    ''
    >>> difference("b 0.51 of 7\n", "b 0.51 of 8\n")
    'b 0.51 of 7 | b 0.51 of 8'
    """
    ours, theirs = shown.splitlines(), printed.splitlines()
    for one, other in zip(ours, theirs, strict=False):
        if not _alike(one, other):
            return f"{one} | {other}"
    return "" if len(ours) == len(theirs) else f"{len(ours)} lines | {len(theirs)} lines: {theirs[-1:]}"


def _alike(one: str, other: str) -> bool:
    for pattern, name in _VARIABLE:
        one, other = pattern.sub(name, one), pattern.sub(name, other)
    if _NUMBER.sub("#", one).split() != _NUMBER.sub("#", other).split():
        return False
    return all(map(_near, _NUMBER.findall(one), _NUMBER.findall(other)))


def _near(one: str, other: str) -> bool:
    """Counts are equal; others are within a quarter, or .05: what is open weighs by how long ago it was shown."""
    if one == other:
        return True
    a, b = (float(number.replace(",", "")) for number in (one, other))
    return "." in one + other and abs(a - b) <= max(0.05, 0.25 * abs(a))


def main(places: Mapping[str, str]) -> None:
    """Write what is printed into the pages."""
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder), places)
        try:
            for page in PAGES:
                told = iter(list(reader.read(page)))

                def put(block: re.Match[str], told: Iterator[Printed] = told) -> str:
                    printed = next(told).printed
                    return f"```sh\n{block['typed']}```\n" + (f"\n```text\n{printed}```\n" if printed else "")

                page.write_text(_BLOCK.sub(put, page.read_text()))
        finally:
            reader.close()


if __name__ == "__main__":
    # For example localhost:9092=localhost:19092, where Kafka or Redis is elsewhere.
    main(dict(one.split("=") for one in sys.argv[1:]))
