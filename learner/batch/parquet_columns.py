"""Columns of Parquet files to Python values: of any type that pandas writes for the purpose."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import isfinite
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from learner.batch.raw import LogError
from learner.batch.remote import File
from learner.events.wire import BadEvent, Reason
from learner.model.instant import A_TIME, epoch_ms

FACT_NUMBERS = ("offset", "weight")
# A column as Python values: None for a missing one, a `BadEvent` for one that is no such value.
Converter: TypeAlias = Callable[[Any], list[Any]]


def converter(file: File, name: str, kind: Any, ids: Collection[str], times: Collection[str]) -> Converter:
    """How a column of this Arrow type is read; some hold ids, and some times.

    Raises
    ------
    LogError
        If it cannot be.
    """
    if name in ids:
        if pa.types.is_integer(kind) or _is_real(kind):
            return lambda column: [_id(one) for one in _whole(name, column)]
        return texts(file, name, kind, "ids as text or whole numbers")
    if name in times:
        if pa.types.is_timestamp(kind):
            milliseconds = pa.timestamp("ms", kind.tz)
            return lambda column: column.cast(milliseconds, safe=False).cast(pa.int64()).to_pylist()
        if pa.types.is_integer(kind) or _is_real(kind):
            return lambda column: _whole(name, column)
        if pa.types.is_null(kind):
            return lambda column: column.to_pylist()
        if _is_text(_inner(kind)):
            return lambda column: _times(name, column.cast(_inner(kind)).cast(pa.large_string()))
        raise _wrong_type(file, name, kind, "epoch milliseconds as numbers, timestamps, or text with a zone")
    if name in FACT_NUMBERS and not (pa.types.is_integer(kind) or _is_real(kind) or pa.types.is_null(kind)):
        raise _wrong_type(file, name, kind, "numbers")
    target = plain(kind)
    if target is None:
        raise _wrong_type(file, name, kind, "numbers, texts, or lists of them")
    return lambda column: _finite(name, column if column.type == target else column.cast(target))


def _inner(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _times(name: str, column: Any) -> list[Any]:
    """Times that are text."""
    why = BadEvent(Reason.BAD_TIMESTAMP, f"column {name!r}: expected {A_TIME}")
    return [
        None if text in (None, "") else why if (at := epoch_ms(text)) is None else at for text in column.to_pylist()
    ]


def texts(file: File, name: str, kind: Any, expected: str) -> Converter:
    """Of a column of texts, or of bytes; raises `LogError`, which says what was `expected`, if it is none."""
    of = _inner(kind)
    if not (_is_text(of) or pa.types.is_null(of)):
        raise _wrong_type(file, name, kind, expected)
    # The bytes of an event are judged where events are read; an id has to be text.
    target = pa.large_binary() if name == "value" else pa.large_string()
    return lambda column: column.cast(of).cast(target).to_pylist()


def _wrong_type(file: File, name: str, kind: Any, expected: str) -> LogError:
    return LogError(f"log {str(file)!r}: column {name!r} has the type {kind}: expected {expected}")


def _is_real(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def plain(kind: Any) -> Any:
    """The type that JSON has for values of this one; None if it has none."""
    types = pa.types
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
        return kind
    if _is_real(kind):
        return pa.float64()
    if _is_text(kind):
        return pa.large_string()
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = plain(kind.value_type)
        return None if inner is None or pa.types.is_nested(inner) else pa.large_list(inner)
    return None


def _whole(name: str, column: Any) -> list[Any]:
    """Whole numbers of a column of any numeric type; beyond what its type tells apart they are bad."""
    if pa.types.is_integer(column.type):
        values: list[Any] = column.to_pylist()
        return values
    exact = {16: 2**11, 32: 2**24, 64: 2**53}[column.type.bit_width] if pa.types.is_floating(column.type) else None
    why = BadEvent(Reason.BAD_FIELD, f"column {name!r}: not a whole number that its type {column.type} holds exactly")

    def whole(value: Any) -> int | BadEvent | None:
        if value is None or value != value:
            return None
        return int(value) if isfinite(value) and value == int(value) and abs(value) <= (exact or abs(value)) else why

    return [whole(value) for value in column.to_pylist()]


def _id(value: int | BadEvent | None) -> str | BadEvent | None:
    return str(value) if isinstance(value, int) else value


def _finite(name: str, column: Any) -> list[Any]:
    """The values of a column; NaN is missing, and an infinite number, or a NaN within a list, bad."""
    values: list[Any] = column.to_pylist()
    numbers = pc.list_flatten(column) if pa.types.is_large_list(column.type) else column
    if not pa.types.is_floating(numbers.type) or pc.all(pc.is_finite(numbers), min_count=0).as_py():
        return values
    why = BadEvent(Reason.NON_FINITE_NUMBER, f"column {name!r}: not a finite number")

    def finite(value: Any) -> Any:
        if isinstance(value, list):
            return value if all(one is None or isfinite(one) for one in value) else why
        return None if value is None or value != value else value if isfinite(value) else why

    return [finite(value) for value in values]
