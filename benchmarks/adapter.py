"""What a comparison asks of a revision, under names that stay: each revision that is compared brings its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks import workload
from benchmarks.workload import Parsed, step
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model
from learner.model.spec import load_model as load_whole_model
from learner.record import decode_record, encode_record
from learner.store import Store, Write, open_store, write_alone
from learner.store.recent import RecentStore

__all__ = ["COMMAND", "SERVICE", "learner", "load_model", "nothing_pending", "open_store", "parsed", "step", "write"]

COMMAND = "service"
"""What ``python -m`` runs."""
SERVICE = "service.web.app"
"""The module of the HTTP service."""


def load_model(toml: str) -> Model:
    """A model that does what any revision does: not measuring quality, which the benchmark of that name prices."""
    return load_whole_model(f"{toml}\n[quality]\nusers = 0.0\n")


def parsed(spec: Model, raws: Sequence[bytes], start: int = 0) -> Parsed:
    """Read a microbatch; where it starts in the log mattered to the step of earlier revisions."""
    return workload.parsed(spec, raws)


def write(store: Store, values: Mapping[str, bytes]) -> None:
    """Store records, in the place of those that are there."""
    there = store.load(list(values))
    done = write_alone(store, [Write(one, before, values[one]) for one, before in zip(values, there, strict=True)])
    assert all(done), "another wrote a record meanwhile"


def nothing_pending(model: Model, value: bytes) -> bytes:
    """A record without its outcomes."""
    record = decode_record(value, model, "")
    return encode_record(record._replace(outcomes=record.outcomes[:0], rows=record.rows[:0]), model)


def learner(model: Model, store: str, log: str, topic: str, group: str) -> Learner:
    """The loop as ``freshet learn`` makes it."""
    return Learner(model, RecentStore(open_store(store, 86_400)), open_reader(log, [topic], group), open_log(log))
