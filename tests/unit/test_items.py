"""Items learn beside users: one step for both effects, and each change of a label exactly once."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from learner.belief import update
from learner.belief.gaussian import Gaussian, click_probability, factorised, predict
from learner.evaluation.history import read_log
from learner.evaluation.replay import replay
from learner.events.keys import item_key
from learner.events.microbatch import ERASE_ITEM, by_user
from learner.events.parse import parse_events
from learner.items import TRIM_S, Items
from learner.log import open_reader
from learner.model.duration import ModelError
from learner.model.spec import Model, load_model
from learner.progress import Progress
from learner.record import Record, decode_record, encode_record, erased, fresh_record
from learner.record.header import is_tombstone
from learner.record.items import item_id, read_items
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import ERASED, FLIP, NO, YES, Transitions, by_item
from learner.store import Store, Write, open_store, write_alone
from learner.store.recent import RecentStore
from tests.rig import Around, SteppingBack, once, without_revision

TEXT = """
name = "t"
half_life = "10d"
click_delay = { median = "10s", sigma = 1.2 }
[features]
x = { kind = "numeric" }
[effects.item]
features = ["intercept", "x"]
half_life = "2d"
prior = { variance = 0.5 }
"""
MODEL = load_model(TEXT)
AT = 1_700_000_000_000
ITEM_IDS = [item_id(item_key(item)) for item in "abcdef"]


def work(d: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(d), np.empty(d)


def grid_moments(
    mean: list[np.ndarray], cov: list[np.ndarray], x: list[np.ndarray], offset: float, clicked: bool, w: float
) -> list[tuple[float, float]]:
    """Mean and variance of each effect's log-odds under the tilted joint, on a grid of both."""
    centre = [x_e @ m for x_e, m in zip(x, mean, strict=True)]
    deviation = [np.sqrt(x_e @ S @ x_e) for x_e, S in zip(x, cov, strict=True)]
    nodes = np.linspace(-9, 9, 1501)
    u, i = (c + s * nodes for c, s in zip(centre, deviation, strict=True))
    z = offset + u[:, None] + i[None, :]
    density = np.exp(-(nodes[:, None] ** 2 + nodes[None, :] ** 2) / 2 + w * np.log(expit(z if clicked else -z)))
    density /= density.sum()
    found = []
    for axis, value in ((1, u), (0, i)):
        share = density.sum(axis=axis)
        first = (share * value).sum()
        found.append((first, (share * (value - first) ** 2).sum()))
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.01, 9.0),
    st.floats(0.01, 9.0),
    st.floats(-4, 4),
    st.booleans(),
    st.floats(0.2, 3),
)
def test_one_outcome_moves_both_effects_to_the_exact_marginals_of_their_tilted_joint(
    seed: int, v_u: float, v_i: float, offset: float, clicked: bool, w: float
) -> None:
    rng = np.random.default_rng(seed)
    mean, cov, x = [], [], []
    for d, v in ((3, v_u), (2, v_i)):
        root, row = rng.normal(size=(d, d)), rng.normal(size=d)
        S = root @ root.T + 0.1 * np.eye(d)
        mean.append(rng.normal(size=d))
        cov.append(S * v / (row @ S @ row))
        x.append(row)
    expected = grid_moments(mean, cov, x, offset, clicked, w)
    for mine, other in ((0, 1), (1, 0)):
        m, F = factorised(Gaussian(mean[mine], cov[mine]))
        others = float(x[other] @ cov[other] @ x[other])
        f, gain = work(len(m))
        at = offset + float(x[other] @ mean[other])
        update.condition(m, F, x[mine], clicked, at, w, False, f, gain, others)
        mu, v = update.project(m, F, x[mine], f)
        assert mu == pytest.approx(expected[mine][0], abs=2e-4 * (1 + abs(mu)))
        assert v == pytest.approx(expected[mine][1], rel=2e-4)


def test_a_flip_moves_by_the_difference_of_the_scores_and_leaves_the_covariance() -> None:
    mean, factor = np.array([0.3]), np.array([0.2])
    f, gain = work(1)
    update.flip(mean, factor, np.ones(1), -1.0, 1.0, 0.0, 0.5, f, gain)
    # Beside a partner that is known the scores of "yes" and "no" are 1 apart.
    assert (mean[0], factor[0]) == (pytest.approx(0.3 + 0.2 * 0.5), 0.2)
    mean = np.array([0.3])
    update.flip(mean, factor, np.ones(1), -1.0, 1.0, 2.0, 1.0, f, gain)
    assert 0.3 < mean[0] < 0.3 + 0.2


