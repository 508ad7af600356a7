"""What a feature may be declared as, by a sample of its values. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from learner.belief.gaussian import Array
from learner.model.instant import epoch_ms

MOST_VALUES = 50
"""Of a category that is proposed; more are hashed."""
BUCKETS = 32
_DAY_MS = 86_400_000.0
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


def declaration(values: Sequence[Any], at: int | None = None) -> str:
    """A line of `[features]` for such values; or why there is none.

    Parameters
    ----------
    at
        About when, epoch ms, they are looked at: how old a time is then. None of what is of the events themselves.

    >>> declaration([1, "2.5", 4])
    '{ kind = "numeric", mean = 2.5, std = 1.225 }'
    >>> declaration(["a", "b", "a", "a", "b", "a"])
    '{ kind = "category", values = ["a", "b"], unknown = "ignore" }'
    >>> declaration(["2026-11-01T00:00:00Z"])
    'a time'
    >>> declaration(["2026-11-01T00:00:00Z", "2026-11-03T00:00:00Z"], 1793836800000)
    '{ kind = "age", mean = 3, std = 1 }'
    """
    if not values:
        return "empty throughout"
    if all(isinstance(one, bool) for one in values):
        return '{ kind = "boolean" }'
    if all(_is_number(one) for one in values):
        numbers = np.array([float(one) for one in values])
        return _scaled("numeric", numbers)
    if all(isinstance(one, str) for one in values):
        if all(epoch_ms(one) is not None for one in values):
            return "a time" if at is None else _age(values, at)
        return _category(values)
    if all(isinstance(one, list) for one in values):
        return _list(values)
    return "values of several types"


def _age(values: Sequence[str], at: int) -> str:
    return _scaled("age", np.maximum(0.0, [(at - (epoch_ms(one) or at)) / _DAY_MS for one in values]))


def _scaled(kind: str, numbers: Array) -> str:
    std = float(numbers.std())
    return "the same throughout" if std == 0 else f'{{ kind = "{kind}", mean = {numbers.mean():.4g}, std = {std:.4g} }}'


def separator(values: Sequence[Any]) -> str | None:
    """What parts the values of lists in cells of text; None of what are no such lists.

    >>> separator(["red|blue", "red", "blue|red", "green|red"])
    '|'
    >>> separator(["Shoes, all red", "Boots, as new", "A bag, small"])
    """
    texts = [value for value in values if isinstance(value, str)]
    for one in "|;,":
        parts = Counter(part.strip() for text in texts for part in text.split(one))
        is_common = sum(one in text for text in texts) > len(texts) / 10
        # The same values come in many cells; and what has a comma may be a number.
        if is_common and len(parts) < parts.total() / 2 and not all(map(_is_number, parts)):
            return one
    return None


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
    return "[" + ", ".join(quoted(value) for value, _ in counts.most_common()) + "]"


def _is_number(value: Any) -> bool:
    is_text = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
    return is_text or (isinstance(value, int | float) and not isinstance(value, bool))


def quoted(value: str) -> str:
    """A text of TOML: JSON's escapes are also its own."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def key(name: str) -> str:
    """A key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)
