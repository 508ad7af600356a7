from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.belief import forget, update
from learner.belief.gaussian import Belief
from learner.model.spec import Model, load_model
from learner.record import Record, RecordError, State, decode_record, encode_record, erased, fresh_record
from learner.record.served import belief_at
from tests.stepping import Click, Erase, Event, Impression, Sweep, apply, clicked_share, outcome_key

HEAD = 'name = "t"\n{}\n[prior]\nvariance = 0.7\n[features]\nx = {{ kind = "numeric" }}\nz = {{ kind = "numeric" }}\n'
DELAY = 'click_delay = { median = "10s", sigma = 1.2 }'
ADF = load_model(HEAD.format(f'half_life = "10m"\n{DELAY}'))


def shown(request: str, at: int, items: str = "ab", weight: float = 1.0) -> Impression:
    rng = np.random.default_rng(sum(map(ord, request)))
    n = len(items)
    rows = np.concatenate([np.ones((n, 1)), rng.normal(size=(n, 2))], axis=1).astype(np.float32)
    keys = [outcome_key(request, item) for item in items]
    return Impression("u", at, keys, rows, np.zeros(n, np.float32), np.full(n, weight, np.float32))


def clicked(request: str, item: str, at: int) -> Click:
    return Click("u", at, outcome_key(request, item))


def run(model: Model, events: list[Event], cuts: Sequence[int] = (), others: Sequence[Sequence[Event]] = ()) -> Record:
    """Apply a user's events, and those of others, in microbatches that end at `cuts`, through the bytes of records."""
    streams = [events, *others]
    records = [fresh_record(model)] * len(streams)
    for start, end in pairwise([0, *sorted(cuts), max(map(len, streams))]):
        records, _ = apply(model, records, [stream[start:end] for stream in streams])
        records = [decode_record(encode_record(record, model), model, "u") for record in records]
    return records[0]


def condition(belief: Belief, x: np.ndarray, clicked: bool, weight: float = 1.0, laplace: bool = False) -> Belief:
    """A copy of the belief, conditioned in float64."""
    mean, factor = belief.mean.astype(float), belief.factor.astype(float)
    update.condition(mean, factor, x, clicked, 0.0, weight, laplace, np.empty(len(mean)), np.empty(len(mean)))
    return Belief(mean, factor)


def assert_near(found: Belief, expected: Belief) -> None:
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=1e-5, atol=1e-6)


def streams(n: int) -> list[list[Event]]:
    """Of users with ever more events, with clicks that flip what has settled."""
    return [
        [event for i in range(u) for event in (shown(f"{u}{i}", i * 70_000), clicked(f"{u}{i // 2}", "a", i * 70_000))]
        for u in range(1, n + 1)
    ]


def same(one: Record, other: Record, model: Model = ADF) -> bool:
    return encode_record(one._replace(revision=0), model) == encode_record(other._replace(revision=0), model)


def counts(model: Model, events: list[Event]) -> dict[str, int]:
    _, report = apply(model, [fresh_record(model)], [events])
    return dict(report.counts)


events_of = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.sampled_from("ab"), st.integers(0, 3_000_000)), max_size=25
).map(lambda plan: [shown(f"r{r}", at) if kind else clicked(f"r{r}", item, at) for kind, r, item, at in plan])