def slate(i: int, user: str, items: str, **more: object) -> dict[str, object]:
    about = {"request_id": f"r{i}", "user_id": user, "timestamp": AT + i * 20_000}
    shown = [{"item_id": item, "features": {"x": (i * 7 + k) % 5 - 2.0}, **more} for k, item in enumerate(items)]
    return {"type": "impression", **about, "items": shown}


def click(i: int, user: str, item: str, later: int) -> dict[str, object]:
    at = AT + i * 20_000 + later
    return {"type": "click", "request_id": f"r{i}", "user_id": user, "item_id": item, "timestamp": at}


def erasure(item: str, at: int) -> dict[str, object]:
    return {"type": "erase_item", "item_id": item, "timestamp": at}


def told(events: list[dict[str, object]], model: Model = MODEL) -> list[tuple[int, int]]:
    batch, bad = parse_events([json.dumps(one).encode() for one in events], model)
    assert not bad
    rows = apply(model, [None] * len(by_user(batch).user_ids), batch.events, by_user(batch)).transitions.row
    return [(int(row["item"]), int(row["kind"])) for row in rows]


def test_an_item_is_told_of_a_no_when_it_is_shown_and_of_a_flip_at_the_click_and_of_nothing_twice() -> None:
    a, b = item_key("a"), item_key("b")
    shown, clicked = slate(0, "u", "ab"), click(0, "u", "a", 5_000)
    assert told([shown, clicked]) == [(a, NO), (b, NO), (a, FLIP)]
    assert told([clicked, shown]) == [(a, YES), (b, NO)]
    assert told([shown, shown, clicked, clicked, shown]) == [(a, NO), (b, NO), (a, FLIP)]
    # Behind the window it is no click of this slate; where its "no" is settled it is one.
    assert told([shown, click(0, "u", "a", 10**8)]) == [(a, NO), (b, NO)]
    assert told([shown, slate(20, "u", "b"), click(0, "u", "a", 500_000)])[2:] == [(b, NO), (a, FLIP)]


def test_without_an_effect_of_items_nobody_is_told_anything() -> None:
    events = [slate(0, "u", "ab"), erasure("a", AT)]
    assert told(events, load_model(TEXT.partition("[effects")[0])) == []


def test_a_users_belief_takes_the_items_effect_from_the_impression_and_the_prior_where_there_is_none() -> None:
    def learnt(**more: object) -> Record:
        events = [slate(0, "u", "a", **more), click(0, "u", "a", 5_000)]
        batch, _ = parse_events([json.dumps(one).encode() for one in events], MODEL)
        (value,) = apply(MODEL, [None], batch.events, by_user(batch)).values
        assert value is not None
        return decode_record(value, MODEL, "u")

    x = np.array([1.0, -2.0])
    for sent, mean, var in (({}, 0.0, 0.5 * 5.0), ({"item_effect": [1.5, 0.25]}, 1.5, 0.25)):
        expected, factor = (one.copy() for one in MODEL.prior_belief)
        update.condition(expected, factor, x, True, mean, 1.0, False, *work(2), var)
        np.testing.assert_allclose(learnt(**sent).settled.mean, expected, rtol=1e-5)
        np.testing.assert_allclose(learnt(**sent).settled.factor, factor, rtol=1e-5)
    # A click on an item that was liked anyway says less of the user.
    assert learnt(item_effect=[3.0, 0.1]).settled.mean[0] < learnt().settled.mean[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('features = ["y"]', "effects.item.features: 'y': expected 'intercept' or some of x"),
        ("prior = { variance = -1.0 }", "effects.item.prior.variance"),
        ('half_life = "soon"', "half_life = 'soon'"),
    ],
)
def test_an_effect_that_cannot_be_is_refused_by_its_key(more: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(TEXT.partition("[effects")[0] + f"[effects.item]\n{more}\n")
    with pytest.raises(ModelError, match="method = 'laplace': expected method = 'adf'"):
        load_model(TEXT.replace('half_life = "10d"', 'method = "laplace"'))


class Shown(SteppingBack):
    """Slates of some users and items."""

    turn_s = 0.3

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MODEL, max_messages=5)

    def send_slates(self, n: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        for _ in range(n):
            i, user = self.sent, rng.choice("uvw")
            items = "".join(rng.sample("abcdef", 3))
            events = [slate(i, user, items)]
            if rng.random() < 0.5:
                events.insert(rng.randrange(2), click(i, user, rng.choice(items), 4_000))
            if rng.random() < 0.1:
                events.insert(rng.randrange(2), erasure(rng.choice(items), AT + i * 20_000 - rng.randrange(30_000)))
            self.send(*events)
            self.sent += 1

    def items(self) -> dict[str, bytes]:
        assert MODEL.item is not None
        return without_revision(self.store, ITEM_IDS, MODEL.item)

    def by_the_log_alone(self) -> dict[str, bytes]:
        """Every user one event at a time, and what they tell, in the order of the log: no feed, no store."""
        assert MODEL.item is not None
        reader = open_reader(self.log_url, ["events"], f"oracle-{self.clock}")
        users: dict[str, bytes | None] = {}
        items: dict[str, bytes | None] = {}
        for message in reader.poll(0, 10_000):
            batch, _ = parse_events([message.value], MODEL)
            one = by_user(batch)
            done = apply(MODEL, [users.get(one.user_ids[0])], batch.events, one)
            if batch.events.event["kind"][0] == ERASE_ITEM:
                assert done.values == [None]
            users[one.user_ids[0]] = done.values[0] or users.get(one.user_ids[0])
            of = by_item(done.transitions)
            values = apply_to_items(MODEL.item, [items.get(name) for name in of.user_ids], done.transitions, of)
            items |= zip(of.user_ids, values, strict=True)
        reader.close()
        found = {}
        for item, value in items.items():
            record = decode_record(value or b"", MODEL.item, item)
            found[item] = encode_record(record._replace(revision=0), MODEL.item)
        return found


def counted(turns: list[Progress]) -> Counter[str]:
    return sum((turn.counts for turn in turns), Counter())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Shown]:
    one = Shown(tmp_path)
    yield one
    one.close()


