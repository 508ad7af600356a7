"""What must hold of bytes from outside, whatever they are, and the bytes to try it with."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from learner.belief.gaussian import Belief
from learner.events.catalog import LogEntries
from learner.events.microbatch import of_item
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, WireCatalogItem, WireEraseItem
from learner.limits import MAX_TIMESTAMP_MS
from learner.model.design import Shown
from learner.model.kinds import FeatureError
from learner.model.spec import load_model
from learner.record import NEVER, Record, RecordError, decode_record, encode_record, fresh_record
from learner.record.layout import OUTCOME, WAITING_CLICK
from learner.record.served import belief_at
from learner.step.apply import apply
from service.web import api
from service.web.http import MAX_EVENTS, decode_body, split_events
from tests.stepping import Click, Impression, microbatch, single

AT = 1_700_000_000_000
_FEATURES = """
[features]
price = { kind = "numeric", mean = 10.0, std = 2.0 }
age = { kind = "numeric" }
genre = { kind = "category", values = ["drama", "comedy"] }
lax = { kind = "category", values = ["p", "q"], unknown = "q" }
multi = { kind = "multi", values = ["a", "b"], unknown = "ignore" }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
views = { kind = "numeric", transform = "log1p", missing = "indicator" }
range = { kind = "bucket", edges = [1, 5] }
sale = { kind = "boolean", coerce = true }
since = { kind = "age" }
hour = { kind = "time", of = "hour_of_day" }
device = { kind = "category", values = ["phone", "web"], unknown = "ignore", from = "context" }
query = { kind = "hashed", buckets = 3, from = "context" }
cross = { kind = "cross", of = ["device", "genre"], buckets = 3 }
"""
MODELS = [
    load_model(f'name = "m"\n{_FEATURES}'),
    load_model(f'name = "d"\ncovariance = "diagonal"\nunknown_features = "ignore"\n{_FEATURES}'),
    load_model(f'name = "b"\ncovariance = "block"\n{_FEATURES}'),
    load_model('name = "c"\n' + _FEATURES.replace(" }", ', from = "catalog" }', 10)),
]
# An entry may have been checked against another specification.
CATALOGS = [MODELS[3], load_model('name = "e"\n' + _FEATURES.replace(" }", ', from = "catalog" }', 2))]
# A record of the model before it may have been learnt under another prior.
MOVED = load_model(f'name = "m"\n[prior]\nvariance = 2.0\nearlier = [{{ variance = 1.0 }}]\n{_FEATURES}')
assert MODELS[0].structs is not None
_SCORE, _QUICK = api.score_decoder(None), api.score_decoder(MODELS[0].structs)


class Target(NamedTuple):
    """A law and the inputs to break it with."""

    name: str
    inputs: SearchStrategy[Any]
    law: Callable[[Any], None]


def wire_law(raws: list[bytes]) -> None:
    """Any bytes are an event or a bad event, the same whether they are read alone or with others."""
    for model in MODELS:
        together = parse_events(raws, model)
        for place, raw in enumerate(raws):
            try:
                wire = parse_event(raw, model)
            except BadEvent as exc:
                assert len(str(exc)) < 3_000
                assert (exc.reason, str(exc)) == (together.bad[place].reason, str(together.bad[place]))
                continue
            assert place not in together.bad
            alone = parse_events([raw], model).batch
            # A slate that says what was clicked is several events.
            of_it = [i for i in range(len(together.batch.user)) if together.batch.record(i) == place]
            for at, one in enumerate(single(together.batch, i) for i in of_it):
                other = single(alone, at)
                assert one[:3] == other[:3]
                of_an_item = isinstance(wire, WireEraseItem | WireCatalogItem)
                assert one.user_id == (of_item(wire.item_id) if of_an_item else wire.user_id)
                for field, same in zip(one[3:], other[3:], strict=True):
                    assert np.asarray(field).tobytes() == np.asarray(same).tobytes()
                    if np.asarray(field).dtype.kind == "f":
                        assert np.isfinite(field).all()
            assert len(of_it) == len(alone.user)


def catalog_law(raws: list[bytes]) -> None:
    """Events say of the catalog what they say one by one, and any bytes are an entry that fills items, or none."""
    catalogs = [model.catalog for model in CATALOGS]
    assert catalogs[0] is not None
    together, one_by_one = LogEntries(catalogs[0]), LogEntries(catalogs[0])
    read = parse_events(raws, CATALOGS[0], entries=together)
    alone = [parse_events([raw], CATALOGS[0], entries=one_by_one) for raw in raws]
    assert [place in read.bad for place in range(len(raws))] == [bool(one.bad) for one in alone]
    assert read.batch.events.row.tobytes() == b"".join(one.batch.events.row.tobytes() for one in alone)
    entries = list(read.batch.catalog.values())
    assert entries == [entry for one in alone for entry in one.batch.catalog.values()]
    for item_id in ("a", "b"):
        assert together.find([item_id]) == one_by_one.find([item_id])
    for data in [*entries, *raws]:
        for model, catalog in zip(CATALOGS, catalogs, strict=True):
            assert catalog is not None
            entry = catalog.read(data)
            assert entry is not None or data not in entries
            if entry is not None:
                with contextlib.suppress(FeatureError):
                    model.rows([catalog.filled({}, entry)], Shown([1], [AT], [{}]))


def body_law(body: bytes) -> None:
    """Any body is what the route wants, the same whichever way it is read, or an error of the client's."""
    try:
        wanted, plain = decode_body(_QUICK, _SCORE, body), decode_body(_SCORE, _SCORE, body)
        assert wanted.items
        assert _meaning(wanted) == _meaning(plain)
    except api.ApiError as exc:
        assert exc.status in {400, 422}
    try:
        assert len(split_events(body)) <= MAX_EVENTS
    except api.ApiError as exc:
        assert exc.status in {400, 413}


