"""Logs in parts, and what the models on them have."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

_EXAMPLES = Path(__file__).parent.parent
EVERY = "of a real log every so-manieth user (default: %(default)s)"
RANKLENS_CUTS = (0.45, 0.7)


class Source(NamedTuple):
    """A log in parts.

    Attributes
    ----------
    head, linear, inputs
        Of its model.toml: what comes before the features, the features of the linear model, and the encoder.
    files
        Its parts, in order.
    """

    head: str
    linear: str
    inputs: str
    files: Sequence[Path]


MOVIELENS_INPUTS = """[encoder]
embedding = 24
inputs = [
    { name = "item_id", kind = "id" }, { name = "taste", kind = "vector", width = 16 },
    { name = "appeal", kind = "numeric" }, { name = "ratings", kind = "numeric" },
]
"""
RANKLENS_INPUTS = """[encoder]
embedding = 40
inputs = [
    { name = "item_id", kind = "id" }, { name = "taste", kind = "vector", width = 8 },
    { name = "appeal", kind = "numeric" }, { name = "votes", kind = "numeric" }, { name = "rating", kind = "numeric" },
    { name = "year", kind = "numeric" }, { name = "runtime", kind = "numeric" },
    { name = "genres", kind = "multi", values = [
        "action", "adventure", "animation", "comedy", "crime", "documentary", "drama", "family", "fantasy", "history",
        "horror", "music", "mystery", "romance", "science fiction", "thriller", "war", "western",
    ] },
]
"""


class _Whose(msgspec.Struct):
    user_id: str


def movielens(folder: Path, scratch: Path, every: int = 4) -> Source:
    """Every so-manieth user in what `examples.movielens.log` has written; films are described by the first part."""
    head, linear = _model("movielens")
    files = (folder / f"{name}.jsonl.gz" for name in ("batch", "train", "stream"))
    parts = [[line for line in lines_of(file) if _is_one(line, every)] for file in files]
    return Source(head, linear, MOVIELENS_INPUTS, written(scratch, parts))


def halves(file: Path, scratch: Path) -> list[Path]:
    """The events of half of a file's users, and those of the others."""
    parts: list[list[bytes]] = [[], []]
    for line in lines_of(file):
        # By another digit than that of every so-manieth user.
        parts[crc32(msgspec.json.decode(line, type=_Whose).user_id.encode()) >> 16 & 1].append(line)
    return written(scratch, parts)


def _is_one(line: bytes, every: int) -> bool:
    return crc32(msgspec.json.decode(line, type=_Whose).user_id.encode()) % every == 0


def ranklens(file: Path, scratch: Path, shares: Sequence[float] = RANKLENS_CUTS, every: int = 1) -> Source:
    """What `examples.ranklens.log` has written, cut in time."""
    return _cut("ranklens", RANKLENS_INPUTS, file, scratch, shares, every)


def movielens_stream(file: Path, scratch: Path, shares: Sequence[float], every: int = 1) -> Source:
    """The last ratings that `examples.movielens.log` has written, `stream.jsonl.gz`, cut in time."""
    return _cut("movielens", MOVIELENS_INPUTS, file, scratch, shares, every)


def _cut(name: str, inputs: str, file: Path, scratch: Path, shares: Sequence[float], every: int) -> Source:
    """A log without its offsets, so that every model has its own, cut at shares of its slates in order of time."""
    head, linear = _model(name)
    events = [msgspec.json.decode(line) for line in lines_of(file) if _is_one(line, every)]
    at = sorted(event["timestamp"] for event in events if event["type"] == "impression")
    cuts = [at[int(share * len(at))] for share in shares]
    parts: list[list[bytes]] = [[] for _ in range(len(cuts) + 1)]
    for event in events:
        for item in event.get("items", ()):
            item.pop("offset", None)
        parts[sum(event["timestamp"] >= cut for cut in cuts)].append(msgspec.json.encode(event))
    return Source(head, linear, inputs, written(scratch, parts))


SOURCES: dict[str, Callable[..., Source]] = {"movielens": movielens, "ranklens": ranklens}


def _model(name: str) -> tuple[str, str]:
    """What an example's model has before its features, and these."""
    head, _, features = (_EXAMPLES / name / "model.toml").read_text().partition("[features]")
    # A deep model alone has other features.
    return 'unknown_features = "ignore"\n' + head, f"[features]{features}"


def written(folder: Path, parts: Iterable[Sequence[bytes]]) -> list[Path]:
    """Parts as files of JSON lines."""
    files = []
    folder.mkdir(exist_ok=True)
    for number, lines in enumerate(parts):
        files.append(folder / f"part-{number}.jsonl")
        files[-1].write_bytes(b"\n".join(lines) + b"\n")
    return files


def n_outcomes(file: Path) -> int:
    """How many items the impressions of a file show."""
    return sum(len(msgspec.json.decode(line).get("items", ())) for line in lines_of(file))


def lines_of(file: Path) -> list[bytes]:
    """The lines of a file, unpacked."""
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).splitlines()
