"""A model for events nobody has described: a mapping, and features, proposed from a sample of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from learner.model.duration import duration_text
from learner.model.instant import epoch_ms
from service.declaration import key, quoted
from service.recognition import NoSuggestion, Recognised, flattened, recognised
from service.suggested_features import COMMON, Suggested, suggested

LEAST_CLICKS = 20
"""So many matched clicks say how late they come."""
_POSITION = (
    "# [position]                  # how likely each rank is looked at; `freshet fit` learns it",
    '# examination = "1/k"',
    "",
)


def suggest(events: Sequence[Any], source: str, table: Sequence[Mapping[str, Any]] = (), named: str = "") -> str:
    """The text of a `model.toml` for such events, decoded JSON, which came from a source.

    Parameters
    ----------
    table, named
        Rows of a table of items, and what it is called.

    Raises
    ------
    NoSuggestion
        If they have nothing that could be a slate, a click, a user or a time; or the table no id of an item shown.
    """
    rows = [flattened(event) for event in events if isinstance(event, dict)]
    if not rows:
        raise NoSuggestion("no JSON objects among the events")
    within = "payload" if all(isinstance(e, dict) and e.keys() == {"schema", "payload"} for e in events) else None
    if within:
        rows = [flattened(event[within]) for event in events]
    found = recognised(rows)
    features = suggested(found, list(map(_row, table)), named)
    of_items = f" and {len(table):,} items of {named}" if table else ""
    lines = [
        f"# Proposed from {len(events):,} events of {source}{of_items}:",
        "# read it before you use it, then see what it finds with",
        f"#   freshet check --model model.toml --sample {source}",
        'name = "suggested"',
        'half_life = "30d"',
        'attribution_window = "30m"',
        *_delay(found),
        *(['match_clicks = "item"         # clicks name no request'] if found.request is None else []),
        "",
        "[prior]",
        "variance = 0.5",
        f"intercept_mean = {_level(found):.2f}",
        "",
        *(_POSITION if features.position else []),
        "[features]",
        *features.lines,
        "",
        "[events]",
        *([f"within = {quoted(within)}"] if within else []),
        *([f"type = {quoted(found.type)}"] if found.type else []),
        *(['other_types = "ignore"'] if found.other_types else []),
        f"user_id = {quoted(found.user)}",
        f"timestamp = {quoted(found.time)}",
        *([f"request_id = {quoted(found.request)}"] if found.request else []),
        "",
        "[events.impression]",
        *_when(found, "impression"),
        *([f"items = {quoted(found.items)}"] if found.items else []),
        f"item_id = {quoted(found.item_id)}",
        *([f"position = {quoted(features.position)}"] if features.position else []),
        *(["position_from = 0"] if features.position and features.first == 0 else []),
        *_table("features", features.paths),
        *_table("context", features.context),
        "",
        "[events.click]",
        *_when(found, "click"),
        f"item_id = {quoted(found.clicked_item)}",
        *_catalog(features),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of a table says, by path; `features` of our own shape are columns like others."""
    inside = cells.get("features")
    return flattened({**cells, **inside, "features": None} if isinstance(inside, dict) else cells)


def _catalog(features: Suggested) -> Iterable[str]:
    if features.item_id is not None:
        yield from ("", "[catalog]", f"item_id = {quoted(features.item_id)}")
        yield from ([f"timestamp = {quoted(features.timestamp)}"] if features.timestamp else [])
        yield from ([] if features.separator == COMMON else [f"separator = {quoted(features.separator)}"])
        yield from _table("features", features.columns)


def _table(name: str, said: Mapping[str, str]) -> Iterable[str]:
    """A table of TOML in one line; nothing of an empty one."""
    if said:
        yield f"{name} = {{ {', '.join(f'{key(one)} = {quoted(value)}' for one, value in said.items())} }}"


def _delay(found: Recognised) -> Iterable[str]:
    """How late clicks come, where the sample shows it."""
    if found.request is None:
        return
    shown_at = {row[found.request]: epoch_ms(row[found.time]) or 0 for row in found.shown}
    at = ((epoch_ms(row[found.time]) or 0) - shown_at.get(row[found.request], np.inf) for row in found.clicked)
    late = np.array([one for one in at if 0 < one < 1_800_000])
    if len(late) >= LEAST_CLICKS:
        median = max(1_000, round(float(np.median(late)) / 1_000) * 1_000)
        yield f'click_delay = {{ median = "{duration_text(median)}", sigma = {max(0.1, np.log(late).std()):.2f} }}'


def _level(found: Recognised) -> float:
    n_items = len(found.shown) if found.items is None else sum(len(row[found.items]) for row in found.shown)
    share = min(0.9, max(1, len(found.clicked)) / n_items)
    return log(share / (1 - share))


def _when(found: Recognised, what: str) -> Iterable[str]:
    if values := found.when.get(what):
        told = [json.dumps(value, ensure_ascii=False) for value in values]
        yield f"when = {told[0]}" if len(told) == 1 else f"when = [{', '.join(told)}]"
