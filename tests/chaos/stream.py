"""A stream of events with everything a producer may do to it, and what must come of it by the log alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Belief
from learner.events.microbatch import CATALOG_ITEM, ERASE_ITEM
from learner.events.parse import parse_events
from learner.log.position import Partition, Position
from learner.model.catalog import at_of, removed
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.record import Record, State, decode_record, encode_record, fresh_record
from learner.record.items import item_id
from learner.record.served import belief_at
from learner.record.sums import HourSums
from learner.step.apply import apply_to_items
from learner.step.feed import FLIP, NO, Transitions, by_item
from tests.stepping import Click, EraseItem, Event, apply, single

MODEL = """\
name = "chaos"
half_life = "30d"
click_delay = { median = "10s", sigma = 1.2 }
attribution_window = "60d"       # wide, so that every outcome is still in its record when the run ends
max_open = 1000
[prior]
variance = 0.5
intercept_mean = -1.0
[features]
price = { kind = "numeric", from = "catalog" }  # each impression says it too, and wins
genre = { kind = "category", values = ["drama", "comedy"] }
[effects.item]
half_life = "30d"
[quality]
users = 1.0
"""
SHADOW = MODEL.replace('name = "chaos"\nhalf_life = "30d"', 'name = "chaos-shadow"\nhalf_life = "300 outcomes"')
"""Learns beside it, in a store of its own."""
START_MS = 1_700_000_000_000
LATE_MS = 61 * 86_400_000
JUDGED_MS = START_MS + 86_400_000
"""Behind all that is sent, so that no impression of an item is open any more."""
BOT = "one-bot"
ITEM_BOUND = 0.5
"""How far an item may be outside of what its two extreme orders give, in its own standard deviations."""
GONE_AFTER = 100
"""Slates that an item which will be erased is in."""
KINDS = ("one", "one", "one", "two", "odd")


class Sent(NamedTuple):
    """An event as it is sent: which topic (0 impressions, 1 clicks), under which key."""

    topic: int
    key: bytes | None
    value: bytes


def events(rng: random.Random, users: int, kinds: Sequence[str] = KINDS) -> Iterator[Sent]:
    """Impressions and clicks, with repeats, clicks first, late clicks, bad records, wrong and missing keys; endless.

    Now and then one of the others is erased, and of each slate the last item, once it is shown no more. Events
    about items for the catalog come out of the order of their times.

    Of five users one (``two-…``) has the clicks in a topic of their own and one (``odd-…``) has wrong keys: there no
    log says in which order all their events act. These have no click so late that it would age their other outcomes.
    With `kinds` of ``one`` alone each user's events are in one partition.
    """
    number = 0
    while True:
        number += 1
        user = f"{rng.choice(kinds)}-{rng.randrange(users // len(KINDS))}"
        request, at = f"r{number}", START_MS + number * 100
        shown_items = [*rng.sample("abcdefgh", 2), gone := f"gone-{number // GONE_AFTER}"]
        items = [
            {"item_id": item, "features": {"price": rng.gauss(0, 1), "genre": rng.choice(["drama", "comedy"])}}
            for item in shown_items
        ]
        shown = {"type": "impression", "request_id": request, "user_id": user, "timestamp": at, "items": items}
        clicked = {
            "type": "click", "request_id": request, "user_id": user, "item_id": rng.choice(shown_items),
            "timestamp": at + rng.randrange(1, 90_000),
        }  # fmt: skip
        if user.startswith("one-") and rng.random() < 0.02:
            clicked["timestamp"] = at + LATE_MS
        burst = [shown]
        if rng.random() < 0.5:
            burst.append(clicked)
        if rng.random() < 0.1:
            burst.append(rng.choice(burst))
        if rng.random() < 0.1:
            burst.reverse()
        for event in burst:
            topic = 1 if event["type"] == "click" and user.startswith("two-") else 0
            wrong = user.startswith("odd-") and rng.random() < 0.5
            yield Sent(topic, rng.choice([None, b"another"]) if wrong else user.encode(), json.dumps(event).encode())
        if user.startswith("one-") and rng.random() < 0.01:
            erasure = {"type": "erase", "user_id": user, "timestamp": at + 50}
            yield Sent(0, user.encode(), json.dumps(erasure).encode())
        if number % GONE_AFTER == GONE_AFTER - 1:
            erasure = {"type": "erase_item", "item_id": gone, "timestamp": at + 50}
            yield Sent(0, gone.encode(), json.dumps(erasure).encode())
        if rng.random() < 0.05:
            # Of one time events say the same, whichever is read last.
            item, of_time = rng.choice(shown_items), at - 100 * rng.randrange(30) - 25
            features = {"price": of_time % 10_000 / 1_000} if of_time % 700 < 600 else None
            about = {"type": "item", "item_id": item, "timestamp": of_time, "features": features}
            yield Sent(0, item.encode(), json.dumps(about).encode())
        if rng.random() < 0.02:
            bad = [b"{", b"", json.dumps({**shown, "timestamp": "now"}).encode(), json.dumps({"type": "view"}).encode()]
            yield Sent(0, user.encode(), rng.choice(bad))


def with_bot(rng: random.Random, others: Iterator[Sent]) -> Iterator[Sent]:
    """The same events, and behind every tenth of them a slate of 500 items, now and then a click, of one user."""
    for number, one in enumerate(others):
        yield one
        if number % 10:
            continue
        ids = {"request_id": f"b{number}", "user_id": BOT, "timestamp": START_MS + number * 100}
        items = [{"item_id": str(i), "features": {"price": rng.gauss(0, 1)}} for i in range(500)]
        yield Sent(0, BOT.encode(), json.dumps({"type": "impression", **ids, "items": items}).encode())
        if rng.random() < 0.3:
            clicked = {"type": "click", **ids, "item_id": str(rng.randrange(500))}
            yield Sent(0, BOT.encode(), json.dumps(clicked).encode())


class Logged(NamedTuple):
    """A record of the log: `epoch` grows whenever all that was sent before has been learnt."""

    epoch: int
    topic: str
    position: Position
    value: bytes


class InBurst(NamedTuple):
    """An event, and the number of the burst of events that it was sent with."""

    burst: int
    event: Event


class Expected(NamedTuple):
    """What the log alone says must come of it.

    `records` by user; `ordered` are those users whose order the log determines; `bad` the places of bad records;
    `items` by the id of their records; `sums` are what the ordered users add to those of how good predictions were;
    `entries` are the catalog's.
    """

    records: dict[str, Record]
    ordered: set[str]
    bad: set[tuple[str, Position]]
    items: dict[str, ExpectedItem]
    sums: list[HourSums]
    entries: dict[str, bytes]


class ExpectedItem(NamedTuple):
    """What an item must have learnt.

    Attributes
    ----------
    outcomes
        How often it was shown to somebody for the first time.
    flips
        The least and the most clicks that may have come after their impression, where the order is not determined.
    means, std
        The least and the largest mean: all learnt in the order of sending, and with those clicks after all
        impressions whose order no log determines. A flip moves an item more, the later it comes, since what was
        learnt in between has taken the unclicked for a "no".
    """

    outcomes: int
    flips: tuple[int, int]
    means: tuple[float, float]
    std: float


def expect(log: Iterable[Logged], model: Model) -> Expected:
    """Apply a log by the pure core, one event at a time, each partition in its order."""
    records: dict[str, Record] = {}
    places: dict[str, set[tuple[int, Partition]]] = {}
    bad = set()
    by_user: dict[str, list[InBurst]] = {}
    told: dict[str, list[Transitions]] = {}
    told_late: dict[str, list[Transitions]] = {}
    sums: list[HourSums] = []
    erased: dict[int, int] = {}
    entries: dict[str, bytes] = {}
    for one in log:
        batch, refused = parse_events([one.value], model)
        if refused:
            bad.add((one.topic, one.position))
            continue
        if batch.events.event["kind"][0] in {CATALOG_ITEM, ERASE_ITEM}:
            entry = batch.catalog.get(0) or removed(int(batch.events.event["at"][0]))
            entries[batch.user[0]] = max(entry, entries.get(batch.user[0], entry), key=lambda one: at_of(one) or 0)
            if batch.events.event["kind"][0] == CATALOG_ITEM:
                continue
        event = single(batch, 0)
        if isinstance(event, EraseItem):
            erased[event.item] = event.timestamp
            continue
        burst = int(json.loads(one.value).get("request_id", "r0")[1:])
        by_user.setdefault(event.user_id, []).append(InBurst(burst, event))
        places.setdefault(event.user_id, set()).add((one.epoch, one.position.partition))
    ordered = {user for user, used in places.items() if len({epoch for epoch, _ in used}) == len(used)}
    for user, mine in by_user.items():
        if user not in ordered:
            # Partition by partition a user would believe in no click until all are read, and tell items so.
            mine.sort(key=lambda one: one.burst)
        records[user], told[user], its_sums = _learn(model, user, mine)
        told_late[user] = told[user]
        if user in ordered:
            sums += its_sums
        else:
            mine.sort(key=lambda one: isinstance(one.event, Click))
            _, told_late[user], _ = _learn(model, user, mine)
    told, told_late = (
        {user: [_left(one, erased) for one in its] for user, its in of.items()} for of in (told, told_late)
    )
    gone = {item_id(key): ExpectedItem(0, (0, 0), (0.0, 0.0), 0.0) for key in erased}
    return Expected(
        records, ordered, bad, gone | _expect_items(effect_of(model), told, told_late, ordered), sums, entries
    )


def _left(told: Transitions, erased: dict[int, int]) -> Transitions:
    """What was shown after the erasure of its item, wherever in the log that stands."""
    until = np.array([erased.get(key, -1) for key in told.row["item"].tolist()], np.int64)
    left = told.row["shown_at"] > until
    return Transitions(told.row[left], told.x[left])


def _learn(model: Model, user: str, mine: list[InBurst]) -> tuple[Record, list[Transitions], list[HourSums]]:
    """What one user's events come to, one at a time, what they tell items, and what they add to sums."""
    record, told, sums = fresh_record(model), [], []
    for _, event in mine:
        ((record,), report) = apply(model, [record], [[event]], [user])
        told.append(report.transitions)
        sums += report.sums
    return record, told, sums


