"""What is in the record of a user or an item, for people or as JSON. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Belief
from learner.model.catalog import Catalog
from learner.model.effect import Effect
from learner.record import NEVER, Record, RecordError, State, decode_record, prior_of
from learner.record.header import read_header
from learner.record.served import belief_at

SHOWN_OUTCOMES = 20


def report(value: bytes, effect: Effect, id: str, now: int) -> dict[str, Any]:
    """What is in a stored record, at time `now` (epoch ms); of one that cannot be read, what its header says.

    Times are ISO 8601 in UTC. Outcomes and clicks are known by the hash of their request and item only.
    """
    facts: dict[str, Any] = {f"{effect.key}_id": id, "bytes": len(value)}
    if (header := read_header(value)) is not None:
        facts |= {
            "format_version": header.version,
            "revision": header.revision,
            "prior_fingerprint": prior_of(header, effect),
            "n_events": header.n_events,
            "updated_at": _iso(header.updated_at),
            "settled_at": _iso(header.settled_at),
            "erased_at": _iso(header.erased_at),
            "outcomes": header.n_outcomes,
            "waiting_clicks": header.n_clicks,
        }
    try:
        record = decode_record(value, effect, id)
    except RecordError as exc:
        return {**facts, "error": str(exc)}
    return {**facts, **_contents(record, effect, now)}


def of_catalog(catalog: Catalog, value: bytes | None) -> dict[str, Any]:
    """What a catalog has of an item, from the bytes of its entry, and since when."""
    entry = None if value is None else catalog.read(value)
    if entry is None:
        return {"catalog": None} if value is None else {"error": "the entry of the catalog cannot be read"}
    return {"catalog_since": _iso(entry.at), "catalog": msgspec.to_builtins(entry.features)}


def _contents(record: Record, effect: Effect, now: int) -> dict[str, Any]:
    served, prior = belief_at(effect, record, now), effect.prior_belief
    columns = (_std(served), record.settled.mean, _std(record.settled), prior.mean, _std(prior))
    names = ("mean", "std", "settled_mean", "settled_std", "prior_mean", "prior_std")
    numbers = zip(served.mean.tolist(), *(column.tolist() for column in columns), strict=True)
    states = record.outcomes["state"]
    return {
        "belief": [
            {"coefficient": name, **dict(zip(names, row, strict=True))}
            for name, row in zip(effect.coefficients, numbers, strict=True)
        ],
        "outcomes": {
            **{state.name.lower(): int((states == state).sum()) for state in State},
            "newest": [
                {
                    "key": _hex(int(one["key"])),
                    "state": State(int(one["state"])).name.lower(),
                    "shown_at": _iso(int(one["shown_at"])),
                    "age_seconds": (now - int(one["shown_at"])) / 1000,
                    "offset": float(one["offset"]),
                    "weight": float(one["weight"]),
                }
                for one in record.outcomes[::-1][:SHOWN_OUTCOMES]
            ],
        },
        "waiting_clicks": [
            {"key": _hex(key), "clicked_at": _iso(at), "age_seconds": (now - at) / 1000}
            for key, at, _ in record.clicks.tolist()
        ],
    }


def as_text(facts: dict[str, Any]) -> str:
    """A report as lines and tables."""
    lines, tables = [], {"belief": facts.get("belief")}
    if isinstance(outcomes := facts.get("outcomes"), dict):
        tables["outcomes, newest first"] = outcomes["newest"]
        counts = (f"{outcomes[state.name.lower()]} {state.name.lower()}" for state in State)
        facts = facts | {"outcomes": ", ".join(counts)}
    tables["waiting clicks"] = facts.get("waiting_clicks")
    for name, value in facts.items():
        if not isinstance(value, list):
            lines.append(f"{name:18} {'-' if value is None else value}")
    for title, rows in tables.items():
        if rows and isinstance(rows, list):
            lines += ["", title, *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _std(belief: Belief) -> Array:
    return np.sqrt(belief.variances)


def _hex(key: int) -> str:
    return f"{key % (1 << 64):016x}"


def _iso(at: int) -> str | None:
    """A time as ISO 8601; what no calendar has, as a damaged record may say, as its number."""
    if at == NEVER:
        return None
    try:
        return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):
        return f"{at} ms"