KINDS = {
    "days": f'half_life = "10m"\n{DELAY}',
    "outcomes": f'half_life = ["10m", "20 outcomes"]\n{DELAY}',
    "no delay": 'half_life = "20 outcomes"',
    "diagonal": f'covariance = "diagonal"\nhalf_life = "10m"\n{DELAY}',
    "by item": f'match_clicks = "item"\nhalf_life = "10m"\n{DELAY}',
    "few open": f'max_open = 2\nhalf_life = "10m"\n{DELAY}',
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(events=events_of, cuts=st.lists(st.integers(0, 25), max_size=6))
def test_where_microbatches_end_and_who_shares_them_changes_no_bit(
    kind: str, events: list[Event], cuts: list[int]
) -> None:
    model = load_model(HEAD.format(KINDS[kind]))
    cuts = [min(cut, len(events)) for cut in cuts]
    expected = run(model, events)
    assert same(expected, run(model, events, cuts), model)
    assert same(expected, run(model, events, cuts, streams(7)), model)


def test_repeats_change_no_belief() -> None:
    once = [shown("r", 0), clicked("r", "a", 4000)]
    record, repeated = run(ADF, once), run(ADF, [once[0], once[0], once[1], once[1], once[0]])
    assert np.array_equal(record.settled.mean, repeated.settled.mean)
    assert record.n_events == repeated.n_events == 2


def test_a_click_is_learnt_by_hand_at_its_time_and_open_impressions_weigh_what_clicks_would_have_come() -> None:
    impression = shown("r", 0, "ab", weight=0.8)
    record = run(ADF, [impression, clicked("r", "a", 20_000)])
    x = impression.rows.astype(float)
    weight = float(np.float32(0.8))
    settled = condition(ADF.prior_belief, x[0], True, weight)
    assert_near(record.settled, settled)
    for now in (20_000, 50_000, 10**8):
        left = float(ADF.relax_factor(np.array(float(now - record.settled_at))))
        relaxed = Belief(record.settled.mean.copy(), record.settled.factor.copy())
        forget.relax(*relaxed, *ADF.prior_belief, left)
        share = clicked_share(ADF, now)
        mu, v = x[1] @ relaxed.mean, x[1] @ relaxed.cov @ x[1]
        q = 1 / (1 + np.exp(-mu / np.sqrt(1 + np.pi * v / 8)))
        expected = condition(relaxed, x[1], False, weight * share * (1 - q) / (1 - share * q))
        found = belief_at(ADF, record, now)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.cov, expected.cov, rtol=1e-9, atol=1e-12)


def test_an_impression_settles_as_a_no_with_its_full_weight_and_a_later_click_takes_it_back() -> None:
    impression = shown("r", 0, "a")
    late = 100_000
    still = load_model(HEAD.format(DELAY))
    settled_only = run(still, [impression, shown("s", late, "a")])
    assert settled_only.outcomes["state"].tolist() == [State.SETTLED, State.OPEN]
    x = impression.rows[0].astype(float)
    assert_near(settled_only.settled, condition(ADF.prior_belief, x, False))
    flipped = run(still, [impression, shown("s", late, "a"), clicked("r", "a", late + 1)])
    in_time = run(still, [impression, clicked("r", "a", 1)])
    assert_near(flipped.settled, in_time.settled)
    # Nothing came in between: the click itself finds the "no" due.
    alone = run(still, [impression, clicked("r", "a", late + 1)])
    assert alone.settled.mean.tobytes() == flipped.settled.mean.tobytes()
    assert alone.settled.factor.tobytes() == flipped.settled.factor.tobytes()
    assert counts(still, [impression, clicked("r", "a", late + 1)])["flips"] == 1


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("between", [0, 5, 40])
def test_a_late_click_comes_to_nearly_what_one_in_time_does(scale: float, between: int) -> None:
    """Whatever was learnt in between: within 0.01 where the variance of the log-odds is at most 1."""
    model = load_model(HEAD.format(DELAY).replace("0.7", "0.2"))
    rng = np.random.default_rng(between)

    def one(i: int) -> Impression:
        row = rng.normal(size=(1, 3)).astype(np.float32)
        row *= scale / np.sqrt(0.2 * (row**2).sum())
        return Impression("u", 2_000 + i, [1_000 + i], row, np.zeros(1, np.float32), np.ones(1, np.float32))

    first = shown("r", 0, "a")
    first.rows[:] *= scale / np.sqrt(0.2 * (first.rows**2).sum())
    others: list[Event] = [one(i) for i in range(between)]
    some: list[Event] = [Click("u", 100_000, 1_000 + i) for i in range(0, between, 3)]
    in_time = run(model, [first, clicked("r", "a", 1_000), *others, *some, shown("s", 200_000, "a")])
    late = run(model, [first, *others, *some, shown("s", 200_000, "a"), clicked("r", "a", 200_001)])
    np.testing.assert_allclose(in_time.settled.mean, late.settled.mean, atol=0.01)