def effect_of(model: Model) -> Effect:
    """What items learn by."""
    assert model.item is not None
    return model.item


def _expect_items(
    effect: Effect, told: dict[str, list[Transitions]], told_late: dict[str, list[Transitions]], ordered: set[str]
) -> dict[str, ExpectedItem]:
    as_sent = _items_learn(effect, told, set())
    clicks_last = _items_learn(effect, told_late, told_late.keys() - ordered)
    outcomes, least, most = Counter[str](), Counter[str](), Counter[str]()
    for user, mine in told.items():
        for one in mine:
            for key, kind in one.row[["item", "kind"]].tolist():
                name = item_id(key)
                outcomes[name] += kind != FLIP
                least[name] += kind == FLIP and user in ordered
                most[name] += kind != NO and (kind == FLIP or user not in ordered)
    found = {}
    for name, belief in as_sent.items():
        low, high = sorted(float(one[name].mean[0]) for one in (as_sent, clicks_last))
        std = float(belief.variances[0] ** 0.5)
        found[name] = ExpectedItem(outcomes[name], (least[name], most[name]), (low, high), std)
    return found


def _items_learn(effect: Effect, told: dict[str, list[Transitions]], late: Set[str]) -> dict[str, Belief]:
    """What items believe, each click learnt beside its impression however late it is dated, or after all if `late`."""
    everything = [(one, user in late) for user, mine in told.items() for one in mine]
    row, x = (np.concatenate([one[part] for one, _ in everything]) for part in (0, 1))
    last = np.concatenate([(one.row["kind"] == FLIP) & is_late for one, is_late in everything])
    order = np.lexsort((row["kind"], row["shown_at"], last))
    transitions = Transitions(row[order], x[order])
    items = by_item(transitions)
    values = apply_to_items(effect, [None] * len(items.user_ids), transitions, items)
    return {
        name: belief_at(effect, decode_record(value, effect, name), JUDGED_MS)
        for name, value in zip(items.user_ids, values, strict=True)
    }


