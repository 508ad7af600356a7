"""Logs in a store of objects are read as those on a disk: by a server that speaks what of S3 reading takes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch.reading import LogAtRest, LogError, Skipped, read_events
from learner.events.microbatch import Microbatch, joined
from learner.model.spec import load_model
from tests.unit.test_join import lines, same

MODEL = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
OBJECTS: dict[str, bytes] = {}


class Store(BaseHTTPRequestHandler):
    """Objects of S3 in memory, by ``/bucket/key``: HEAD, GET of a range, and a list by prefix."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name, query = unquote(url.path).strip("/"), parse_qs(url.query)
        if "/" not in name:
            prefix = query.get("prefix", [""])[0]
            found = [key for key in OBJECTS if key.startswith(f"{name}/{prefix}")]
            each = "".join(
                f"<Contents><Key>{key.removeprefix(name + '/')}</Key><Size>{len(OBJECTS[key])}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for key in sorted(found)
            )
            listed = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{each}"
            xml = f'<?xml version="1.0"?><ListBucketResult><Name>{name}</Name>{listed}</ListBucketResult>'
            self._answer(200, xml.encode(), Content_Type="application/xml")
        elif (body := OBJECTS.get(name)) is None:
            self._answer(404)
        elif self.command == "GET" and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            some = body[int(first) : int(last or len(body)) + 1]
            self._answer(206, some, Content_Range=f"bytes {first}-{int(first) + len(some) - 1}/{len(body)}")
        else:
            self._answer(200, body, **({"Content_Length": str(len(body))}))

    do_HEAD = do_GET


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a URL says of the store."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a")
    yield f"?scheme=http&endpoint_override=127.0.0.1:{server.server_port}&region=here"
    server.shutdown()
    server.server_close()


def events(*sources: str, skipped: Skipped | None = None) -> Microbatch:
    return joined(read_events(sources, MODEL, skipped=skipped), MODEL.width)


def test_files_and_folders_of_s3_are_read_as_those_of_a_disk(options: str, tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "a.jsonl.gz").write_bytes(gzip.compress(lines(300)))
    pq.write_table(pa.table({"value": lines(50).split(b"\n")}), tmp_path / "day=1" / "b.parquet", row_group_size=20)
    (tmp_path / "day=1" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "c.ndjson").write_bytes(lines(5))
    OBJECTS.clear()
    OBJECTS.update(
        {f"lake/{file.relative_to(tmp_path)}": file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    )
    here = events(str(tmp_path))
    assert len(here.user) == 355
    assert same(here, joined([events(f"s3://lake/c.ndjson{options}"), events(f"s3://lake/day=1{options}")], 2))
    assert same(here, events(f"file://{tmp_path}"))
    # Each file as a log of its own, as executors read it.
    pieces = LogAtRest((f"s3://lake/day=1{options}",), MODEL).pieces()
    assert [len(joined(one.events(), 2).user) for one in pieces] == [300, 50]


def test_what_cannot_be_had_of_a_store_is_named(options: str) -> None:
    OBJECTS.clear()
    OBJECTS["lake/cut.jsonl.gz"] = gzip.compress(lines(300))[:-20]
    with pytest.raises(LogError, match=r"s3://lake/cut\.jsonl\.gz.*cannot be read"):
        events(f"s3://lake/cut.jsonl.gz{options}")
    assert len(events(f"s3://lake/cut.jsonl.gz{options}", skipped=(skipped := Skipped())).user) > 200
    assert "cut.jsonl.gz" in skipped.unread[0]
    with pytest.raises(LogError, match=r"absent\.jsonl"):
        events(f"s3://lake/absent.jsonl{options}", skipped=Skipped())
