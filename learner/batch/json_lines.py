"""Files of JSON, an object a line or all of them in one array, packed or not."""

from __future__ import annotations

import gzip
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import IO, TYPE_CHECKING, cast

import msgspec

from learner.batch.raw import LogError, Raw, Reached

if TYPE_CHECKING:
    from learner.batch.remote import File


@contextmanager
def opened(file: File, reached: Reached) -> Iterator[IO[bytes]]:
    """A file, unpacked if it is a .gz or .zst; meanwhile `reached` knows how far it has been read."""
    with file.open("rb") as stored, _unpacked(file, stored) as data:
        reached.within = stored.tell
        yield data


def _unpacked(file: File, stored: IO[bytes]) -> IO[bytes]:
    if file.suffix == ".gz":
        return cast(IO[bytes], gzip.open(stored))
    if file.suffix == ".zst":
        # It tells a stream that was cut off, which zstandard's reader takes for whole.
        import pyarrow as pa

        return cast(IO[bytes], BufferedReader(pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd"), 1 << 17))
    return stored


def from_json(file: File, reached: Reached, what: str = "log") -> Iterator[Raw]:
    """An event, or an item, a line, or all of them in one array. A byte order mark of UTF-8 is passed over.

    Parameters
    ----------
    what
        What the file is called in errors.

    Raises
    ------
    LogError
        If it is in UTF-16, or begins as an array and is none.
    """
    with opened(file, reached) as lines:
        begun = False
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                raise LogError(f"{what} {str(file)!r}: is in UTF-16: expected UTF-8")
            line = line.removeprefix(BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            if not begun and line.lstrip().startswith(b"["):
                yield from _from_array(file, line + lines.read(), reached, what)
                return
            begun = True
            yield Raw(f"{file}:{number}", line)


def _from_array(file: File, data: bytes, reached: Reached, what: str) -> Iterator[Raw]:
    try:
        events = msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.MsgspecError as exc:
        raise LogError(f"{what} {str(file)!r}: begins as a JSON array and is none: {exc}") from exc
    index, size = 0, reached.parts[reached.part] / max(len(events), 1)
    reached.within = lambda: index * size
    for index, event in enumerate(events):
        yield Raw(f"{file}[{index}]", bytes(event))