def _meaning(wanted: api.ScoreRequest) -> list[Any]:
    try:
        shown = Shown([len(wanted.items)], [AT], [wanted.context])
        rows = MODELS[0].rows([item.features for item in wanted.items], shown).tobytes()
    except FeatureError as exc:
        rows = str(exc).encode()
    return [wanted.user_id, wanted.policy, wanted.seed, rows, [(item.item_id, item.offset) for item in wanted.items]]


def round_trip_law(drawn: tuple[int, Record]) -> None:
    """A record comes back to the last bit."""
    which, record = drawn
    data = encode_record(record, MODELS[which])
    again = decode_record(data, MODELS[which], "u")
    assert encode_record(again, MODELS[which]) == data
    assert again[:5] == record[:5]
    assert again.erased_at == record.erased_at
    assert again.settled.mean.tobytes() == record.settled.mean.tobytes()
    assert again.settled.factor.tobytes() == record.settled.factor.tobytes()
    assert again.outcomes.tobytes() == record.outcomes.tobytes()
    assert again.clicks.tobytes() == record.clicks.tobytes()


def damage_law(drawn: tuple[int, Record, Damage]) -> None:
    """A record of which any byte is missing, added or another one is an error."""
    which, record, damage = drawn
    data = encode_record(record, MODELS[which])
    harmed = damage.of(data)
    if harmed != data:
        with contextlib.suppress(RecordError):
            decode_record(harmed, MODELS[which], "u")
            raise AssertionError("damage went unnoticed")


def forged_law(drawn: tuple[int, Record, Damage]) -> None:
    """Even with a checksum that fits, a record is an error or one that can be worked with."""
    which, record, damage = drawn
    forged_record_law(damage.of(encode_record(record, MODELS[which])), which)


def forged_record_law(data: bytes, which: int) -> None:
    """See `forged_law`; the checksum is put right here."""
    data = struct.pack("<I", crc32(data[4:])) + data[4:]
    for model in (MODELS[which], MOVED):
        with np.errstate(all="ignore"):
            try:
                read = decode_record(data, model, "u")
            except RecordError:
                continue
            assert read.settled.mean.shape == (model.d,)
            assert read.settled.factor.shape == model.prior_belief.factor.shape
            assert read.outcomes.dtype == OUTCOME
            assert read.rows.shape == (len(read.outcomes), model.width)
            key, now = int(read.outcomes["key"][0]) if len(read.outcomes) else 1, MAX_TIMESTAMP_MS
            one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
            shown = Impression("u", now, [0], np.ones((1, model.width), np.float32), zero, one)
            belief_at(model, read, now)
            for events in ([], [Click("u", now, key), shown]):
                (after,) = apply(model, [data], *microbatch(model, [events])).values
                if after is not None:
                    decode_record(after, model, "u")


class Damage(NamedTuple):
    """Bytes cut away, put in, or changed."""

    start: float
    cut: int
    insert: bytes
    flips: list[tuple[float, int]]

    def of(self, data: bytes) -> bytes:
        """The damaged bytes."""
        at = int(self.start * len(data))
        harmed = bytearray(data[:at] + self.insert + data[at + self.cut :])
        for where, bits in self.flips:
            if harmed:
                harmed[int(where * (len(harmed) - 1))] ^= bits
        return bytes(harmed)


_share = st.floats(0, 1)
damages = st.builds(
    Damage,
    _share,
    st.sampled_from([0, 0, 1, 4, 1 << 20]) | st.integers(0, 64),
    st.just(b"") | st.binary(max_size=12),
    st.lists(st.tuples(_share | st.sampled_from([0.0, 1.0]), st.integers(1, 255)), max_size=3),
)

_bits64 = st.integers(0, (1 << 64) - 1)
_bits32 = st.integers(0, (1 << 32) - 1)
_time = st.integers(-(1 << 63), (1 << 63) - 1)
_waiting = st.tuples(_time, _time, st.floats(allow_nan=False, width=32))
_second = st.just(NEVER) | st.integers(0, (1 << 32) - 2).map(lambda seconds: 1000 * seconds)
_count = _bits32 | st.integers(0, (1 << 48) - 1)


