"""What is wrong with JSON from outside: the field and what was expected of it, and never what was sent.

What was sent may be personal, and messages end up in responses, logs and the headers of dead letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from learner.limits import UNREADABLE
from learner.model.kinds import FeatureValue

MAX_NAME_SHOWN = 64
_PLACE = re.compile(r"(.*) - at (?:`key` in )?`\$([^`]*)`", re.DOTALL)
_IN_FEATURES = re.compile(r"(?:items\[(\d+)\]\.features|context)\[\.\.\.\]")


class Flaw(NamedTuple):
    """Why bytes are not what was expected.

    Attributes
    ----------
    is_json
        Whether they are JSON at least.
    field
        Where, as in ``items[0].features.price``; empty for the whole.
    expected
        What was expected there.
    over_limit
        Whether there is too much of it.
    """

    is_json: bool
    field: str
    expected: str
    over_limit: bool = False

    def __str__(self) -> str:
        return f"{self.field}: {self.expected}" if self.field else self.expected


def explain(raw: bytes, exc: Exception, choices: Mapping[str, str]) -> Flaw:
    """Say in our own words what msgspec found.

    Parameters
    ----------
    raw
        What was decoded.
    exc
        One of `UNREADABLE`, as raised for it.
    choices
        For a field that takes only some values, which.
    """
    if isinstance(exc, UnicodeDecodeError):
        return Flaw(False, "", "not UTF-8")
    if isinstance(exc, RecursionError):
        return Flaw(False, "", "nested too deeply: expected no lists within lists", over_limit=True)
    if not isinstance(exc, msgspec.ValidationError):
        return Flaw(False, "", str(exc))
    found = _PLACE.fullmatch(str(exc))
    what, field = (found[1], found[2].lstrip(".")) if found else (str(exc), "")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        # Its name is the sender's own, and may be of any length.
        return Flaw(True, f"{field}.{unknown[1][:MAX_NAME_SHOWN]}".lstrip("."), "no such field")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        field = f"{field}.{missing[1]}".lstrip(".")
    elif what.startswith("Invalid "):
        # The only messages with what was sent.
        what = f"Invalid value: expected {choices[field]}" if field in choices else "Invalid value"
    if inside := _IN_FEATURES.match(field):
        name = _bad_feature(raw, None if inside[1] is None else int(inside[1]))
        field = field if name is None else f"{field[: inside.end() - 5]}.{name}{field[inside.end() :]}"
    return Flaw(True, field, what, over_limit=" of length <= " in what)


def _bad_feature(raw: bytes, index: int | None) -> str | None:
    """The name that msgspec does not tell: of an item's first feature, or the context's, with a value none may have."""
    try:
        sent = msgspec.json.decode(raw)
        features = sent["context"] if index is None else sent["items"][index]["features"]
    except (*UNREADABLE, LookupError, TypeError):
        return None  # With a repeated key the last one counts here, and each of them for the decoder.
    for name, value in features.items() if isinstance(features, dict) else ():
        try:
            msgspec.convert(value, FeatureValue)
        except msgspec.ValidationError:
            return str(name)
    return None
