"""What the wire format wants of values in JSON, asked of columns of Arrow. Pure."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec.inspect as wire
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learner.events.microbatch import ends_of

Type: TypeAlias = wire.Type
IDS = ("user_id", "request_id", "item_id")


def normal(column: Any) -> Any:
    """A column with one type for all texts, for all whole numbers, and so on; times are epoch ms, and NaN is null."""
    kind, types = column.type, pa.types
    if types.is_struct(kind):
        inner = [normal(pc.struct_field(column, i)) for i in range(kind.num_fields)]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(inner, names, mask=column.is_null())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.ListArray.from_arrays(_ends(column), normal(column.flatten()), mask=column.is_null())
    if types.is_dictionary(kind):
        return normal(column.cast(kind.value_type))
    if types.is_timestamp(kind):
        return column.cast(pa.timestamp("ms", kind.tz), safe=False).cast(pa.int64())
    if types.is_integer(kind):
        return column.cast(pa.int64())
    if types.is_floating(kind) or types.is_decimal(kind):
        column = column.cast(pa.float64())
        is_nan = pc.is_nan(column)
        return pc.if_else(is_nan, None, column) if pc.any(is_nan).as_py() else column
    return column if types.is_boolean(kind) or types.is_null(kind) else column.cast(pa.string())


def with_text_ids(column: Any) -> Any:
    """Events, or their items, as `normal` makes them, whose ids are text where they are whole numbers."""
    found = {field.name: pc.struct_field(column, field.name) for field in column.type}
    for name, inner in found.items():
        if name in IDS and pa.types.is_integer(inner.type):
            found[name] = inner.cast(pa.string())
        if name == "items" and pa.types.is_list(inner.type) and pa.types.is_struct(inner.type.value_type):
            items = with_text_ids(inner.flatten())
            found[name] = pa.ListArray.from_arrays(_ends(inner), items, mask=inner.is_null())
    return pa.StructArray.from_arrays([*found.values()], [*found], mask=column.is_null())


def _ends(lists: Any) -> Any:
    """Where each of some lists begins among the values of all of them, and where the last one ends."""
    return pa.array(ends_of(np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)), pa.int32())


def fits(kind: Type, column: Any) -> bool:
    """Whether all values of a column are as this type has them; null is a field that is not there."""
    members, _ = _members(kind)
    column = column.drop_null()
    if not len(column):
        return True
    return any(_is_of(one, column) for one in members)


def _members(kind: Type) -> tuple[list[Type], bool]:
    """The types of a union but for null, and whether that is one of them."""
    types = list(kind.types) if isinstance(kind, wire.UnionType) else [kind]
    types = [inner for one in types for inner in (one.types if isinstance(one, wire.UnionType) else [one])]
    some = [one for one in types if not isinstance(one, wire.NoneType)]
    return some, len(some) < len(types)


def _is_of(kind: Type, column: Any) -> bool:
    """Whether values that are all there are of one type."""
    types = pa.types
    match kind:
        case wire.StructType():
            return types.is_struct(column.type) and not _has_others(kind, column) and _has_all(kind, column)
        case wire.ListType():
            if not types.is_list(column.type) or not _within(pc.list_value_length(column), _lengths(kind)):
                return False
            inner = column.flatten()
            return not (inner.null_count and not _members(kind.item_type)[1]) and fits(kind.item_type, inner)
        case wire.TupleType():
            n = len(kind.item_types)
            if not types.is_list(column.type) or not _within(pc.list_value_length(column), (n, n)):
                return False
            inner = column.flatten()
            places = ((one, pa.array(range(k, len(inner), n))) for k, one in enumerate(kind.item_types))
            return not inner.null_count and all(fits(one, inner.take(its)) for one, its in places)
        case wire.LiteralType():
            return types.is_string(column.type) and set(column.unique().to_pylist()) <= set(kind.values)
        case wire.StrType():
            return types.is_string(column.type) and _within(pc.utf8_length(column), _lengths(kind))
        case wire.BoolType():
            return bool(types.is_boolean(column.type))
        case wire.IntType():
            return types.is_integer(column.type) and _within(column, (kind.ge, kind.le))
        case wire.FloatType():
            is_number = types.is_floating(column.type) or types.is_integer(column.type)
            return is_number and _within(column, (kind.ge, kind.le))
    return False


def _has_others(kind: wire.StructType, column: Any) -> bool:
    """Whether any value has a field that such structs must not have."""
    if not kind.cls.__struct_config__.forbid_unknown_fields:
        return False
    others = {field.name for field in column.type} - {field.encode_name for field in kind.fields}
    return any(pc.struct_field(column, name).null_count < len(column) for name in others)


def _has_all(kind: wire.StructType, column: Any) -> bool:
    """Whether all fields that are there fit, and those that have to be are."""
    for field in kind.fields:
        if (index := column.type.get_field_index(field.encode_name)) < 0:
            if field.required:
                return False
            continue
        inner = pc.struct_field(column, index)
        if (field.required and inner.null_count) or not fits(field.type, inner):
            return False
    return True


def _lengths(kind: Any) -> tuple[int | None, int | None]:
    return kind.min_length, kind.max_length


def _within(column: Any, bounds: tuple[float | None, float | None]) -> bool:
    # Arrow takes ten times as long to find the least and the most of floats.
    values, (low, high) = np.asarray(column), bounds
    return not len(values) or bool((low is None or values.min() >= low) and (high is None or values.max() <= high))