def item_differences(
    effect: Effect, expected: dict[str, ExpectedItem], found: dict[str, Record]
) -> dict[str, list[str]]:
    """What is wrong with items: outcomes lost or doubled, or a belief that no order of them gives."""
    wrong: dict[str, list[str]] = {"items lost": [], "items doubled": [], "items different": []}
    for name in expected.keys() | found.keys():
        want, have = expected.get(name), found.get(name)
        outcomes = 0 if have is None else have.n_learnt + int(have.outcomes["key"].sum())
        flips = 0 if have is None else have.n_events - outcomes
        if want is None or outcomes > want.outcomes or flips > want.flips[1]:
            wrong["items doubled"].append(name)
        elif have is None or outcomes < want.outcomes or flips < want.flips[0]:
            wrong["items lost"].append(name)
        elif (off := outside(float(belief_at(effect, have, JUDGED_MS).mean[0]), want.means)) > ITEM_BOUND * want.std:
            wrong["items different"].append(f"{name} by {off / want.std:.2f} standard deviations")
    return {kind: items for kind, items in wrong.items() if items}


def entry_differences(expected: dict[str, bytes], found: dict[str, bytes]) -> dict[str, list[str]]:
    """What is wrong with the catalog: entries that are not of the last event about their item."""
    wrong: dict[str, list[str]] = {"entries lost": [], "entries different": []}
    for item in expected.keys() | found.keys():
        want, have = expected.get(item), found.get(item)
        if want != have:
            is_late = have is None or (want is not None and (at_of(have) or 0) < (at_of(want) or 0))
            wrong["entries lost" if is_late else "entries different"].append(item)
    return {kind: items for kind, items in wrong.items() if items}


