"""What is what in events that nobody has described: paths of ids, times and items, told from a sample. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from learner.model.instant import epoch_ms

_NAME = re.compile(r"[^.\"\\\x00-\x1f]+")
_HINTS = {
    "type": r"^(event_?)?(type|event|kind|action|name)$",
    "user": r"user|uid|visitor|customer|member|account|shopper|profile|person|client",
    "request": r"request|req_?id|search_?id|query_?id|slate|impression_?id|page_?view|view_?id|^sid$|session",
    "time": r"^(ts|t|at|date|time)$|time|_at$|_ts$|date",
    "item": r"item|product|sku|article|content|doc|movie|film|video|song|track|offer|listing|^p?id$|pid|asin",
    "position": r"^(pos|position|rank|index|idx|slot|ordinal)$",
    "shown": r"impress|view|show|expos|display|serve|render|slate|result",
    "version": r"^timestamp$|updated|modified|changed",
    "clicked": r"click|tap|select|open|choose|chose|pick|play",
}

Row = dict[str, Any]
"""An object with the paths of its values: objects within it opened, lists as they are."""


class NoSuggestion(ValueError):
    """A sample shows no events of a kind that could be learnt; the message says what was looked for."""


class Recognised(NamedTuple):
    """What was found: paths, and the events and items they are of."""

    type: str | None
    when: dict[str, list[Any]]
    items: str | None
    item_id: str
    clicked_item: str
    user: str
    time: str
    request: str | None
    shown: list[Row]
    clicked: list[Row]
    other_types: bool


def recognised(rows: list[Row]) -> Recognised:
    """What is what in these events.

    Raises
    ------
    NoSuggestion
        If there are no impressions, clicks, users or times among them.
    """
    lists = Counter(path for row in rows for path, value in row.items() if _is_slate(value))
    items = max(lists, key=lambda path: lists[path]) if lists else None
    with_items = [row for row in rows if items is not None and _is_slate(row.get(items))]
    others = [row for row in rows if items is None or not _is_slate(row.get(items))]
    kind = _type_path(with_items, others)
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in others:
        groups[row.get(kind) if kind else None].append(row)
    if items is None:
        shown_values = [value for value in groups if hint("shown", str(value)) and not hint("clicked", str(value))]
        if not shown_values:
            raise NoSuggestion(
                "no list of items in any event, and no type of event that says by its name that an item was shown"
            )
        shown = [row for value in shown_values for row in groups.pop(value)]
        its: list[Row] = shown
    else:
        shown = with_items
        its = [flattened(one) for row in shown for one in row[items]]
        shown_values = [*dict.fromkeys(row.get(kind) for row in shown)] if kind else []
    item_id, clicked_item, click_values = _item_paths(its, groups)
    clicked = [row for value in click_values for row in groups[value]]
    used = {kind, items, clicked_item} if items else {kind, items, clicked_item, item_id}
    time = _time_path(shown, clicked)
    user = _user_path(shown, clicked, used | {time})
    request = _request_path(shown, clicked, used | {time, user}, items, item_id, clicked_item)
    when = {"impression": shown_values, "click": list(click_values)} if kind else {}
    rest = len(shown) + len(clicked) < len(rows)
    return Recognised(kind, when, items, item_id, clicked_item, user, time, request, shown, clicked, rest)


def _is_slate(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def hint(what: str, path: str) -> bool:
    """Whether a name, the last of a path, says that it may be this."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path.rpartition(".")[2]).lower()
    return re.search(_HINTS[what], name) is not None


def _type_path(shown: list[Row], others: list[Row]) -> str | None:
    """What has few values, of which none is of events with items and of events without."""
    rows = [*shown, *others]
    candidates = []
    for path in _common(rows, str | int):
        values = Counter(row[path] for row in rows)
        apart = not shown or not {row[path] for row in shown} & {row[path] for row in others}
        if 2 <= len(values) <= 20 and len(values) <= len(rows) / 4 and apart:
            candidates.append((not hint("type", path), len(values), path))
    return min(candidates)[2] if candidates else None