@st.composite
def records(draw: st.DrawFn) -> tuple[int, Record]:
    """A record with any numbers at all, and the number of its model."""
    which = draw(st.integers(0, len(MODELS) - 1))
    model = MODELS[which]
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))

    def belief() -> Belief:
        return Belief(*(generator.integers(0, 256, 4 * part.size, np.uint8).view("<f4") for part in model.prior_belief))

    n = draw(st.integers(0, 4))
    outcomes = np.frombuffer(generator.bytes(n * OUTCOME.itemsize), OUTCOME).copy()
    rows = np.frombuffer(generator.bytes(4 * n * model.width), "<f4").reshape(n, model.width)
    outcomes["state"] %= 3
    if draw(st.booleans()):
        outcomes["key"] = 1
    record = fresh_record(model)._replace(
        revision=draw(_bits32), updated_at=draw(_second), settled_at=draw(_second), n_events=draw(_count),
        n_learnt=draw(_count),
        settled=belief(), outcomes=outcomes, rows=rows,
        clicks=np.array(draw(st.lists(_waiting, max_size=3)), WAITING_CLICK),
        erased_at=draw(st.just(NEVER) | _time),
    )  # fmt: skip
    return which, record


_text = st.text(max_size=8) | st.sampled_from(["drama", "comedy", "a", "p", "\ud800", "\x00", "x" * 1025])
_number = (
    st.floats() | st.integers() | st.sampled_from([1e30, -1e31, 3.5e38, 1e308, 2**63, 2**64, 10**40, 10**400, 5e-324])
)
_scalar = st.none() | st.booleans() | _number | _text
_value = st.recursive(_scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=2))
_name = st.sampled_from(
    [
        "price",
        "age",
        "genre",
        "lax",
        "multi",
        "tags",
        "taste",
        "views",
        "range",
        "sale",
        "since",
        "hour",
        "device",
        "cross",
    ]
)
_good = st.fixed_dictionaries(
    {},
    optional={
        "price": st.floats(-1e6, 1e6), "age": st.integers(-9, 99), "genre": st.sampled_from(["drama", "comedy"]),
        "lax": _text, "multi": st.lists(_text, max_size=3), "tags": st.lists(_text, max_size=3),
        "taste": st.lists(st.floats(-9, 9), min_size=2, max_size=2), "views": st.floats(0, 1e6),
        "range": st.floats(-9, 9), "sale": st.booleans(), "since": st.integers(AT - 10**9, AT),
    },
)  # fmt: skip
_features = _good | st.dictionaries(_name | _text, _value, max_size=4) | _value
_context = st.fixed_dictionaries({}, optional={"device": _text, "query": _text}) | _features
_id = st.sampled_from(["u", "r", "a", "", "x" * 257]) | _text | _value
_item = st.fixed_dictionaries(
    {"item_id": _id}, optional={"features": _features, "offset": _value, "weight": _value, "clicked": _value}
)
_taken = st.fixed_dictionaries(
    {"item_id": st.just("a"), "features": _good}, optional={"clicked": st.booleans(), "position": st.integers(1, 9)}
)
_items = st.lists(_item | _taken, max_size=4) | _value
_shown = st.fixed_dictionaries(
    {"type": st.just("impression"), "request_id": st.just("r"), "user_id": st.just("u"), "timestamp": st.just(AT)},
    optional={"items": _items, "context": _context},
)
_wild = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["impression", "click", "view", "item", "erase", "erase_item"]) | _value,
        "request_id": _id, "user_id": _id,
        "item_id": _id, "timestamp": st.integers(AT, AT + 9) | st.integers(0, 10**19) | _value,
        "items": _items, "ranked": _value, "context": _context,
        "policy": st.sampled_from(["mean", "ucb", "thompson"]) | _value, "seed": _value, "explain": _value,
    },
)  # fmt: skip
_about = st.fixed_dictionaries(
    {
        "type": st.just("item"), "item_id": st.sampled_from("ab"), "timestamp": st.integers(AT, AT + 9),
        "features": st.none() | _good | _features,
    }
)  # fmt: skip
_json = st.builds(lambda value: json.dumps(value).encode("utf-8", "replace"), _shown | _about | _wild | _value)
_pieces = st.lists(
    st.sampled_from([b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"1e999", b"NaN", b"-", b'"type"',
                     b'"click"', b'"items"', b'"features"', b"\\ud800", b"\xff", b"null", b"0", b"[" * 2000])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)  # fmt: skip
wire_bytes = _json | st.builds(lambda raw, damage: damage.of(raw), _json, damages) | _pieces | st.binary(max_size=100)

TARGETS = [
    Target("wire format", st.lists(wire_bytes, min_size=1, max_size=5), wire_law),
    Target("catalog", st.lists(wire_bytes, min_size=1, max_size=8), catalog_law),
    Target("request bodies", wire_bytes | st.lists(wire_bytes, max_size=4).map(b"\n".join), body_law),
    Target("records: round trip", records(), round_trip_law),
    Target("records: damage", st.builds(lambda one, damage: (*one, damage), records(), damages), damage_law),
    Target("records: forged", st.builds(lambda one, damage: (*one, damage), records(), damages), forged_law),
]
