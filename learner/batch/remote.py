"""Files of a store of objects, such as ``s3://bucket/day=1``, which PyArrow's own file systems read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, cast

from learner.batch.raw import LogError

SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "file")


@dataclass(frozen=True)
class Remote:
    """What reading asks of a path, of a file elsewhere.

    Attributes
    ----------
    system, path
        PyArrow's file system, and the file's path in it.
    scheme, query
        What stands before and behind that path in its URL: written together they name the file again.
    """

    system: Any
    path: str
    scheme: str
    query: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}{self.query}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """What its name ends with."""
        return PurePosixPath(self.path).suffix

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self.system.get_file_info(self.path).is_file)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, for reading."""
        return cast(IO[bytes], BufferedReader(self.system.open_input_file(self.path), 1 << 20))


File: TypeAlias = Path | Remote


def size_of(file: File) -> int:
    """In bytes."""
    return file.stat().st_size if isinstance(file, Path) else int(file.system.get_file_info(file.path).size or 0)


def is_remote(source: str) -> bool:
    """Whether a source of a log is such a file, or folder of files.

    >>> is_remote("s3://bucket/log.parquet"), is_remote("kafka://host"), is_remote("log.parquet")
    (True, False, False)
    """
    return source.partition("://")[0] in SCHEMES and "://" in source


def remote_files(source: str) -> list[Remote]:
    """The file, or all that are in a folder and the folders in it, by name; hidden ones are left out.

    Raises
    ------
    LogError
        If the store cannot be asked.
    """
    # An import of a fifth of a second, which no other log needs.
    import pyarrow as pa
    import pyarrow.fs

    scheme = source.partition("://")[0]
    query = "?" + source.partition("?")[2] if "?" in source else ""
    try:
        system, path = pa.fs.FileSystem.from_uri(source)
        if system.get_file_info(path).type != pa.fs.FileType.Directory:
            return [Remote(system, path, scheme, query)]
        inside = system.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except (pa.ArrowException, OSError) as exc:
        raise LogError(f"log {source!r}: cannot be read: {exc}") from exc
    paths = sorted(one.path for one in inside if one.is_file)
    return [
        Remote(system, one, scheme, query) for one in paths if not is_hidden(one[len(path) :].strip("/").split("/"))
    ]


def is_hidden(parts: Iterable[str]) -> bool:
    """Whether a file of a folder is none of its log, by the names of the folders in it that lead there, and its own.

    >>> is_hidden(("day=1", "_SUCCESS")), is_hidden(("day=1", "part-0.parquet"))
    (True, False)
    """
    return any(part.startswith((".", "_")) for part in parts)