def test_what_items_have_learnt_is_what_the_log_alone_gives_to_the_last_bit(rig: Shown) -> None:
    rig.send_slates(40)
    counts = counted(rig.turns())
    assert rig.items() == rig.by_the_log_alone()
    assert len(rig.items()) == 6
    assert counts["item_outcomes"] == counts["impressions"] * 3 + counts["clicks"]


def test_a_store_that_steps_back_teaches_no_item_twice_and_none_less(rig: Shown) -> None:
    rig.send_slates(20)
    rig.turns(4)
    copy = rig.keep()
    rig.turns(3)
    rig.put_back(copy)
    rig.send_slates(10, seed=1)
    counts = counted(rig.turns())
    assert counts["store_rewound"] >= 1
    assert rig.items() == rig.by_the_log_alone()


def test_a_learner_that_is_killed_before_its_items_are_stored_loses_none_of_them(rig: Shown) -> None:
    rig.send_slates(15)
    rig.turns(2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    assert rig.learner._first._items is not None
    rig.learner._first._items.turn = die  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        rig.turns()
    rig.restart()
    rig.turns()
    assert rig.items() == rig.by_the_log_alone()


def test_a_store_that_is_emptied_is_rebuilt_from_the_log_with_its_items_and_their_erasures(rig: Shown) -> None:
    rig.send_slates(30)
    rig.turns()
    before = rig.items()
    rig.put_back(None)
    assert counted(rig.turns())["store_rewound"] >= 1
    assert rig.items() == before == rig.by_the_log_alone()
    assert any(is_tombstone(value) for value in before.values())


def test_an_owner_that_slept_writes_nothing_of_a_feed_that_was_emptied_behind_its_reading(rig: Shown) -> None:
    assert MODEL.item is not None
    store = open_store(f"sqlite:///{rig.folder / 'g.db'}", 10**9)
    emptied = once(lambda: rig.put_back(None))
    reads = iter([lambda: None] * 2)
    owner = Items(MODEL.item, cast(Store, Around(store, "read_feed", after=lambda: next(reads, emptied)())))
    # Of the first turn nothing is remembered; of the second, that there is nothing yet.
    for _ in range(2):
        owner.turn({0}, Counter())
    rig.send_slates(30)
    rig.turns()
    assert len(rig.items()) == 6
    counts = Counter[str]()
    owner.turn({0}, counts)
    assert (rig.items(), counts["item_outcomes"]) == ({}, 0)
    rig.turns()
    assert rig.items() == rig.by_the_log_alone()
    store.close()


def test_two_owners_of_a_shard_cost_conflicts_and_nothing_else(rig: Shown) -> None:
    rig.send_slates(30)
    assert MODEL.item is not None
    other = Items(MODEL.item, RecentStore(open_store(f"sqlite:///{rig.folder / 'g.db'}", 10**9)))
    conflicts = 0
    for _ in range(20):
        counts = rig.learner.turn().counts
        other.turn({0}, counts)
        rig.send_slates(1, seed=rig.sent)
        other.turn({0}, counts)
        conflicts += counts["item_conflicts"]
    rig.turns()
    assert conflicts > 0
    assert rig.items() == rig.by_the_log_alone()


def test_a_block_stays_for_a_minute_after_the_last_shard_of_items_has_read_it_however_old_it_was(rig: Shown) -> None:
    def blocks() -> list[int]:
        return [one.number for one in rig.store.read_feed({0: 0}, 1_000)[0]]

    items = rig.learner._first._items
    assert items is not None
    items.clock = lambda: rig.clock
    # The items are an hour behind, and then read all.
    rig.learner._first._items = None
    rig.send_slates(10)
    rig.turns(10)
    told = blocks()
    assert told
    rig.clock += 3_600.0
    rig.learner._first._items = items
    rig.turns(1)
    rig.turns(3, seconds=15.0)
    assert blocks() == told
    rig.turns(2, seconds=15.0)
    assert blocks() == []


def test_items_that_have_stepped_back_are_made_good_though_nothing_comes(rig: Shown) -> None:
    items = rig.learner._first._items
    assert items is not None
    items.clock = lambda: rig.clock
    rig.learner._first._items = None
    rig.send_slates(10)
    rig.turns(10)
    before = rig.keep()
    rig.learner._first._items = items
    rig.turns(2)
    # Users have lost nothing, and tell nothing again.
    rig.put_back(before)
    assert rig.items() == {}
    rig.turns(2, seconds=10.0)
    assert rig.items() == rig.by_the_log_alone()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(-1, 21))