def outside(value: float, bounds: tuple[float, float]) -> float:
    """How far a value is outside of an interval."""
    return max(bounds[0] - value, value - bounds[1], 0.0)


def differences(expected: Expected, found: dict[str, Record], model: Model) -> dict[str, list[str]]:
    """What is wrong, by kind: users who are missing, have lost events, or whose labels or beliefs differ."""
    wrong: dict[str, list[str]] = {"missing": [], "unknown": [], "lost": [], "labels": [], "different": []}
    wrong["missing"] = sorted(expected.records.keys() - found.keys())
    wrong["unknown"] = sorted(found.keys() - expected.records.keys())
    for user in expected.records.keys() & found.keys():
        want, have = expected.records[user], found[user]
        if want.n_events != have.n_events:
            wrong["lost"].append(user)
        if labels(want) != labels(have):
            wrong["labels"].append(user)
        # To the last bit; a doubled event moves a belief too.
        if user in expected.ordered and _bytes(want, model) != _bytes(have, model):
            wrong["different"].append(user)
    return {kind: users for kind, users in wrong.items() if users}


def labels(record: Record) -> dict[int, bool]:
    """The final label of every outcome: what is guaranteed where no log determines the order."""
    clicked = (record.outcomes["state"] == State.CLICKED).tolist()
    return dict(zip(record.outcomes["key"].tolist(), clicked, strict=True))


def _bytes(record: Record, model: Model) -> bytes:
    return encode_record(record._replace(revision=0), model)
