"""Events as the tables of `learner.batch.sql`, in Arrow, and back. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.users import user_hash
from learner.belief.gaussian import Rows
from learner.events.microbatch import (
    BAD,
    CLICK,
    ERASE,
    ERASE_ITEM,
    EVENT,
    IMPRESSION,
    ITEM,
    Events,
    Microbatch,
    ends_of,
    is_of_item,
    item_places,
    of_item,
)
from learner.events.wire import WireClick, WireImpression

# What of an item the tables have beside its row, by the name of their column.
_OF_ITEM = {"outcome": "key", "item": "item", "place": "position", "log_odds": "offset", "weight": "weight"}


def whose(user_id: str) -> int:
    """What stands for a user in the tables: a hash with a sign, in the order of `user_hash`."""
    return signed(user_hash(user_id))


def signed(hashed: int) -> int:
    """64 bits without a sign as those with one, in the same order."""
    return hashed - 2**63


def tables_of(batch: Microbatch, first: int, chosen: Callable[[str], bool]) -> dict[str, Any]:
    """A record batch of each table, of the users that are chosen; and when the last event was, whoever's.

    Parameters
    ----------
    first
        The number of the microbatch's first event in the log.
    """
    event = batch.events.event
    known = {user: whose(user) for user in set(batch.user) if user and (is_of_item(user) or chosen(user))}
    is_mine = np.array([user in known for user in batch.user], np.bool_)
    places = np.flatnonzero(is_mine & np.isin(event["kind"], (IMPRESSION, CLICK, ERASE, ERASE_ITEM)))
    user = np.array([known[batch.user[place]] for place in places.tolist()], np.int64)
    mine = event[places]
    is_good = event["kind"] != BAD
    last = int(event["at"][is_good].max(initial=0))
    n, its = mine["n_items"], item_places(mine)
    item = batch.events.item[its]
    events: dict[str, Any] = {
        "number": first + places, "whose": user, "at_ms": mine["at"], "kind": mine["kind"].astype(np.int32),
        "outcome": mine["key"], "item": mine["item"], "n_items": n.astype(np.int32),
    }  # fmt: skip
    # Nobody's, and of no kind.
    end: dict[str, Any] = dict.fromkeys(events, 0) | {"at_ms": last, "kind": BAD}
    events = {name: np.append(column, end[name]).astype(column.dtype) for name, column in events.items()}
    nth = np.arange(len(its)) - np.repeat(ends_of(n)[:-1], n)
    shown: dict[str, Any] = {
        "number": np.repeat(first + places, n), "nth": nth.astype(np.int32), "whose": np.repeat(user, n),
        "at_ms": np.repeat(mine["at"], n),
        **{name: np.ascontiguousarray(item[field]) for name, field in _OF_ITEM.items()},
    }  # fmt: skip
    shown["place"] = shown["place"].astype(np.int32)
    rows = np.ascontiguousarray(batch.events.row[its], np.float32)
    width = rows.shape[1] * rows.itemsize
    x = pa.Array.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)]).cast(pa.binary())
    wires = [wire for wire in batch.told if chosen(wire.user_id)]
    told: dict[str, Any] = {
        "number": np.arange(first, first + len(wires)),
        "whose": np.array([whose(one.user_id) for one in wires], np.int64),
        "at_ms": np.array([one.timestamp for one in wires], np.int64),
        "told": pa.array([msgspec.json.encode(one).decode() for one in wires], pa.string()),
    }  # fmt: skip
    tables = {"events": events, "shown": {**shown, "x": x}, "told": told}
    return {name: pa.RecordBatch.from_pydict(columns) for name, columns in tables.items()}


def column(table: Any, name: str) -> NDArray[Any]:
    """A column of numbers, none of them null."""
    return np.asarray(table.column(name).to_numpy())


def rows_of(table: Any, width: int) -> Rows:
    """The column of rows, shape (N, width); not to be written to."""
    x = table.column("x")
    x = x.combine_chunks() if isinstance(x, pa.ChunkedArray) else x
    if isinstance(x, pa.ChunkedArray):  # of more than 2 GiB
        x = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in x.chunks])
    if not len(x):
        return np.empty((0, width), np.float32)
    offsets = np.frombuffer(x.buffers()[1], np.int64 if x.type == pa.large_binary() else np.int32)
    data = np.frombuffer(x.buffers()[2], np.float32, len(x) * width, int(offsets[x.offset]))
    return data.reshape(-1, width)


def microbatch_of(events: Any, shown: Any, told: Any, width: int) -> Microbatch:
    """Users' events of the tables, what they showed and told, in the order of the log; users go by their hashes."""
    event, item = np.zeros(len(events), EVENT), np.zeros(len(shown), ITEM)
    for name, field in {"kind": "kind", "at_ms": "at", "outcome": "key", "item": "item", "n_items": "n_items"}.items():
        event[field] = column(events, name)
    event["first_item"] = ends_of(event["n_items"])[:-1]
    for name, field in _OF_ITEM.items():
        item[field] = column(shown, name)
    whose_each = zip(column(events, "whose").tolist(), event["kind"].tolist(), strict=True)
    users = [of_item(str(one)) if kind == ERASE_ITEM else str(one) for one, kind in whose_each]
    wires = [
        msgspec.structs.replace(msgspec.json.decode(one, type=WireImpression | WireClick), user_id=str(user))
        for user, one in zip(column(told, "whose").tolist(), told.column("told").to_pylist(), strict=True)
    ]
    return Microbatch(users, Events(event, item, np.array(rows_of(shown, width))), told=wires)
