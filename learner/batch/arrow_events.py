"""Events that stand in columns of Arrow to a microbatch, all at once.

What is an event, and why another is none, is said by the wire format and the model, and is said of one event at a time
(`learner.events.parse`). Here only what is surely right is read, in a fraction of the time, to the same columns; of
anything else the answer is None, and events are read as bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec.inspect as wire
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learner.batch.wire_columns import fits
from learner.events.keys import item_keys, outcome_keys
from learner.events.microbatch import CLICK, EVENT, IMPRESSION, ITEM, Events, Microbatch, ends_of, with_clicks
from learner.events.wire import WireClick, WireImpression, WireItem, with_features
from learner.model.design import Shown
from learner.model.kinds import Age, Feature, ItemError
from learner.model.spec import Model

_TYPES = pa.array(["impression", "click"])
# Types of fields that are null throughout; else text.
_WITHOUT = {"items": pa.list_(pa.struct([("item_id", pa.string())])), "timestamp": pa.int64()}


def can_be_columns(model: Model) -> bool:
    """Whether events of a model are read at once where they stand in columns."""
    said = model.specification
    is_plain = model.catalog is None and said.encoder is None and said.weights is None and model.experiment is None
    is_ours = model.events is None and model.unframed is None and not model.declared.kinds
    return is_plain and is_ours and model.structs is not None


@lru_cache(maxsize=8)
def _kinds(structs: tuple[type, type]) -> tuple[wire.Type, wire.Type]:
    """What impressions and clicks are like, of a model with these structs."""
    return wire.type_info(with_features(structs, WireImpression, WireItem)), wire.type_info(WireClick)


def from_events(events: Any, model: Model) -> Microbatch | None:
    """Events as structs, as `normal` makes them: a field is null where an event has none."""
    kind = _field(events, "type")
    if not pa.types.is_string(kind.type) or kind.null_count or not pc.all(pc.is_in(kind, _TYPES), min_count=0).as_py():
        return None
    is_click = np.asarray(pc.equal(kind, "click"))
    shown, clicks = events.filter(pa.array(~is_click)), events.filter(pa.array(is_click))
    return to_microbatch(shown, np.flatnonzero(~is_click), clicks, np.flatnonzero(is_click), model)


def to_microbatch(
    shown: Any, shown_at: NDArray[np.intp], clicks: Any, clicks_at: NDArray[np.intp], model: Model
) -> Microbatch | None:
    """Impressions and clicks, arrays of structs as `normal` makes them, and which of E events each is."""
    if model.structs is None:
        return None
    impression, click = _kinds(model.structs)
    try:
        if not (fits(impression, shown) and fits(click, clicks)):
            return None
        return _microbatch(shown, shown_at, clicks, clicks_at, model)
    except (ItemError, UnicodeDecodeError, pa.ArrowException):
        # Text that is no UTF-8, among others.
        return None


def _microbatch(
    shown: Any, shown_at: NDArray[np.intp], clicks: Any, clicks_at: NDArray[np.intp], model: Model
) -> Microbatch | None:
    items = _field(shown, "items")
    n_items, one = np.asarray(pc.list_value_length(items), np.int64), items.flatten()
    clicked_requests = _field(clicks, "request_id")
    # Evaluations of policies want more of these, and other clicks are of no showing.
    tells = any(_is_there(*said) for said in ((one, "propensity"), (clicks, "reward"), (shown, "candidates")))
    if tells or (not model.by_item and clicked_requests.null_count):
        return None
    event, item = np.zeros(len(shown) + len(clicks), EVENT), np.zeros(len(one), ITEM)
    user = np.empty(len(event), object)
    for kind, at, some in ((IMPRESSION, shown_at, shown), (CLICK, clicks_at, clicks)):
        event["kind"][at], event["at"][at] = kind, np.asarray(_field(some, "timestamp"))
        user[at] = _field(some, "user_id").to_pylist()
    requests = _field(shown, "request_id").to_pylist()
    clicked, ids = _item_keys(_field(clicks, "item_id")), _item_keys(_field(one, "item_id"))
    event["key"][clicks_at], item["key"] = clicked, ids
    if not model.by_item:
        event["key"][clicks_at] = outcome_keys(clicked_requests.to_pylist(), 1, clicked)
        item["key"] = outcome_keys(requests, n_items, ids)
    event["n_items"][shown_at] = n_items
    event["first_item"][shown_at] = ends_of(n_items)[:-1]
    item["weight"] = 1.0 if not _is_there(one, "weight") else _numbers(pc.fill_null(_field(one, "weight"), 1.0))
    if model.examination is not None:
        ranks = np.arange(len(one)) - np.repeat(ends_of(n_items)[:-1], n_items) + 1
        said = _is_there(one, "position")
        item["position"] = (pc.coalesce(_field(one, "position"), pa.array(ranks)) if said else ranks) - np.int64(1)
    row = model.design.rows_of_columns(len(one), _features(one, model), _requests(shown, n_items, model))
    offset = _field(one, "offset")
    item["offset"] = model.offsets(offset.to_pylist() if _is_there(one, "offset") else [None] * len(one), row)
    without = np.flatnonzero(offset.is_null())
    if model.item is not None:
        event["item"][clicks_at], item["item"] = clicked, ids
        effects = _field(one, "item_effect").to_pylist() if _is_there(one, "item_effect") else [None] * len(one)
        item["other_mean"], item["other_var"] = model.item.as_scored(effects, row)
    batch = Microbatch(user.tolist(), Events(event, item, row), None, {}, without)
    if _is_there(one, "clicked") and pc.any(_field(one, "clicked")).as_py():
        are = np.flatnonzero(pc.fill_null(_field(one, "clicked"), False))
        first = model.click_delay is None and not model.by_item
        batch = with_clicks(batch, are, np.repeat(shown_at, n_items), first)
    return batch


def _field(some: Any, name: str) -> Any:
    """A field of structs; nulls where they have none."""
    index = some.type.get_field_index(name)
    found = pa.nulls(len(some)) if index < 0 else pc.struct_field(some, index)
    return found.cast(_WITHOUT.get(name, pa.string())) if pa.types.is_null(found.type) else found


def _is_there(some: Any, name: str) -> bool:
    if some.type.get_field_index(name) < 0:
        return False
    one = _field(some, name)
    return bool(one.null_count < len(one))


def _item_keys(ids: Any) -> NDArray[np.int64]:
    found = ids.dictionary_encode()
    keys: NDArray[np.int64] = item_keys(found.dictionary.to_pylist())[np.asarray(found.indices)]
    return keys


def _numbers(column: Any) -> NDArray[np.float64]:
    """A column of numbers, NaN where one is missing."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _features(one: Any, model: Model) -> dict[str, Any]:
    """See `learner.model.design.Design.rows_of_columns`."""
    if not _is_there(one, "features"):
        return {}
    features = _field(one, "features")
    there = {name: _field(features, name) for name in model.item_features if _is_there(features, name)}
    return {
        name: _numbers(column) if name in model.design.decoded else _values(column, model.features[name])
        for name, column in there.items()
    }


def _values(column: Any, feature: Feature) -> list[Any]:
    """As a decoder of JSON has them, to which whole numbers are none of their own but in a time."""
    inner = column.type.value_type if pa.types.is_list(column.type) else column.type
    if pa.types.is_integer(inner) and not isinstance(feature, Age):
        column = column.cast(pa.float64() if inner is column.type else pa.list_(pa.float64()))
    values: list[Any] = column.to_pylist()
    return values


def _requests(shown: Any, n_items: NDArray[np.int64], model: Model) -> Shown | None:
    if not model.needs_shown:
        return None
    said = _field(shown, "context").to_pylist() if _is_there(shown, "context") else [None] * len(shown)
    times = _field(shown, "timestamp").to_pylist()
    return Shown(n_items.tolist(), times, [{} if one is None else one for one in said])
