"""Where the data that schemathesis makes up is valid to it and not to us."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """To JSON Schema 5.0 is an integer; we want 5."""
    return _integers(body)


def _integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case list():
            return [_integers(one) for one in value]
        case dict():
            return {name: _integers(one) for name, one in value.items()}
        case _:
            return value