def _item_paths(its: list[Row], groups: Mapping[Any, list[Row]]) -> tuple[str, str, list[Any]]:
    """The path of an item's id, in items and in clicks, and the types whose events name items that were shown."""
    best: tuple[float, str, str] | None = None
    in_items = {path: {str(row[path]) for row in its} for path in _common(its, str | int)}
    matched: dict[tuple[str, str], dict[Any, float]] = {}
    for path, ids in in_items.items():
        if len(ids) < 2:
            continue
        for value, rows in groups.items():
            for other in _common(rows, str | int):
                share = float(np.mean([str(row[other]) in ids for row in rows]))
                if share > 0.2:
                    matched.setdefault((path, other), {})[value] = share
    for (path, other), shares in matched.items():
        alike = path.rpartition(".")[2] == other.rpartition(".")[2]
        score = max(shares.values()) + hint("item", path) + 0.5 * alike + min(1.0, len(in_items[path]) / 50)
        if best is None or score > best[0]:
            best = score, path, other
    if best is None:
        raise NoSuggestion("no event that names an item which another event shows: expected impressions and clicks")
    _, path, other = best
    clicks = list(matched[path, other])
    named = [value for value in clicks if hint("clicked", str(value))]
    return path, other, named or clicks


def _time_path(shown: list[Row], clicked: list[Row]) -> str:
    rows = [*shown, *clicked]
    candidates = [
        (not hint("time", path), path)
        for path in _common(rows, str | int | float)
        if all(epoch_ms(row[path]) is not None for row in rows)
    ]
    if not candidates:
        raise NoSuggestion("no time that impressions and clicks have: expected epoch numbers, or ISO 8601 with a zone")
    return min(candidates)[1]


def _user_path(shown: list[Row], clicked: list[Row], used: Collection[str | None]) -> str:
    """What impressions and clicks have and several share, best of a name that says so."""
    candidates = []
    for path in _common([*shown, *clicked], str | int):
        ids = Counter(row[path] for row in shown)
        if path not in used and len(ids) > 1:
            candidates.append((not hint("user", path), len(ids) > 0.9 * len(shown), -len(ids), path))
    if not candidates:
        raise NoSuggestion("nothing that impressions and clicks have which could tell users apart")
    return min(candidates)[-1]


def _request_path(
    shown: list[Row],
    clicked: list[Row],
    used: Collection[str | None],
    items: str | None,
    item_id: str,
    clicked_item: str,
) -> str | None:
    """What leads from a click to the slate that showed its item; None if nothing does."""
    candidates = []
    for path in _common([*shown, *clicked], str | int):
        if path in used:
            continue
        slates = _slates(shown, path, items, item_id)
        named = [slates[row[path]] for row in clicked if row[path] in slates]
        right = [str(row[clicked_item]) in slates[row[path]] for row in clicked if row[path] in slates]
        if (
            named
            and np.mean(right) > 0.9
            and len(named) > 0.3 * len(clicked)
            and len(slates) > 0.5 * _n_slates(shown, items)
        ):
            candidates.append((-len(slates), not hint("request", path), path))
    return min(candidates)[2] if candidates else None


def _n_slates(shown: list[Row], items: str | None) -> int:
    # Of impressions of one item, several may be of one request.
    return len(shown) if items else len(shown) // 20


def _slates(shown: list[Row], path: str, items: str | None, item_id: str) -> dict[Any, set[str]]:
    slates: dict[Any, set[str]] = defaultdict(set)
    for row in shown:
        its = [row] if items is None else map(flattened, row[items])
        slates[row[path]] |= {str(one.get(item_id)) for one in its}
    return slates


def _common(rows: Sequence[Row], kinds: Any) -> list[str]:
    """The paths that all rows have a value of these kinds at; a boolean counts as whole number."""
    if not rows:
        return []
    return [path for path in rows[0] if all(isinstance(row.get(path), kinds) for row in rows)]


def flattened(value: Mapping[str, Any], outer: str = "") -> Row:
    """The values of an object by their paths; names that no path can have are passed over."""
    row: Row = {}
    for name, one in value.items():
        if not _NAME.fullmatch(name):
            continue
        if isinstance(one, dict):
            row |= flattened(one, f"{outer}{name}.")
        else:
            row[outer + name] = one
    return row
