"""A model for events nobody has described: a mapping, and features, proposed from a sample of them. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np

from learner.events.foreign import epoch_ms
from learner.model.duration import duration_text
from service.recognition import NoSuggestion, Recognised, flattened, hint, recognised

MOST_VALUES = 50
"""Of a category that is proposed; more are hashed."""
BUCKETS = 32
LEAST_CLICKS = 20
"""So many matched clicks say how late they come."""
_POSITION = (
    "# [position]                  # how likely each rank is looked at; `freshet fit` learns it",
    '# examination = "1/k"',
    "",
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass
class _Features:
    """Lines of `[features]`, the paths of those with another name, the path of ranks, and what was left out."""

    lines: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    position: str | None = None
    left_out: list[str] = field(default_factory=list)


def suggest(events: Sequence[Any], source: str) -> str:
    """The text of a `model.toml` for such events, decoded JSON, which came from a source.

    Raises
    ------
    NoSuggestion
        If they have nothing that could be a slate, a click, a user or a time.
    """
    rows = [flattened(event) for event in events if isinstance(event, dict)]
    if not rows:
        raise NoSuggestion("no JSON objects among the events")
    within = "payload" if all(isinstance(e, dict) and e.keys() == {"schema", "payload"} for e in events) else None
    if within:
        rows = [flattened(event[within]) for event in events]
    found = recognised(rows)
    features = _features(found)
    lines = [
        f"# Proposed from {len(events):,} events of {source}: read it before you use it, then see what it finds with",
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
        *(f"# left out: {one}" for one in features.left_out),
        "",
        "[events]",
        *([f"within = {_text(within)}"] if within else []),
        *([f"type = {_text(found.type)}"] if found.type else []),
        *(['other_types = "ignore"'] if found.other_types else []),
        f"user_id = {_text(found.user)}",
        f"timestamp = {_text(found.time)}",
        *([f"request_id = {_text(found.request)}"] if found.request else []),
        "",
        "[events.impression]",
        *_when(found, "impression"),
        *([f"items = {_text(found.items)}"] if found.items else []),
        f"item_id = {_text(found.item_id)}",
        *([f"position = {_text(features.position)}"] if features.position else []),
        *(
            [f"features = {{ {', '.join(f'{_key(k)} = {_text(v)}' for k, v in features.paths.items())} }}"]
            * bool(features.paths)
        ),
        "",
        "[events.click]",
        *_when(found, "click"),
        f"item_id = {_text(found.clicked_item)}",
    ]
    return "\n".join(lines) + "\n"


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


def _features(found: Recognised) -> _Features:
    """What items say of themselves; a path that is not only a name is told apart."""
    its = found.shown if found.items is None else [flattened(one) for row in found.shown for one in row[found.items]]
    known = {found.item_id} | ({found.type, found.user, found.time, found.request} if found.items is None else set())
    features, names = (
        _Features(),
        Counter(path.rpartition(".")[2] for path in dict.fromkeys(p for row in its for p in row)),
    )
    for path in dict.fromkeys(path for row in its for path in row):
        if path in known:
            continue
        name = path.rpartition(".")[2]
        name = name if names[name] == 1 and name != "intercept" else path.replace(".", "_")
        place = path if found.items is None else f"{found.items}[].{path}"
        values = [row.get(path) for row in its]
        there = [value for value in values if value not in (None, "")]
        if hint("position", path) and features.position is None and _are_ranks(there):
            features.position = path
            continue
        declared = "a position that does not count from 1" if hint("position", path) else declaration(there)
        if declared.startswith("{"):
            features.lines.append(f"{_key(name)} = {declared}")
            if name != path:
                features.paths[name] = path
        else:
            features.left_out.append(f"{place}: {declared}")
    return features


def declaration(values: Sequence[Any]) -> str:
    """A line of `[features]` for such values; or why there is none.

    >>> declaration([1, "2.5", 4])
    '{ kind = "numeric", mean = 2.5, std = 1.225 }'
    >>> declaration(["a", "b", "a", "a", "b", "a"])
    '{ kind = "category", values = ["a", "b"], unknown = "ignore" }'
    >>> declaration(["2026-11-01T00:00:00Z"])
    'a time'
    """
    if not values:
        return "empty throughout"
    if all(isinstance(one, bool) for one in values):
        return '{ kind = "boolean" }'
    if all(_is_number(one) for one in values):
        numbers = np.array([float(one) for one in values])
        std = float(numbers.std())
        return (
            "the same throughout"
            if std == 0
            else f'{{ kind = "numeric", mean = {numbers.mean():.4g}, std = {std:.4g} }}'
        )
    if all(isinstance(one, str) for one in values):
        if all(epoch_ms(one) is not None for one in values):
            return "a time"
        return _category(values)
    if all(isinstance(one, list) for one in values):
        return _list(values)
    return "values of several types"


def _category(values: Sequence[str]) -> str:
    counts = Counter(values)
    if len(counts) < 2:
        return "the same throughout"
    if len(counts) > len(values) / 2:
        return f"text that hardly comes twice, {len(counts):,} different values"
    if len(counts) > MOST_VALUES:
        return f'{{ kind = "hashed", buckets = {BUCKETS} }}'
    return f'{{ kind = "category", values = {_list_of(counts)}, unknown = "ignore" }}'


def _list(values: Sequence[list[Any]]) -> str:
    inner, sizes = [one for value in values for one in value], {len(value) for value in values}
    if inner and len(sizes) == 1 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in inner):
        return f'{{ kind = "vector", size = {sizes.pop()} }}'
    if inner and all(isinstance(one, str) for one in inner):
        counts = Counter(inner)
        if len(counts) > MOST_VALUES:
            return f'{{ kind = "multi", buckets = {BUCKETS} }}'
        return f'{{ kind = "multi", values = {_list_of(counts)}, unknown = "ignore" }}'
    return "lists of other things than texts, or of different lengths"


def _list_of(counts: Counter[str]) -> str:
    return "[" + ", ".join(_text(value) for value, _ in counts.most_common()) + "]"


def _are_ranks(values: Sequence[Any]) -> bool:
    """Whether they count from 1, as positions do here."""
    return bool(values) and all(type(one) is int and one >= 1 for one in values) and 1 in values


def _is_number(value: Any) -> bool:
    is_text = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
    return is_text or (isinstance(value, int | float) and not isinstance(value, bool))


def _when(found: Recognised, what: str) -> Iterable[str]:
    if values := found.when.get(what):
        told = [json.dumps(value, ensure_ascii=False) for value in values]
        yield f"when = {told[0]}" if len(told) == 1 else f"when = [{', '.join(told)}]"


def _text(value: str) -> str:
    """A text of TOML: JSON's escapes are also its own."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)
