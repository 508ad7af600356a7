"""Users and items learn everything exactly once, whatever happens between any two steps.

A machine sends events, lets two members take turns, and has them fail: it looks for an order of these that loses or
doubles an outcome. Each slate is a coefficient of its own in the items' effect, which nothing else moves, so that an
item's belief tells of each outcome whether and how it was learnt.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from learner.events.keys import item_key
from learner.log.position import Partition
from learner.loop import Learner
from learner.model.spec import load_model
from learner.record import Record, State, decode_record, fresh_record
from learner.record.items import item_id
from learner.step.apply import apply_to_items
from learner.step.feed import FLIP, NO, TRANSITION, YES, Transitions, by_item
from learner.store import StoreUnavailable
from learner.store.recent import RecentStore
from tests.group import Group, Member, Shards, Trap
from tests.stepping import outcome_key

SLATES = 80
MODEL = load_model(f"""
name = "t"
covariance = "diagonal"
attribution_window = "60d"
prior = {{ variance = 1e-9 }}
[features]
slate = {{ kind = "category", values = {[str(i) for i in range(SLATES)]} }}
[effects.item]
features = ["slate"]
covariance = "diagonal"
prior = {{ variance = 4.0, intercept_variance = 1e-9 }}
""")
# No window ends while the machine runs.
START_MS = int(time.time()) * 1000
EVENTS, CLICKS = "events", "clicks"
TROUBLE = ("", "crash", "unanswered", "other", "zombie", "back")
KEPT_S = 25.0
USERS, ITEMS, SHARDS = "uvyz", "abfgln", 3
LABELS = {(NO,): "no", (YES,): "yes", (NO, FLIP): "yes", (): ""}


class Crash(BaseException):
    """A member is killed."""


class Outcome(NamedTuple):
    user: str
    slate: int
    item: str

    @property
    def key(self) -> int:
        return outcome_key(str(self.slate), self.item)


def means_of_labels() -> dict[str, list[float]]:
    """What a coefficient comes to with each label; with any other it was learnt twice, or not at all."""
    effect = MODEL.item
    assert effect is not None
    means: dict[str, list[float]] = {}
    for kinds, label in LABELS.items():
        row = np.zeros(len(kinds), TRANSITION)
        row["kind"], row["weight"], row["examination"] = kinds, 1.0, 1.0
        row["at"] = row["shown_at"] = START_MS
        x = np.zeros((len(kinds), effect.d), np.float32)
        x[:, :2] = 1.0
        transitions = Transitions(row, x)
        values = apply_to_items(effect, [None] * (len(kinds) > 0), transitions, by_item(transitions))
        records = [decode_record(value, effect, "") for value in values] or [fresh_record(effect)]
        means.setdefault(label, []).append(float(records[0].settled.mean[1]))
    return means


MEANS = means_of_labels()
members = st.integers(0, 1)
small = st.integers(0, 5)


class ExactlyOnce(RuleBasedStateMachine):
    """Two members, three shards that have users, items and a feed each, and two topics."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = patch.multiple("learner.items", BLOCKS=2, KEPT_S=KEPT_S)
        self.impatient = patch("learner.patience.MAX_BACKOFF_S", 0)
        self.patched.start()
        self.impatient.start()
        self.store = Shards(SHARDS)
        self.group = Group({EVENTS: 2, CLICKS: 2})
        self.clock = 0.0
        self.learners = [self.new_learner(i) for i in range(2)]
        # Of each shard; its earlier states, and when it was in them.
        self.states: list[list[tuple[float, sqlite3.Connection]]] = [[] for _ in range(SHARDS)]
        self.sent: list[tuple[Partition, bytes, int]] = []
        self.shown: dict[Outcome, Partition] = {}
        self.awaited: list[tuple[Partition, int, str, str]] = []
        self.turned = False
        self.slates = 0
        self.clicked: dict[Outcome, Partition] = {}
        self.alone = True

    @initialize(alone=st.sampled_from([True, True, False]))
    def begin(self, alone: bool) -> None:
        """Shards step back alone, or users have events in several partitions; docs/adr/0022 says why not both."""
        self.alone = alone

    def new_learner(self, number: int) -> Learner:
        store = RecentStore(Trap(self.store))  # type: ignore[arg-type]
        learner = Learner(
            MODEL, store, Member(self.group, number), None, poll_timeout_ms=0, max_messages=3  # type: ignore[arg-type]
        )  # fmt: skip
        assert learner._first._items is not None
        learner._first._items.clock = learner._commits.clock = lambda: self.clock
        return learner

    # What is sent.

    def send(self, n: int, seed: int) -> None:
        """Slates, clicks and repeats."""
        rng = random.Random(seed)
        for _ in range(n):
            unclicked = [one for one in self.shown if one not in self.clicked]
            what = rng.choice(["slate", "slate", "click", "click", "awaited", "repeat"])
            if what == "slate" and self.slates < SLATES:
                self.send_slate(rng)
            elif what == "click" and unclicked:
                outcome = rng.choice(unclicked)
                self.send_click(outcome, self.shown[outcome])
            elif what == "awaited" and self.awaited:
                self.send_impression(*self.awaited.pop())
            elif what == "repeat" and self.sent:
                place, value, at = rng.choice(self.sent)
                self.group.append(place if self.alone else rng.choice(list(self.group.messages)), value, at)

    def send_slate(self, rng: random.Random) -> None:
        """A slate; its click may be sent before it, even long before."""
        user, slate, items = rng.choice(USERS), self.slates, "".join(rng.sample(ITEMS, rng.randint(1, 3)))
        self.slates += 1
        place, first = self.partition_of(user), Outcome(user, slate, items[0])
        click = rng.choice(["none", "before", "long before"])
        if click != "none":
            self.send_click(first, place)
        if click == "long before":
            self.awaited.append((place, slate, user, items))
        else:
            self.send_impression(place, slate, user, items)

    def send_impression(self, place: Partition, slate: int, user: str, items: str) -> None:
        shown = [{"item_id": item, "features": {"slate": str(slate)}} for item in items]
        about = {"type": "impression", "request_id": str(slate), "user_id": user}
        self.append(place, {**about, "items": shown}, START_MS + 1_000 * slate)
        self.shown |= {Outcome(user, slate, item): place for item in items}

    def send_click(self, outcome: Outcome, shown_in: Partition) -> None:
        place = shown_in if self.alone else self.partition_of(outcome.user, (EVENTS, CLICKS)[outcome.slate % 2])
        ids = {"request_id": str(outcome.slate), "user_id": outcome.user, "item_id": outcome.item}
        self.append(place, {"type": "click", **ids}, START_MS + 1_000 * outcome.slate + 500)
        self.clicked[outcome] = place

    def append(self, place: Partition, event: dict[str, object], at: int) -> None:
        self.sent.append((place, json.dumps({**event, "timestamp": at}).encode(), at))
        self.group.append(*self.sent[-1])

    def partition_of(self, user: str, topic: str = EVENTS) -> Partition:
        places = self.group.partitions(topic)
        return places[USERS.index(user) % len(places)]

    # What members do, and what happens to them: one thing between two turns, and one in the midst of a turn.

    @precondition(lambda self: self.turned and len(self.group.messages) < 6)
    @rule(topic=st.sampled_from([EVENTS, CLICKS]))
    def add_partition(self, topic: str) -> None:
        self.turned = False
        self.group.add(topic)

    @precondition(lambda self: self.turned)
    @rule(member=members, which=small)
    def move_partition(self, member: int, which: int) -> None:
        self.turned = False
        places = list(self.group.messages)
        self.group.give(places[which % len(places)], member)

    @rule(
        member=members, n=st.integers(0, 12), seed=st.integers(0, 999), seconds=st.sampled_from([0.0, 1.0, 10.0]),
        first=small, deaf=st.booleans(), what=st.sampled_from(TROUBLE), calls=st.integers(0, 7), after=st.booleans(),
        shard=small, state=small, twice=st.booleans(),
    )  # fmt: skip
    def turn(
        self, member: int, n: int, seed: int, seconds: float, first: int, deaf: bool, what: str, calls: int,
        after: bool, shard: int, state: int, twice: bool,
    ) -> None:  # fmt: skip
        """Events are sent, and a member takes a turn: something happens before or after a call of it to the store.

        `twice` lets the call behind that one go unanswered.
        """
        self.turned = True
        self.send(n, seed)
        reader, trap = self.ends_of(self.learners[member])
        reader.deaf, reader.first = deaf, first

        def crash() -> None:
            raise Crash

        def unanswered() -> None:
            raise StoreUnavailable("no answer")

        def zombie() -> None:
            for place in list(self.group.messages):
                self.group.give(place, 1 - member)
            for _ in range(3):
                self.plain_turn(1 - member)

        actions: dict[str, Callable[[], None]] = {
            "crash": crash,
            "unanswered": unanswered,
            "other": lambda: self.plain_turn(1 - member),
            "zombie": zombie,
            # Not between what a turn reads and what it writes where users have events in several partitions.
            "back": lambda: self.alone and self.step_back(shard, state),
        }

        def happen() -> None:
            if twice:
                trap.set(0, False, unanswered)
            actions[what]()

        if what:
            trap.set(calls, after, happen)
        try:
            self.plain_turn(member, seconds)
            self.plain_turn(1 - member)
        except Crash:
            self.learners[member] = self.new_learner(member)
        finally:
            trap.clear()
            reader.deaf = False

    def plain_turn(self, member: int, seconds: float = 0.0) -> None:
        self.clock += seconds
        before = self.store.changes()
        self.learners[member].turn()
        if self.store.changes() != before:
            for states, kept in zip(self.states, self.store.keep(), strict=True):
                states.append((self.clock, kept))
                del states[:-6]

    @precondition(lambda self: self.turned)
    @rule(member=members, owned=st.sets(st.integers(0, SHARDS - 1), min_size=1))
    def learn_of_items_alone(self, member: int, owned: set[int]) -> None:
        """A member that believes to own shards of items, be they its own or not."""
        self.turned = False
        learner = self.learners[member]
        assert learner._first._items is not None
        learner._first._items.turn(owned, Counter())

    @precondition(lambda self: self.turned)
    @rule(shard=small, state=st.integers(1, 5))
    def step_back(self, shard: int, state: int) -> None:
        """A shard loses no more than what feeds are kept for, or all together lose any time."""
        self.turned = False
        for one in [shard % SHARDS] if self.alone else range(SHARDS):
            states = self.states[one]
            del states[max(0, len(states) - state) :]
            if not self.alone:
                self.store.put_back(one, states[-1][1] if states else None)
            elif states and states[-1][0] > self.clock - KEPT_S:
                self.store.put_back(one, states[-1][1])

    @precondition(lambda self: self.turned and self.slates > 10)
    @rule()
    def empty(self) -> None:
        """The whole store is emptied."""
        self.turned = False
        for shard in range(SHARDS):
            self.store.put_back(shard, None)
            self.states[shard].clear()

    def ends_of(self, learner: Learner) -> tuple[Member, Trap]:
        reader, store = learner.reader, learner.store
        assert isinstance(reader, Member)
        assert isinstance(store, RecentStore)
        trap = store._store
        assert isinstance(trap, Trap)
        return reader, trap

    # What must have come of it.

    def teardown(self) -> None:
        try:
            self.drain()
            self.check()
        finally:
            self.patched.stop()
            self.impatient.stop()
            self.store.close()

    def drain(self) -> None:
        quiet = 0
        for _ in range(200):
            before = self.state()
            for member in range(2):
                self.plain_turn(member, seconds=10.0)
            quiet = quiet + 1 if self.state() == before else 0
            if quiet == 3:
                return
        raise AssertionError("there is no end to it")

    def state(self) -> object:
        places = [*self.group.messages]
        return self.store.positions(places), [self.ends_of(one)[0].lag() for one in self.learners], self.items()

    def items(self) -> list[bytes | None]:
        return self.store.load([item_id(item_key(item)) for item in ITEMS], "item")

    def check(self) -> None:
        expected = {one: "yes" if one in self.clicked else "no" for one in self.shown}
        labels: dict[Outcome, str] = {}
        waiting: set[int] = set()
        known = {(one.user, one.key): one for one in self.shown}
        for user, value in zip(USERS, self.store.load(list(USERS)), strict=True):
            if value is None:
                continue
            record = decode_record(value, MODEL, user)
            for key, state in record.outcomes[["key", "state"]].tolist():
                labels[known[user, key]] = "yes" if state == State.CLICKED else "no"
            waiting |= set(record.clicks["key"].tolist())
        assert labels == expected, "users"
        assert waiting == {one.key for one in self.clicked if one not in self.shown}
        learnt: dict[Outcome, str] = {}
        users = {one.slate: one.user for one in self.shown}
        for item, value in zip(ITEMS, self.items(), strict=True):
            if value is not None:
                learnt |= self.labels_of(item, value, users)
        assert learnt == expected, "items"

    def labels_of(self, item: str, value: bytes, users: dict[int, str]) -> dict[Outcome, str]:
        effect = MODEL.item
        assert effect is not None
        record: Record = decode_record(value, effect, item)
        learnt = {}
        for slate, mean in enumerate(record.settled.mean[1:].tolist()):
            label = [name for name, means in MEANS.items() if any(abs(mean - one) < 1e-4 for one in means)]
            if label != [""]:
                learnt[Outcome(users[slate], slate, item)] = label[0] if label else f"{mean:.3f}"
        assert record.n_learnt == len(learnt)
        return learnt


def test_users_and_items_learn_every_outcome_once_whatever_happens_between_two_steps() -> None:
    run_state_machine_as_test(
        ExactlyOnce,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
