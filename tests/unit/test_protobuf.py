"""Topics in Protobuf: learnt as the JSON that says the same, by what a registry tells of their schemas."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.model.spec import Model
from learner.schemas import Schemas
from tests.unit import test_schemas
from tests.unit.test_foreign import assert_same
from tests.unit.test_schemas import PLAIN, Registry, as_bytes, framed, url
from tests.unit.test_schemas import events as of_shop
from tests.unit.test_schemas import registry as registry

EVENT, NESTED, NO_SCHEMA, TEXT_ALONE, LOST = 21, 22, 23, 24, 25
F = FieldDescriptorProto


def message(into: Any, name: str, **fields: tuple[int, str] | int) -> Any:
    """A message of fields by name: a type, or a type and the name of a message; upper case ones are repeated."""
    made = into.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), start=1):
        kind, of = kind if isinstance(kind, tuple) else (kind, "")
        many = F.LABEL_REPEATED if field.isupper() else F.LABEL_OPTIONAL
        made.field.add(name=field.lower(), number=number, type=kind, label=many, type_name=of or None)
    return made


def files() -> tuple[FileDescriptorProto, FileDescriptorProto]:
    context = FileDescriptorProto(name="shop/context.proto", package="shop", syntax="proto3")
    message(context.message_type, "Context", uid=F.TYPE_INT64, sid=F.TYPE_STRING)
    event = FileDescriptorProto(
        name="default", package="shop", syntax="proto3",
        dependency=["shop/context.proto", "google/protobuf/timestamp.proto"],
    )  # fmt: skip
    enum = event.enum_type.add(name="Category")
    for number, value in enumerate(("shoes", "bags", "toys")):
        enum.value.add(name=value, number=number)
    message(
        event.message_type, "Item",
        pid=F.TYPE_STRING, price=F.TYPE_DOUBLE, category=(F.TYPE_ENUM, ".shop.Category"),
    )  # fmt: skip
    outer = message(
        event.message_type, "Event", event=F.TYPE_STRING, ts=(F.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
        ctx=(F.TYPE_MESSAGE, ".shop.Context"), pid=F.TYPE_STRING, RESULTS=(F.TYPE_MESSAGE, ".shop.Item"),
    )  # fmt: skip
    message(outer.nested_type, "Ping", at=F.TYPE_INT32)
    return context, event


def serialised(file: FileDescriptorProto) -> str:
    return base64.b64encode(file.SerializeToString()).decode()


CONTEXT, SHOP = files()
REFERENCE = {"name": "shop/context.proto", "subject": "context", "version": 1}
TOLD = {
    f"/schemas/ids/{EVENT}": {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF", "references": [REFERENCE]},
    f"/schemas/ids/{EVENT}?format=serialized": {
        "schema": serialised(SHOP), "schemaType": "PROTOBUF", "references": [REFERENCE],
    },
    # A registry gives every file the same name, whatever it is imported by.
    "/subjects/context/versions/1?format=serialized": {
        "schema": serialised(FileDescriptorProto.FromString(CONTEXT.SerializeToString())), "schemaType": "PROTOBUF",
    },
    f"/schemas/ids/{NO_SCHEMA}": {"schema": "", "schemaType": "PROTOBUF"},
    f"/schemas/ids/{NO_SCHEMA}?format=serialized": {"schema": "AAAA", "schemaType": "PROTOBUF"},
    f"/schemas/ids/{TEXT_ALONE}": {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"},
    f"/schemas/ids/{TEXT_ALONE}?format=serialized": {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"},
    f"/schemas/ids/{LOST}": {"schema": "", "schemaType": "PROTOBUF"},
    f"/schemas/ids/{LOST}?format=serialized": {"schema": serialised(SHOP), "schemaType": "PROTOBUF"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, answer in TOLD.items():
        monkeypatch.setitem(test_schemas.TOLD, path, answer)


def written(event: dict[str, Any], indexes: bytes = b"\x02\x02") -> bytes:
    """An event as a producer writes it: the second message of its file is ``[1]``, in zigzag."""
    pool = DescriptorPool()
    pool.AddSerializedFile(TIMESTAMP.serialized_pb)
    pool.AddSerializedFile(CONTEXT.SerializeToString())
    pool.AddSerializedFile(SHOP.SerializeToString())
    kind = GetMessageClass(pool.FindMessageTypeByName("shop.Event"))
    made = kind(event=event["event"], ctx=event["ctx"], pid=event.get("pid") or "")
    made.ts.FromMilliseconds(event["ts"])
    for item in event.get("results") or []:
        made.results.add(pid=item["pid"], price=item["price"], category=item["category"])
    return framed(EVENT, indexes + made.SerializeToString())


@pytest.fixture(params=["registry", "files"])
def model(request: pytest.FixtureRequest, registry: Registry, tmp_path: Path) -> Model:
    place = url(registry)
    if request.param == "files":
        place = str(tmp_path)
        (tmp_path / f"{EVENT}.desc").write_bytes(FileDescriptorSet(file=[CONTEXT, SHOP]).SerializeToString())
    return replace(PLAIN, unframed=Schemas(place).json_of)


def test_what_is_written_in_protobuf_is_learnt_as_the_json_that_says_the_same(model: Model) -> None:
    events = of_shop(40)
    events[0]["results"][0] |= {"price": 0.0, "category": "shoes"}
    expected = parse_events([as_bytes(one) for one in events], PLAIN)
    found = parse_events([written(one) for one in events], model)
    assert not found.bad
    assert_same(found.batch, expected.batch)


def test_a_message_is_found_by_its_place(model: Model) -> None:
    assert model.unframed is not None
    assert json.loads(model.unframed(framed(EVENT, b"\x00\x0a\x01p"))) == {
        "pid": "p",
        "price": 0.0,
        "category": "shoes",
    }
    # The first in the second: two indexes.
    assert json.loads(model.unframed(framed(EVENT, b"\x04\x02\x00\x08\x07"))) == {"at": 7}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (framed(EVENT, b""), "a schema registry's framing, and no value"),
        (framed(EVENT, b"\x02"), "not Protobuf of its schema"),
        (framed(EVENT, b"\x02\x0c"), "not Protobuf of its schema"),
        (framed(EVENT, b"\x01"), "not Protobuf of its schema"),
        (framed(EVENT, b"\xff" * 20), "not Protobuf of its schema"),
        (framed(EVENT, b"\x02\x02\x0a\xff"), "not Protobuf of its schema"),
        (framed(NO_SCHEMA, b"\x00x"), "no Protobuf schema"),
        (framed(TEXT_ALONE, b"\x00x"), "does not tell it serialised"),
        (framed(LOST, b"\x00x"), "refers to one that is missing"),
    ],
)
def test_what_is_not_of_its_schema_is_a_bad_event(registry: Registry, raw: bytes, says: str) -> None:
    with pytest.raises(BadEvent, match=says) as caught:
        parse_event(raw, replace(PLAIN, unframed=Schemas(url(registry)).json_of))
    assert caught.value.reason is Reason.NOT_JSON


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_bad_event(body: bytes) -> None:
    from learner.protobuf import Messages

    messages = Messages([(CONTEXT.name, CONTEXT.SerializeToString()), ("event", SHOP.SerializeToString())])
    with suppress(BadEvent):
        json.loads(messages.json_of(body))
