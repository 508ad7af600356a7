"""Values as producers with a schema registry write them: a zero byte, the number of a schema, then the event.

The registry is one that answers as Confluent's does (https://docs.confluent.io/platform/current/schema-registry/develop/api.html):
``GET /schemas/ids/{id}`` and ``GET /subjects/{subject}/versions/{version}``, of Protobuf with ``?format=serialized``.
Or its schemas are in files.
"""

from __future__ import annotations

import base64
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from cachetools import TTLCache

from learner.events.wire import BadEvent, Reason
from learner.log import LogUnavailable

_HEAD = struct.Struct(">bI")
_TIMEOUT_S = 5.0
_SERIALISED = "?format=serialized"
# What fastavro raises for bytes that are not of the schema.
_UNREADABLE = (
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


class SchemasUnavailable(LogUnavailable):
    """The registry does not answer, or not as one does: what it alone can read has to wait."""


class _Told(msgspec.Struct):
    """What a registry tells of a schema."""

    schema: str
    schemaType: str = "AVRO"
    references: list[_Reference] = []


class _Reference(msgspec.Struct):
    name: str
    subject: str
    version: int


class Schemas:
    """The schemas of a place, each asked for once.

    Parameters
    ----------
    place
        The URL of a registry, with ``user:password@`` before its host where it asks for them; or a folder with
        ``<id>.avsc``, with ``<id>.json`` for JSON, or with ``<id>.desc`` for Protobuf, as ``protoc --include_imports
        --descriptor_set_out`` writes it; or one file, ``.avsc``, which is then that of all values.
    """

    def __init__(self, place: str) -> None:
        scheme, _, rest = place.rstrip("/").partition("://")
        self._auth, _, host = rest.rpartition("@")
        self._is_remote = scheme in {"http", "https"} and bool(host)
        self._place = f"{scheme}://{host}" if self._is_remote else place
        if not self._is_remote and not Path(place).exists():
            raise ValueError(
                "FRESHET_SCHEMAS: expected the URL of a schema registry, http:// or https://, or a folder or file that "
                "exists"
            )
        self._known: dict[int, Any] = {}
        self._unknown: TTLCache[int, BadEvent] = TTLCache(1_024, 60)

    def json_of(self, raw: bytes) -> bytes:
        """The JSON that a value stands for; of one without the framing that itself.

        Raises
        ------
        BadEvent
            If the schema does not exist, is of another kind, or the value is not of it.
        SchemasUnavailable
            If the registry does not answer.
        """
        if raw[:1] != b"\0":
            return raw
        if len(raw) <= _HEAD.size:
            raise BadEvent(Reason.NOT_JSON, "a schema registry's framing, and no value behind it")
        number = _HEAD.unpack_from(raw)[1]
        schema, body = self._schema(number), raw[_HEAD.size :]
        if schema is None:
            return body
        if callable(schema):
            return bytes(schema(body))
        # Imported where it is needed: most have no such topics.
        from fastavro import schemaless_reader

        stream = BytesIO(body)
        try:
            value = schemaless_reader(stream, schema, None)
        except _UNREADABLE as exc:
            raise BadEvent(Reason.NOT_JSON, f"not Avro of schema {number}") from exc
        if stream.tell() != len(body):
            raise BadEvent(Reason.NOT_JSON, f"Avro of schema {number}, and more behind it")
        return msgspec.json.encode(value)

    def _schema(self, number: int) -> Any:
        """The parsed Avro schema of a number; None for JSON; of Protobuf what makes JSON of a value."""
        if number in self._unknown:
            raise self._unknown[number]
        if number not in self._known:
            try:
                told = self._told(number)
                is_protobuf = told.schemaType == "PROTOBUF"
                self._known[number] = self._protobuf(number) if is_protobuf else _parsed(told, self._referenced)
            except BadEvent as exc:
                self._unknown[number] = exc
                raise
        return self._known[number]

    def _protobuf(self, number: int) -> Callable[[bytes], bytes]:
        # Imported where it is needed, as below.
        from learner.protobuf import Messages, files_of

        if not self._is_remote:
            return Messages(files_of((Path(self._place) / f"{number}.desc").read_bytes())).json_of
        files: dict[str, bytes] = {}

        def add(name: str, told: _Told) -> None:
            for one in told.references:
                if one.name not in files:
                    add(one.name, self._referenced(one, _SERIALISED))
            try:
                files[name] = base64.b64decode(told.schema, validate=True)
            except ValueError as exc:
                raise BadEvent(Reason.NOT_JSON, "Protobuf, of a registry that does not tell it serialised") from exc

        add(f"schema {number}", self._told(number, _SERIALISED))
        return Messages(files.items()).json_of

    def _told(self, number: int, how: str = "") -> _Told:
        place = Path(self._place)
        told = self._get(f"/schemas/ids/{number}{how}") if self._is_remote else _from_file(place, number)
        if told is None:
            raise BadEvent(Reason.NOT_JSON, f"schema {number}, which FRESHET_SCHEMAS does not have")
        return told

    def _referenced(self, reference: _Reference, how: str = "") -> _Told:
        told = self._get(f"/subjects/{quote(reference.subject, safe='')}/versions/{reference.version}{how}")
        if told is None:
            raise BadEvent(Reason.NOT_JSON, "a schema that refers to one which FRESHET_SCHEMAS does not have")
        return told

    def _get(self, path: str) -> _Told | None:
        """What the registry tells; None if there is no such schema."""
        headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if self._auth:
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(self._auth).encode()).decode()}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self._place + path, headers=headers), timeout=_TIMEOUT_S
            ) as answer:
                return msgspec.json.decode(answer.read(), type=_Told)
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return None
            raise SchemasUnavailable(f"schema registry: answered {exc.code} to {path}") from exc
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise SchemasUnavailable(f"schema registry: no answer to {path}: {exc}") from exc


def _from_file(place: Path, number: int) -> _Told | None:
    files = {place: "AVRO"} if place.is_file() else {place / f"{number}.avsc": "AVRO", place / f"{number}.json": "JSON"}
    if not place.is_file() and (place / f"{number}.desc").is_file():
        return _Told("", "PROTOBUF")
    for file, kind in files.items():
        if file.is_file():
            return _Told(file.read_text(encoding="utf-8"), kind)
    return None


def _parsed(told: _Told, referenced: Any) -> Any:
    if told.schemaType == "JSON":
        return None
    if told.schemaType != "AVRO":
        expected = "expected Avro, JSON or Protobuf behind the framing"
        raise BadEvent(Reason.NOT_JSON, f"{told.schemaType.title()}: {expected}")
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException, UnknownType

    named: dict[str, Any] = {}

    def parse(told: _Told) -> Any:
        for reference in told.references:
            parse(referenced(reference))
        return parse_schema(msgspec.json.decode(told.schema), named_schemas=named)

    try:
        return parse(told)
    except (SchemaParseException, UnknownType, msgspec.MsgspecError) as exc:
        raise BadEvent(Reason.NOT_JSON, "a schema that is no Avro schema") from exc
