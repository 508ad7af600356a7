"""What may be shown of an event that cannot be learnt: its shape and what is wrong with it, and no value of it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from learner.events.wire import Reason
from learner.limits import UNREADABLE

MAX_SHOWN = 500
"""Characters of one line."""
_MAX_NAMES, _MAX_SHAPES, _MAX_DEPTH = 20, 3, 8
_MASKED_BYTES = 80
# Names of fields and kinds of events; anything else may be a value.
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")
_QUOTED = re.compile(r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*\"""")


def shape_of(raw: bytes) -> str:
    """An event with its names as they are and each value as its type, but for `type` and `timestamp`.

    Of a list each shape is shown once. Of what is no JSON the beginning is shown, letters as x and digits as 9.

    >>> shape_of(b'{"type": "click", "user_id": "ann", "items": [{"x": 1}, {"x": 2}, {"x": "?"}]}')
    '{"type":"click","user_id":"text","items":[{"x":"number"},{"x":"text"},"3 in all"]}'
    >>> shape_of(b"ann,17,0.5")
    'xxx,99,9.9 (10 bytes)'
    """
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE:
        return f"{_masked(raw[:_MASKED_BYTES].decode('utf-8', 'replace'))} ({len(raw)} bytes)"
    shape = _shape(value, 0)
    if isinstance(value, dict) and isinstance(shape, dict):
        if isinstance(kind := value.get("type"), str) and _NAME.fullmatch(kind):
            shape["type"] = kind
        if isinstance(value.get("timestamp"), int | float):
            shape["timestamp"] = value["timestamp"]
    return shown(msgspec.json.encode(shape).decode())


def detail_of(reason: str, detail: str) -> str:
    """What is wrong with an event, as a dead letter says it; of a damaged record it names the user, which goes.

    >>> detail_of("damaged_record", "record of user 'ann': checksum of its 64 bytes does not match")
    'record of user …: checksum of its 64 bytes does not match'
    """
    return shown(_QUOTED.sub("…", detail) if reason == Reason.DAMAGED_RECORD else detail)


def shown(text: str) -> str:
    """One line of a text from outside, fit for a terminal."""
    line = "".join(char if char.isprintable() else "." for char in text[: MAX_SHOWN + 1])
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"


def _shape(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return "…"
    match value:
        case dict():
            shape = {_name(name): _shape(one, depth + 1) for name, one in list(value.items())[:_MAX_NAMES]}
            return shape if len(value) <= _MAX_NAMES else shape | {"…": f"{len(value)} in all"}
        case list():
            shapes: list[Any] = []
            for one in value:
                if len(shapes) < _MAX_SHAPES and (shape := _shape(one, depth + 1)) not in shapes:
                    shapes.append(shape)
            return shapes if len(shapes) == len(value) else [*shapes, f"{len(value)} in all"]
        case None:
            return None
        case bool():
            return "boolean"
        case int() | float():
            return "number"
    return "text"


def _name(name: str) -> str:
    return name if _NAME.fullmatch(name) else _masked(name[:_MASKED_BYTES])


def _masked(text: str) -> str:
    kinds = (
        "x" if char.isalpha() else "9" if char.isnumeric() else char if char.isascii() and char.isprintable() else "."
        for char in text
    )
    return "".join(kinds)