def test_an_erased_item_is_as_if_nothing_had_been_shown_until_then_whenever_it_is_told(seed: int, after: int) -> None:
    """Clicks on what was shown until then among them: there is no "no" left that they could turn."""
    assert MODEL.item is not None
    rng = random.Random(seed)
    events, whole = [], [slate(i, rng.choice("uv"), "ab") for i in range(20)]
    for i, shown in enumerate(whole):
        events.append((AT + i * 20_000, shown))
        if rng.random() < 0.6:
            later = rng.randrange(1, 200_000)
            events.append((AT + i * 20_000 + later, click(i, str(shown["user_id"]), "a", later)))
    events.sort(key=lambda one: one[0])
    at = AT + after * 20_000
    batch, bad = parse_events([json.dumps(event).encode() for _, event in [*events, (at, erasure("a", at))]], MODEL)
    assert not bad
    of = by_user(batch)
    row, x = apply(MODEL, [None] * len(of.user_ids), batch.events, of).transitions
    order = np.argsort(row["event"], kind="stable")
    mine = order[row["item"][order] == item_key("a")]
    # The erasure is told behind all that was shown until then, and before all else: as its event stands in the log.
    is_erasure = row["kind"][mine] == ERASED
    early = row["at"][mine] <= at
    told = [*mine[early & ~is_erasure], *mine[is_erasure], *mine[~early & ~is_erasure]]
    left = [place for place in told if row["kind"][place] != ERASED and row["shown_at"][place] > at]

    def learnt(places: list[int], stored: bytes | None = None) -> Record:
        rows = Transitions(row[places], x[places])
        (value,) = apply_to_items(MODEL.item, [stored], rows, by_item(rows))  # type: ignore[arg-type]
        return decode_record(value, MODEL.item, "a")  # type: ignore[arg-type]

    found = learnt(told)
    assert found.erased_at == at
    expected = learnt(left) if left else fresh_record(MODEL.item)
    assert encode_record(found._replace(revision=0), MODEL.item) == encode_record(
        expected._replace(revision=0, erased_at=at), MODEL.item
    )
    # A tombstone that came before its event, and the event again, are the same.
    blank = encode_record(erased(fresh_record(MODEL.item), MODEL.item, at), MODEL.item)
    twice = learnt([*told, *mine[is_erasure]], blank)
    assert encode_record(twice._replace(revision=0), MODEL.item) == encode_record(
        found._replace(revision=0), MODEL.item
    )