@given(st.integers(90_000, 900_000), st.integers(0, 900_000), st.sampled_from(["repeat", "late", "waiting", "sweep"]))
@settings(max_examples=50, deadline=None)
def test_what_an_impression_settles_to_does_not_depend_on_the_event_that_finds_it_due(
    first: int, later: int, kind: str
) -> None:
    """Some event before the last one; forgetting goes by the times at which labels became known."""
    finder = {
        "repeat": shown("r", first, "ab"),
        "late": clicked("none", "a", first),
        "waiting": clicked("other", "b", first),
        "sweep": Sweep("u", first),
    }[kind]
    start, last = [shown("r", 0, "ab")], [shown("s", first + later, "a")]
    expected, found = run(ADF, [*start, *last]), run(ADF, [*start, finder, *last])
    assert_near(found.settled, expected.settled)
    if kind != "repeat":
        # The belief relaxes to the time of every slate, also of a known one: two half steps, which are one.
        assert expected.settled.mean.tobytes() == found.settled.mean.tobytes()
        assert expected.settled.factor.tobytes() == found.settled.factor.tobytes()
    assert expected.settled_at == found.settled_at
    assert expected.outcomes["state"].tolist() == found.outcomes["state"].tolist()


def test_a_click_before_its_impression_is_learnt_when_that_comes() -> None:
    record = run(ADF, [clicked("r", "a", 5_000), shown("r", 0)])
    assert record.outcomes["state"].tolist() == [State.CLICKED, State.OPEN]
    assert len(record.clicks) == 0


def test_late_and_unmatched_clicks_are_counted_and_change_no_belief() -> None:
    window = ADF.window_ms
    quiet = run(ADF, [shown("r", 0, "a"), shown("s", window, "a")])
    events = [shown("r", 0, "a"), shown("s", window, "a"), clicked("r", "a", window + 1)]
    # It ends the window of its own impression, as any event of its time would.
    assert len(run(ADF, events).outcomes) == 1
    assert same(run(ADF, events)._replace(outcomes=quiet.outcomes, rows=quiet.rows), quiet)
    assert counts(ADF, events)["late_clicks"] == 1
    events = [clicked("r", "a", 0), shown("s", window + 1)]
    assert counts(ADF, events)["unmatched_clicks"] == 1
    assert len(run(ADF, events).clicks) == 0


def test_one_event_dated_far_ahead_does_not_end_the_window_of_those_that_follow() -> None:
    record = run(ADF, [shown("far", 10**12), shown("r", 1000), clicked("r", "a", 2000)])
    assert record.updated_at == 10**12
    assert counts(ADF, [shown("far", 10**12), shown("r", 1000), clicked("r", "a", 2000)])["clicks"] == 1


def test_open_impressions_are_bounded_and_the_oldest_settle_early() -> None:
    model = load_model("max_open = 4\n" + HEAD.format(DELAY))
    events: list[Event] = [shown(f"r{i}", i) for i in range(30)]
    record = run(model, events)
    assert (record.outcomes["state"] == State.OPEN).sum() == 4
    assert len(record.outcomes) <= 16
    assert counts(model, events)["settled_early"] == 56


