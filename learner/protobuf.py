"""Values in Protobuf as producers with a schema registry write them: which message of a schema, then the message.

The registry tells a schema as a serialised ``FileDescriptorProto``, so that no ``.proto`` has to be compiled here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

import msgspec
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from learner.events.wire import BadEvent, Reason

_WELL_KNOWN = "google/protobuf/"


class Messages:
    """The messages of a schema.

    Parameters
    ----------
    files
        By name what it imports, then the schema itself, each a serialised ``FileDescriptorProto``.

    Raises
    ------
    BadEvent
        If it is no schema, or imports what is not among them.
    """

    def __init__(self, files: Iterable[tuple[str, bytes]]) -> None:
        pool, there, name = DescriptorPool(), set[str](), ""
        try:
            for name, serialised in files:
                file = descriptor_pb2.FileDescriptorProto.FromString(serialised)
                file.name = name
                for other in file.dependency:
                    if other.startswith(_WELL_KNOWN) and other not in there:
                        there.add(other)
                        pool.AddSerializedFile(_well_known(other))
                pool.AddSerializedFile(file.SerializeToString())
            self._file = pool.FindFileByName(name)
        except (DecodeError, TypeError, KeyError, ImportError) as exc:
            says = "a schema that is no Protobuf schema, or refers to one that is missing"
            raise BadEvent(Reason.NOT_JSON, says) from exc
        self._classes: dict[tuple[int, ...], Any] = {}

    def json_of(self, body: bytes) -> bytes:
        """The JSON of a value behind the schema's number, by Protobuf's own rules but with the names of the schema.

        Fields that say nothing when they are not set have their default. Raises `BadEvent` for what is no such value.
        """
        try:
            indexes, at = _indexes(body)
            message = self._class(indexes).FromString(body[at:])
        except (DecodeError, IndexError) as exc:
            raise BadEvent(Reason.NOT_JSON, "not Protobuf of its schema") from exc
        return msgspec.json.encode(
            MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        )

    def _class(self, indexes: tuple[int, ...]) -> Any:
        if indexes not in self._classes:
            found = list(self._file.message_types_by_name.values())[indexes[0]]
            for one in indexes[1:]:
                found = found.nested_types[one]
            self._classes[indexes] = GetMessageClass(found)
        return self._classes[indexes]


def _indexes(body: bytes) -> tuple[tuple[int, ...], int]:
    """The place of a message among those of its file, from the outside in, and where it begins."""
    n, at = _varint(body, 0)
    found = []
    for _ in range(n):
        one, at = _varint(body, at)
        found.append(one)
    return tuple(found) or (0,), at


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    # Zigzag; negative ones stand for nothing.
    if value & 1 or value > 2_000:
        raise IndexError(value)
    return value >> 1, at


@cache
def _well_known(name: str) -> bytes:
    module = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    serialised: bytes = module.DESCRIPTOR.serialized_pb
    return serialised


def files_of(serialised: bytes) -> list[tuple[str, bytes]]:
    """The files of a ``FileDescriptorSet``, as ``protoc --include_imports --descriptor_set_out`` writes it."""
    try:
        found = descriptor_pb2.FileDescriptorSet.FromString(serialised).file
    except DecodeError as exc:
        raise BadEvent(Reason.NOT_JSON, "a schema that is no FileDescriptorSet") from exc
    return [(one.name, one.SerializeToString()) for one in found if not one.name.startswith(_WELL_KNOWN)]
