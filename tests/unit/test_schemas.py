"""Topics with a schema registry: Avro and JSON behind its framing are learnt as the JSON that says the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.model.spec import load_model
from learner.schemas import Schemas, SchemasUnavailable
from service.commands.main import main
from tests.rig import Rig
from tests.unit.test_foreign import assert_same
from tests.unit.test_suggestion import as_shop, shop

CONTEXT: dict[str, Any] = {
    "type": "record", "name": "Context", "namespace": "shop",
    "fields": [{"name": "uid", "type": "long"}, {"name": "sid", "type": "string"}],
}  # fmt: skip
ITEM: dict[str, Any] = {
    "type": "record", "name": "Item",
    "fields": [
        {"name": "pid", "type": "string"}, {"name": "price", "type": ["null", "double"]},
        {"name": "category", "type": {"type": "enum", "name": "Category", "symbols": ["shoes", "bags", "toys"]}},
    ],
}  # fmt: skip
EVENT: dict[str, Any] = {
    "type": "record", "name": "Event", "namespace": "shop",
    "fields": [
        {"name": "event", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "ctx", "type": "shop.Context"},
        {"name": "pid", "type": ["null", "string"], "default": None},
        {"name": "results", "type": ["null", {"type": "array", "items": ITEM}], "default": None},
    ],
}  # fmt: skip
WHOLE = EVENT | {"fields": [one | {"type": CONTEXT} if one["name"] == "ctx" else one for one in EVENT["fields"]]}
AVRO, JSON, THRIFT, BROKEN, LOST = 7, 8, 9, 10, 11
TOLD: dict[str, dict[str, Any]] = {
    f"/schemas/ids/{AVRO}": {
        "schema": json.dumps(EVENT), "references": [{"name": "shop.Context", "subject": "shop context", "version": 2}],
    },
    "/subjects/shop%20context/versions/2": {
        "subject": "shop context", "version": 2, "id": 3, "schema": json.dumps(CONTEXT),
    },
    f"/schemas/ids/{JSON}": {"schema": '{"type": "object"}', "schemaType": "JSON"},
    f"/schemas/ids/{THRIFT}": {"schema": "", "schemaType": "THRIFT"},
    f"/schemas/ids/{BROKEN}": {"schema": '{"type": "nothing"}'},
    f"/schemas/ids/{LOST}": {
        "schema": json.dumps(EVENT), "references": [{"name": "shop.Context", "subject": "gone", "version": 1}],
    },
}  # fmt: skip
TOML = """
name = "shop"
max_ahead = "30000d"
[features]
price = { kind = "numeric", mean = 20.0, std = 20.0 }
category = { kind = "category", values = ["shoes", "bags", "toys"] }
[events]
type = "event"
user_id = "ctx.uid"
timestamp = "ts"
request_id = "ctx.sid"
impression = { when = "view", items = "results", item_id = "pid" }
click = { when = "click", item_id = "pid" }
"""
PLAIN = load_model(TOML)


class Registry(ThreadingHTTPServer):
    """A stand-in that answers as the documented API does, to who knows the password."""

    daemon_threads = True
    status = 200
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked += 1
        told, status = TOLD.get(self.path), self.server.status
        if self.headers["Authorization"] != "Basic dTpw":
            status, told = 401, {"error_code": 401, "message": "Unauthorized"}
        elif status == 200 and told is None:
            status, told = 404, {"error_code": 40403, "message": "Schema not found"}
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(registry: Registry) -> str:
    return f"http://u:p@127.0.0.1:{registry.server_address[1]}/"


def framed(number: int, body: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + body


def avro(event: dict[str, Any], number: int = AVRO) -> bytes:
    stream = BytesIO()
    schemaless_writer(stream, parse_schema(json.loads(json.dumps(WHOLE))), event)
    return framed(number, stream.getvalue())


def events(n: int) -> list[dict[str, Any]]:
    """Of the shop, as its Avro has them: prices are numbers, times epoch ms."""
    found = []
    for plain in shop(n):
        (event,) = as_shop(plain)
        event["ts"] = plain["at"]
        del event["ctx"]["device"]
        for item in event.get("results", []):
            item["price"] = float(item["price"])
            del item["pos"]
        found.append(event)
    return found


def as_bytes(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def test_avro_and_json_of_a_registry_are_read_as_plain_json(registry: Registry) -> None:
    model = replace(PLAIN, unframed=Schemas(url(registry)).json_of)
    expected = parse_events([as_bytes(one) for one in events(20)], PLAIN)
    assert not expected.bad
    ways = [avro, lambda one: framed(JSON, as_bytes(one)), as_bytes]
    for way in [*ways, lambda one: ways[one["ts"] % 3](one)]:
        found = parse_events([way(one) for one in events(20)], model)
        assert not found.bad
        assert_same(found.batch, expected.batch)
        assert parse_event(way(events(1)[0]), model) == parse_event(as_bytes(events(1)[0]), PLAIN)
    # Each schema once: of Avro two, one refers to the other.
    assert registry.asked == 3


@pytest.mark.parametrize("as_folder", [True, False])
def test_schemas_may_be_files(tmp_path: Path, as_folder: bool) -> None:
    file = tmp_path / f"{AVRO}.avsc"
    file.write_text(json.dumps(WHOLE))
    (tmp_path / f"{JSON}.json").write_text("{}")
    model = replace(PLAIN, unframed=Schemas(str(tmp_path if as_folder else file)).json_of)
    raws = [avro(one) for one in events(9)]
    if as_folder:
        raws.append(framed(JSON, as_bytes(events(1)[0])))
    found = parse_events([*raws, framed(99, b"x")], model)
    assert list(found.bad) == [len(raws)]
    with pytest.raises(ValueError, match="expected the URL of a schema registry"):
        Schemas(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (framed(99, b"x"), "schema 99, which FRESHET_SCHEMAS does not have"),
        (framed(THRIFT, b"x"), "Thrift: expected Avro, JSON or Protobuf"),
        (framed(BROKEN, b"x"), "no Avro schema"),
        (framed(LOST, b"x"), "refers to one which FRESHET_SCHEMAS does not have"),
        (framed(AVRO, b"\x02"), f"not Avro of schema {AVRO}"),
        (avro(events(1)[0]) + b"x", "and more behind it"),
        (framed(JSON, b"{"), "truncated"),
        (b"\0\0", "no value behind it"),
    ],
)
def test_what_is_not_of_a_schema_is_a_bad_event_and_not_asked_for_again(
    registry: Registry, raw: bytes, message: str
) -> None:
    model = replace(PLAIN, unframed=Schemas(url(registry)).json_of)
    for _ in range(3):
        with pytest.raises(BadEvent, match=message) as bad:
            parse_event(raw, model)
        assert bad.value.reason is Reason.NOT_JSON
    found = parse_events([raw, avro(events(1)[0])], model)
    assert list(found.bad) == [0]
    assert registry.asked <= 4


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 300), st.binary(min_size=1, max_size=4))
def test_damaged_avro_is_a_bad_event_or_another_one(tmp_path_factory: Any, body: bytes, at: int, patch: bytes) -> None:
    file = tmp_path_factory.mktemp("schemas") / "event.avsc"
    file.write_text(json.dumps(WHOLE))
    model = replace(PLAIN, unframed=Schemas(str(file)).json_of)
    good = avro(events(1)[0])
    damaged = good[: 5 + at] + patch + good[5 + at + len(patch) :]
    found = parse_events([framed(AVRO, body), damaged, good], model)
    assert 2 not in found.bad


def test_a_learner_waits_for_a_registry_that_is_away_and_loses_nothing(registry: Registry, tmp_path: Path) -> None:
    model = replace(PLAIN, unframed=Schemas(url(registry)).json_of)
    registry.status = 503
    with pytest.raises(SchemasUnavailable, match="answered 503"):
        parse_events([avro(events(1)[0])], model)
    rig = Rig(tmp_path, model)
    rig.send(*[avro(one) for one in events(10)])
    learner = rig.new_learner()
    back = threading.Timer(0.5, setattr, (registry, "status", 200))
    back.start()
    progress = learner.turn()
    back.join()
    assert progress.counts["retries"] > 0
    assert (progress.counts["impressions"], not progress.bad) == (10, True)
    rig.close()


def test_a_registry_that_refuses_us_is_told_apart_from_an_unknown_schema(registry: Registry) -> None:
    with pytest.raises(SchemasUnavailable, match="answered 401"):
        Schemas(url(registry).replace("u:p", "u:wrong")).json_of(avro(events(1)[0]))
    with pytest.raises(SchemasUnavailable, match="no answer"):
        Schemas("http://127.0.0.1:9").json_of(avro(events(1)[0]))


def test_check_suggests_from_avro_and_looks_at_a_sample_of_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path, PLAIN)
    rig.send(*[avro(one) for one in events(60)], framed(99, b"x"))
    rig.close()
    monkeypatch.setenv("FRESHET_SCHEMAS", url(registry))
    assert main(["check", "--suggest", rig.log_url]) == 0
    toml = tmp_path / "model.toml"
    toml.write_text(capsys.readouterr().out)
    assert set(load_model(toml.read_text()).features) == {"price", "category"}
    assert main(["check", "--model", str(toml), "--sample", rig.log_url]) == 0
    told = capsys.readouterr().out
    assert "100 records" in told
    assert "results[].price" in told
    assert main(["check", "--offline"]) == 0
    assert "u:p" not in capsys.readouterr().out