def test_an_item_whose_record_was_damaged_learns_again_once_it_is_erased(rig: Shown) -> None:
    assert MODEL.item is not None
    key = item_id(item_key("a"))
    write_alone(rig.store, [Write(key, None, b"damaged", effect="item")])
    rig.send(slate(0, "u", "ab"))
    assert counted(rig.turns(3))["item_outcomes_lost"] == 1
    blank = encode_record(erased(fresh_record(MODEL.item), MODEL.item, AT), MODEL.item)
    write_alone(rig.store, [Write(key, b"damaged", blank, erased=True, effect="item")])
    assert rig.learner._first._items is not None
    rig.learner._first._items._looks = [(-2 * TRIM_S, {})]
    rig.turns(1)
    rig.send(slate(1, "u", "ab"))
    rig.turns(3)
    (value,) = rig.store.load([key], "item")
    assert decode_record(value or b"", MODEL.item, "a").n_events == 1


def test_an_unknown_item_is_its_prior() -> None:
    assert MODEL.item is not None
    fresh = fresh_record(MODEL.item)
    np.testing.assert_array_equal(fresh.settled.mean, [0.0, 0.0])
    np.testing.assert_allclose(fresh.settled.variances, [0.5, 0.5])


def a_log(n: int) -> list[dict[str, object]]:
    """Slates of five users at times of their own, and clicks behind them."""
    rng = random.Random(7)
    events = []
    for i in range(n):
        user, items, at = rng.choice("uvwxy"), "".join(rng.sample("abcdef", 3)), AT + i * 7_001 + rng.randrange(7_000)
        shown = {**slate(i, user, items), "timestamp": at}
        events.append((at, shown))
        if rng.random() < 0.5:
            later = at + rng.randrange(1, 40_000)
            events.append((later, {**click(i, user, rng.choice(items), 0), "timestamp": later}))
        if rng.random() < 0.1:
            # Also of an item that nobody sees.
            events.append((at + 1, erasure(rng.choice("abcz"), at + 1)))
    return [event for _, event in sorted(events, key=lambda one: one[0])]


@pytest.mark.parametrize("scored_from", [0, 60])
def test_a_replay_scores_each_slate_with_its_user_as_fresh_and_its_items_as_of_the_last_slice(scored_from: int) -> None:
    """Against one event at a time, in the order of time; items learn what was told where a slice ends."""
    effect = MODEL.item
    assert effect is not None
    raws = [json.dumps(one).encode() for one in a_log(150)]
    batch, bad = parse_events(raws, MODEL)
    assert not bad
    lag_ms = 45_000.0
    users: dict[str, bytes | None] = {}
    items: dict[str, bytes | None] = {}
    told: list[Transitions] = []
    expected, of = [], None
    for raw in raws:
        one, _ = parse_events([raw], MODEL)
        at = int(one.events.event["at"][0])
        if of is not None and at // lag_ms != of:
            row, x = (np.concatenate([some[part] for some in told]) for part in (0, 1))
            mine = by_item(Transitions(row, x))
            stored = [items.get(name) for name in mine.user_ids]
            items |= zip(mine.user_ids, apply_to_items(effect, stored, Transitions(row, x), mine), strict=True)
            told = []
        of = at // lag_ms
        user = one.user[0]
        shown = one.events.item
        if len(shown):
            names = [item_id(key) for key in shown["item"].tolist()]
            beliefs = read_items(effect, [items.get(name) for name in names], names).at(effect, at)
            shown["other_mean"], shown["other_var"] = mean, var = beliefs.effects(effect, one.events.row, at)
            record = fresh_record(MODEL) if not users.get(user) else decode_record(users[user] or b"", MODEL, user)
            mu, v = predict(belief_at(MODEL, record, at), one.events.row, shown["offset"])
            expected.append((at, click_probability(mu + mean, v + var)))
        done = apply(MODEL, [users.get(user)], one.events, by_user(one))
        users[user] = done.values[0] or users.get(user)
        told.append(done.transitions)
    start = expected[scored_from][0]
    found = replay(MODEL, read_log(batch, MODEL.window_ms), score_from_ms=start, item_lag_ms=lag_ms)
    order = np.lexsort((np.arange(len(found.shown_at)), found.shown_at))
    wanted = np.concatenate([p for at, p in expected if at >= start])
    np.testing.assert_allclose(found.scored.p[order], wanted, rtol=1e-12)
    assert found.item_evidence is not None
    assert found.item_evidence.max() > 40
