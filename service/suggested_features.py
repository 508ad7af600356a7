"""The features that a sample of events and a table of items show, as `[features]` declares them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from learner.events.foreign import as_id
from learner.model.instant import epoch_ms
from service.declaration import declaration, key, separator
from service.recognition import NoSuggestion, Recognised, Row, flattened, hint

COMMON = "|"
"""The separator that need not be said."""


@dataclass
class Suggested:
    """What is to be said of features.

    Attributes
    ----------
    declared
        The declaration of each, by name.
    paths, context, columns
        The paths of those of items, and of the context, and the columns of those of a table, that have another name.
    position, first
        The path of ranks, and the rank of the item at the top.
    item_id, timestamp, separator
        The columns of a table that have these, and what parts lists in its cells.
    left_out
        What is no feature, and why.
    """

    declared: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    position: str | None = None
    first: int = 1
    item_id: str | None = None
    timestamp: str | None = None
    separator: str = COMMON
    left_out: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Of `[features]`."""
        return [
            *(f"{key(name)} = {declared}" for name, declared in self.declared.items()),
            *(f"# left out: {one}" for one in self.left_out),
        ]

    def take(self, name: str, path: str, place: str, declared: str, others: dict[str, str]) -> None:
        """Declare a feature, whose path or column is among `others` if it is not its name; or say why it is none."""
        if not declared.startswith("{"):
            self.left_out.append(f"{place}: {declared}")
            return
        name = name if name not in self.declared else path.replace(".", "_")
        if name in self.declared:
            self.left_out.append(f"{place}: another feature has this name")
            return
        self.declared[name] = declared
        if name != path:
            others[name] = path


def suggested(found: Recognised, table: Sequence[Row], named: str) -> Suggested:
    """The features of such events, and of a table of items of that name; no rows for no table.

    Raises
    ------
    NoSuggestion
        If no column of the table has the ids of items that were shown.
    """
    features = Suggested()
    at = int(np.median([epoch_ms(row[found.time]) or 0 for row in found.shown]))
    its = found.shown if found.items is None else [flattened(one) for row in found.shown for one in row[found.items]]
    known = {found.item_id} | ({found.type, found.user, found.time, found.request} if found.items is None else set())
    outer = "" if found.items is None else f"{found.items}[]."
    names = _names(its)
    for path, values in _columns(its, known).items():
        if hint("position", path) and features.position is None and (first := _first_rank(values)) is not None:
            features.position, features.first = path, first
            continue
        declared = "a position that counts from neither 1 nor 0" if hint("position", path) else declaration(values, at)
        features.take(names[path], path, outer + path, declared, features.paths)
    if table:
        _take_table(features, table, {str(as_id(row[found.item_id])) for row in its}, at, named)
    if found.items is not None:
        of_events = {found.type, found.user, found.time, found.request, found.items}
        names = _names(found.shown)
        for path, values in _columns(found.shown, of_events).items():
            declared = _from("context", declaration(values))
            features.take(names[path], path, path, declared, features.context)
    return features


def _take_table(features: Suggested, table: Sequence[Row], shown: set[str], at: int, named: str) -> None:
    columns = _columns(table, set())
    found = {name: len(shown & {str(as_id(value)) for value in values}) for name, values in columns.items()}
    features.item_id = max(found, key=lambda name: (found[name], hint("item", name)), default=None)
    if features.item_id is None or not found[features.item_id]:
        raise NoSuggestion(f"{named}: no column has the id of an item that the events show; there are {[*columns]}")
    del columns[features.item_id]
    times = (name for name, values in columns.items() if hint("version", name) and None not in map(epoch_ms, values))
    features.timestamp = next(times, None)
    columns.pop(features.timestamp or "", None)
    features.separator = next(filter(None, map(separator, columns.values())), COMMON)
    names = _names(table)
    for path, values in columns.items():
        name = names[path]
        if separator(values) == features.separator:
            values = [[part.strip() for part in text.split(features.separator)] for text in values]
        declared = _from("catalog", declaration(values, at))
        kind = _kind(declared)
        if kind and name not in features.paths and _kind(features.declared.get(name, "")) == kind:
            # What is sent wins over the catalog, so that it is one feature.
            del features.declared[name]
        features.take(name, path, f"{named} {path}", declared, features.columns)


def _columns(rows: Sequence[Row], known: set[str | None]) -> dict[str, list[Any]]:
    """What there is at each path that is not known, without what is empty."""
    paths = [path for path in dict.fromkeys(path for row in rows for path in row) if path not in known]
    return {path: [row[path] for row in rows if row.get(path) not in (None, "")] for path in paths}


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """A feature's name by its path: the last of it, if that is of no other."""
    paths = dict.fromkeys(path for row in rows for path in row)
    last = {path: path.rpartition(".")[2] for path in paths}
    several = Counter([*last.values(), "intercept", "intercept"])
    return {path: name if several[name] == 1 else path.replace(".", "_") for path, name in last.items()}


def _from(origin: Literal["context", "catalog"], declared: str) -> str:
    return declared.replace(" }", f', from = "{origin}" }}') if declared.startswith("{") else declared


def _kind(declared: str) -> str:
    return declared.split('"')[1] if declared.startswith("{") else ""


def _first_rank(values: Sequence[Any]) -> int | None:
    """The rank at which positions begin, 1 or 0; None if they are no ranks."""
    if not values or not all(type(one) is int and one >= 0 for one in values):
        return None
    return min(values) if min(values) <= 1 else None