@pytest.mark.parametrize("method", ["adf", "laplace"])
def test_an_erasure_leaves_what_the_service_leaves_and_takes_nothing_that_comes_after_it(method: str) -> None:
    model = load_model(HEAD.format(f'half_life = "10m"\nmethod = "{method}"\n{DELAY}'))
    events: list[Event] = [shown("r0", 1), clicked("r0", "a", 2), clicked("r9", "a", 3)]
    record = run(model, events)
    (blank,), report = apply(model, [record], [[Erase("u", 4)]])
    assert encode_record(blank, model) == encode_record(erased(record, model, 4), model)
    assert report.counts == {"erased": 1}
    # In one microbatch with what is before and after it; a repeat of it, and an event dated before it, change nothing.
    later: list[Event] = [shown(f"new{i}", 10 + i) for i in range(9)]
    whole = run(model, [*events, Erase("u", 4), *later, Erase("u", 4), shown("old", 4)])
    anew = run(model, later)
    assert same(whole, anew._replace(erased_at=4), model)


def test_without_a_click_delay_what_is_not_clicked_is_a_no_at_once() -> None:
    model = load_model(HEAD.format(""))
    impression = shown("r", 0, "a")
    x = impression.rows[0].astype(float)
    assert_near(belief_at(model, run(model, [impression]), 0), condition(model.prior_belief, x, False))
    after = run(model, [impression, clicked("r", "a", 5)])
    assert_near(belief_at(model, after, 5), condition(model.prior_belief, x, True))


def test_with_joint_laplace_a_click_in_the_microbatch_of_its_settling_is_learnt_once_as_a_click() -> None:
    model = load_model(HEAD.format(f'method = "laplace"\n{DELAY}'))
    impression = shown("r", 0, "a")
    record = run(model, [impression, shown("s", 100_000, "a"), clicked("r", "a", 100_001)])
    x = impression.rows[0].astype(float)
    assert_near(record.settled, condition(model.prior_belief, x, True, laplace=True))


def test_users_do_not_depend_on_each_other() -> None:
    users: list[list[Event]] = [[shown(f"{u}{i}", i * 9000) for i in range(u)] for u in range(1, 8)]
    together, _ = apply(ADF, [fresh_record(ADF)] * 7, users)
    backwards, _ = apply(ADF, [fresh_record(ADF)] * 7, users[::-1])
    for i, events in enumerate(users):
        assert same(together[i], run(ADF, events))
        assert same(together[i], backwards[6 - i])


def test_the_belief_that_is_served_relaxes_to_now() -> None:
    record = run(ADF, [shown("r", 0, "a"), clicked("r", "a", 1)])
    far = belief_at(ADF, record, 10**12)
    np.testing.assert_allclose(far.mean, ADF.prior.mean, atol=1e-12)
    assert abs(belief_at(ADF, record, 600_000).mean[0]) == pytest.approx(abs(record.settled.mean[0]) / 2)
    fresh = belief_at(ADF, fresh_record(ADF), 5)
    np.testing.assert_allclose(fresh.cov, ADF.prior.cov, rtol=1e-6)


def test_a_record_of_another_feature_space_or_of_an_unknown_prior_is_refused() -> None:
    data = encode_record(run(ADF, [shown("r", 0)]), ADF)
    other = load_model(HEAD.format(DELAY) + 'more = { kind = "numeric" }\n')
    with pytest.raises(RecordError, match="feature space"):
        decode_record(data, other, "u")
    with pytest.raises(RecordError, match=rf"under prior {ADF.population_fingerprint.hex()[:6]}"):
        decode_record(data, load_model(HEAD.format(DELAY).replace("0.7", "0.9")), "u")
    known = HEAD.format(DELAY).replace("0.7", "0.9\nearlier = [{ variance = 0.7 }]")
    decode_record(data, load_model(known), "u")


def test_an_erased_user_is_unknown_and_a_replay_brings_nothing_back() -> None:
    events: list[Event] = [shown("r", 0), clicked("r", "a", 5)]
    blank = erased(run(ADF, events), ADF, 5)
    (after,), report = apply(ADF, [blank], [events])
    assert report.counts == {"erased": 2}
    assert after.n_events == 0
    assert after.settled.mean.tobytes() == fresh_record(ADF).settled.mean.tobytes()
    assert after.settled.factor.tobytes() == fresh_record(ADF).settled.factor.tobytes()
