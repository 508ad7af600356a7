"""`benchmarks.adapter` for revisions from before decision 14, which have none."""
# Of another revision's modules.
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learner.apply import apply
from learner.consumer import Learner

from learner.events import Click, parse_events
from learner.log import open_log, open_reader
from learner.model import Model, load_model
from learner.record import (
    Partition,
    Position,
    decode_record,
    decode_records,
    encode_record,
    encode_records,
    fresh_record,
    no_outcomes,
)
from learner.store import Write, open_store
from learner.store.recent import RecentStore

__all__ = ["COMMAND", "SERVICE", "learner", "load_model", "nothing_pending", "open_store", "parsed", "step", "write"]

COMMAND = "service.cli"
SERVICE = "service.app"
PLACES = Partition(bytes(16), 0), Partition(bytes(15) + b"\1", 0)


def parsed(model: Model, raws: Sequence[bytes], start: int = 0) -> tuple[list[str], list[list]]:
    """Users, and the events of each."""
    users = {}
    for offset, event in enumerate(parse_events(raws, model), start):
        position = Position(PLACES[isinstance(event, Click)], offset)
        users.setdefault(event.user_id, []).append((event, position))
    return list(users), list(users.values())


def step(model: Model, stored: Sequence[bytes | None], batch: tuple[list[str], list[list]]) -> list[bytes | None]:
    """As `learner.consumer.Learner` does between load and commit."""
    user_ids, events = batch
    known = [(user_id, value) for user_id, value in zip(user_ids, stored, strict=True) if value is not None]
    decoded = iter(decode_records([value for _, value in known], model, [user_id for user_id, _ in known]))
    fresh = fresh_record(model)
    records = [fresh if value is None else next(decoded) for value in stored]
    written, report = apply(model, records, events)
    values = iter(encode_records([one for one, new in zip(written, report.changed, strict=True) if new], model))
    return [next(values) if new else None for new in report.changed]


def write(store: Any, values: Mapping[str, bytes]) -> None:
    """Store records, in the place of those that are there."""
    there = store.load(list(values))
    assert all(store.commit([Write(one, before, values[one]) for one, before in zip(values, there, strict=True)]))


def nothing_pending(model: Model, value: bytes) -> bytes:
    """A record without its outcomes."""
    record = decode_record(value, model, "")
    return encode_record(record._replace(outcomes=no_outcomes(model.d), posterior=None), model)


def learner(model: Model, store: str, log: str, topic: str, group: str) -> Learner:
    """The loop as ``freshet learn`` makes it."""
    return Learner(model, RecentStore(open_store(store, 86_400)), open_reader(log, [topic], group), open_log(log))
