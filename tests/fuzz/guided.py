"""Coverage-guided fuzzing by atheris, in a process of its own, which libFuzzer ends: see `tests.fuzz.__main__`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

# What is compiled cannot be instrumented; it is found by its import of the decorator, from the root of the repository.
COMPILED = [
    ".".join(path.with_suffix("").parts)
    for path in Path("learner").rglob("*.py")
    if "from learner.belief.compiled import" in path.read_text()
]
with atheris.instrument_imports(include=["learner", "service"], exclude=COMPILED):
    from learner.events.wire import impression_json
    from learner.record import encode_record, fresh_record
    from tests.fuzz.laws import AT, MODELS, body_law, forged_record_law, wire_law


def wire(data: bytes) -> None:
    """Read the bytes as events, one a line, and as the body of a request."""
    wire_law(data.split(b"\n", 4))
    body_law(data)


def record(data: bytes) -> None:
    """Read the bytes as a record whose checksum fits: random bytes would hardly ever come past it."""
    forged_record_law(data, 0)


def seeds() -> dict[str, list[bytes]]:
    """What to begin with."""
    features = {"price": 1.5, "genre": "drama", "tags": ["x"], "taste": [1.0, 2.0]}
    shown = impression_json("r", "u", AT, [{"item_id": "a", "features": features, "offset": 0.5, "weight": 1.0}])
    click = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","timestamp":1700000000002}'
    score = b'{"user_id":"u","items":[{"item_id":"a","features":{"price":1}}],"policy":"ucb","seed":3}'
    return {
        "wire": [shown, click, score, shown + b"\n" + click],
        "record": [encode_record(fresh_record(model), model) for model in MODELS],
    }


def main() -> None:
    """`guided.py wire|record CORPUS [options of libFuzzer]`."""
    name, corpus, *options = sys.argv[1:]
    for number, seed in enumerate(seeds()[name]):
        (Path(corpus) / f"seed{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], corpus, *options], {"wire": wire, "record": record}[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
