"""What reading events by a mapping costs beside reading ours, in processor time: bytes to columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from benchmarks.harness import Context, Figure, interleave, ratios
from benchmarks.workload import FEATURES, model, model_toml, visits
from learner.events.parse import parse_events
from learner.model.spec import Model, load_model

MAPPING = """
[events]
type = "event"
user_id = "ctx.uid"
timestamp = "ts"
request_id = "ctx.sid"
impression = { when = "view", items = "results", item_id = "pid", features = %s }
click = { when = "click", item_id = "pid" }
"""
Features = Mapping[str, float]
SHAPES: dict[str, tuple[str, Callable[[Features], dict[str, Any]]]] = {
    "features in the item": ("{}", dict),
    "features in an object": ('"attrs"', lambda features: {"attrs": features}),
    "numbers as text": ("{}", lambda features: {name: str(value) for name, value in features.items()}),
    "features renamed, in two places": (
        "{ " + ", ".join(f'f{i} = "{"x." * (i % 2)}v{i}"' for i in range(FEATURES)) + " }",
        lambda features: {
            **{f"v{name[1:]}": value for name, value in features.items() if int(name[1:]) % 2 == 0},
            "x": {f"v{name[1:]}": value for name, value in features.items() if int(name[1:]) % 2},
        },
    ),
}
"""By what they are called: the mapping's `features`, and an item's fields for its features."""


def measure(context: Context) -> list[Figure]:
    """Slates of ten items and of one, with clicks, ids that are numbers and times in ISO 8601; the same from ours."""
    figures = []
    for n_items, aim in ((10, 1.3), (1, None)):
        ours = [one.value for one in visits(200, 2, n_items)]
        contenders = {"ours": partial(_processor_s, model(), ours)}
        for name, (features, fields) in SHAPES.items():
            mapped = load_model(model_toml() + MAPPING % features)
            contenders[name] = partial(_processor_s, mapped, [foreign(one, fields) for one in ours])
        taken = interleave(contenders, 6 * context.repetitions)
        what = "10 items" if n_items == 10 else "1 item"
        figures += [
            Figure(
                f"foreign: reading over ours, slates of {what}, {name}", "x", ratios(taken[name], taken["ours"]), aim
            )
            for name in SHAPES
        ]
    return figures


def foreign(raw: bytes, fields: Callable[[Features], dict[str, Any]]) -> bytes:
    """An event of ours as a shop has it."""
    event = msgspec.json.decode(raw)
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    context = {"uid": int(event["user_id"].rpartition("-")[2]), "sid": event["request_id"], "device": "mobile"}
    told: dict[str, Any] = {"ts": at.replace("+00:00", "Z"), "ctx": context}
    if event["type"] == "click":
        return msgspec.json.encode(told | {"event": "click", "pid": event["item_id"]})
    results = [
        {"pid": one["item_id"], **fields(one["features"]), "pos": place} for place, one in enumerate(event["items"])
    ]
    return msgspec.json.encode({"event": "view", **told, "results": results})


def _processor_s(spec: Model, raws: Sequence[bytes]) -> float:
    started = time.process_time()
    parsed = parse_events(raws, spec)
    taken = time.process_time() - started
    assert not parsed.bad
    return taken
