from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.belief.gaussian import click_probability, predict
from learner.evaluation.compare import cut_at, evaluate, variants
from learner.evaluation.metrics import Scored, auc, log_loss, reliability, share_of, summarise
from learner.evaluation.replay import Log, fresh, frozen_at, joined_after, lagging, read_log, replay
from learner.evaluation.report import as_html, as_json, as_text
from learner.events.parse import outcome_key
from learner.model.spec import load_model
from learner.record import fresh_record
from learner.record.served import belief_at
from tests.stepping import Click, Erase, Event, Impression, apply, columns, single

MODEL = load_model(
    'name = "t"\nattribution_window = "1m"\nclick_delay = { median = "5s", sigma = 1.0 }\n'
    '[features]\nx = { kind = "numeric" }\n'
)


def shown(user: str, request: str, at: int, n: int = 3) -> Impression:
    rng = np.random.default_rng(at)
    rows = np.column_stack([np.ones(n), rng.normal(size=n)]).astype(np.float32)
    zeros = np.zeros(n, np.float32)
    return Impression(user, at, [outcome_key(request, str(i)) for i in range(n)], rows, zeros, zeros + 1)


def log(n_users: int = 4, n_slates: int = 6) -> list[Event]:
    events: list[Event] = []
    for user in range(n_users):
        for k in range(n_slates):
            at = 1_000 * user + 40_000 * k
            events.append(shown(f"u{user}", f"{user}-{k}", at))
            if (user + k) % 2:
                events.append(Click(f"u{user}", at + 3_000, outcome_key(f"{user}-{k}", "1")))
    return events


def told(events: Sequence[Event]) -> Log:
    return read_log(columns(MODEL, events), MODEL.window_ms)


def scores(available: object, model: object = MODEL) -> np.ndarray:
    return replay(model, told(log()), available).scored.p  # type: ignore[arg-type]


def test_a_fresh_replay_scores_what_the_learner_would_have_served() -> None:
    whole = told(log())
    done = replay(MODEL, whole)
    expected = []
    for history in whole.users:
        record = fresh_record(MODEL)
        for event in (single(whole.batch, one) for one in history.places):
            if isinstance(event, Impression):
                belief = belief_at(MODEL, record, event.timestamp)
                expected.append(
                    click_probability(*predict(belief, event.rows.astype(float), event.offset.astype(float)))
                )
            (record,), _ = apply(MODEL, [record], [[event]])
    by_user = np.lexsort((np.arange(len(done.scored.p)), done.scored.user))
    np.testing.assert_array_equal(done.scored.p[by_user], np.concatenate(expected))


def test_a_lag_longer_than_the_log_is_the_prior_and_no_lag_is_fresh() -> None:
    np.testing.assert_array_equal(scores(lagging(1e9)), scores(None))
    np.testing.assert_array_equal(scores(lagging(0.0)), scores(fresh))
    np.testing.assert_array_equal(scores(frozen_at(-1.0)), scores(None))
    np.testing.assert_array_equal(scores(frozen_at(1e9)), scores(fresh))
    assert not np.array_equal(scores(lagging(50_000)), scores(fresh))


def test_no_score_depends_on_what_comes_after_it() -> None:
    events = log()
    early = [event for event in events if event.timestamp < 100_000]
    whole, part = (replay(MODEL, told(one)) for one in (events, early))
    before = whole.shown_at < 100_000
    a, b = (sorted(zip(d.scored.user, d.shown_at, d.scored.p, strict=True)) for d in (whole, part))
    assert [one for one in a if one[1] < 100_000] == b
    assert before.any()


@pytest.mark.parametrize("place", [0, 5, -1])
def test_an_erased_user_is_neither_scored_nor_learnt_from_up_to_the_erasure(place: int) -> None:
    events = log()
    left = [event for event in events if event.user_id != "u1" or event.timestamp > 81_000]
    assert 0 < len(left) < len(events)
    with_erasures = [*events]
    with_erasures[place:place] = [Erase("u1", 81_000), Erase("u1", 500), Erase("nobody", 7)]
    found, expected = told(with_erasures), told(left)
    assert found.n_slates() == expected.n_slates()
    one, other = (
        sorted(zip(done.scored.y.tolist(), done.scored.p.tolist(), done.shown_at.tolist(), strict=True))
        for done in (replay(MODEL, found), replay(MODEL, expected))
    )
    assert one == other


def test_a_part_of_a_log_keeps_the_erasures_that_came_after_it() -> None:
    whole = columns(MODEL, [*log(), Erase("u1", 10**6)])
    kept = read_log(whole.only(lambda user: user != "u0", 100_000), MODEL.window_ms)
    assert sorted(kept.batch.user) == sorted(e.user_id for e in log() if e.user_id > "u1" and e.timestamp <= 100_000)


def test_the_joiner_learns_each_outcome_once_with_its_final_label() -> None:
    model = replace(MODEL, click_delay=None)
    events: list[Event] = [shown("u", "r", 0), Click("u", 3_000, outcome_key("r", "1")), shown("u", "s", 61_000)]
    joined = replay(model, told(events), joined_after(60_000.0))
    at_once = [Click("u", 0, outcome_key("r", "1")), shown("u", "r", 0), shown("u", "s", 61_000)]
    known = replay(model, told(at_once), fresh)
    np.testing.assert_array_equal(joined.scored.p, known.scored.p)


def test_the_cut_is_a_share_of_outcomes_and_users_are_new_or_known_by_it() -> None:
    users = told([*log(), shown("late", "l", 190_000)])
    cut = cut_at(users, 0.5)
    (result,) = evaluate(users, [variants(MODEL, cut)[6]], cut, resamples=10)
    assert result.name == "fresh"
    done = replay(MODEL, users, fresh, cut)
    assert len(np.unique(done.scored.slate)) == 13
    assert np.isnan(result.new["auc"].value)
    assert result.new["log_loss"].value == pytest.approx(log_loss(np.zeros(3), done.scored.p[done.scored.user == 4]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30))
def test_metrics_are_what_their_definitions_say(rows: list[tuple[bool, int, int]]) -> None:
    y, p = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows]) / 7 + 0.05
    user = np.array([r[2] for r in rows])
    found = summarise(Scored(user, user, y, p), resamples=5)

    def pairs(chosen: np.ndarray) -> float:
        wins = [float(a > b) + 0.5 * (a == b) for a in p[chosen & (y > 0)] for b in p[chosen & (y == 0)]]
        return float(np.mean(wins)) if wins else float("nan")

    everyone = np.ones(len(y), bool)
    np.testing.assert_allclose(found["auc"].value, pairs(everyone))
    areas = [pairs(user == u) for u in np.unique(user)]
    expected = np.nanmean(areas) if not np.isnan(areas).all() else np.nan
    np.testing.assert_allclose(found["user_auc"].value, expected)
    np.testing.assert_allclose(found["log_loss"].value, -np.mean(np.log(np.where(y > 0, p, 1 - p))))
    gains, ranks = [], []
    for u in np.unique(user):
        mine = [label for _, label in sorted(zip(p[user == u], y[user == u], strict=True), key=lambda one: -one[0])]
        if 0 < sum(mine) < len(mine):
            ideal = sum(1 / np.log2(i + 2) for i in range(min(10, int(sum(mine)))))
            gains.append(sum(label / np.log2(i + 2) for i, label in enumerate(mine[:10])) / ideal)
            ranks.append(1 / (1 + mine.index(1.0)))
    np.testing.assert_allclose(found["ndcg@10"].value, np.mean(gains) if gains else np.nan)
    np.testing.assert_allclose(found["mrr"].value, np.mean(ranks) if ranks else np.nan)
    assert sum(one.n for one in reliability(Scored(user, user, y, p), 5)) == len(y)


def test_bootstrap_intervals_hold_the_value_and_shrink_with_more_users() -> None:
    rng = np.random.default_rng(0)

    def interval(n: int) -> tuple[float, float, float]:
        user, p = np.repeat(np.arange(n), 20), rng.random(20 * n)
        y = (rng.random(20 * n) < p).astype(float)
        return summarise(Scored(user, user, y, p))["auc"]

    few, many = interval(20), interval(500)
    assert few[1] < few[0] < few[2]
    assert many[2] - many[1] < 0.5 * (few[2] - few[1])
    assert many[1] < 5 / 6 < many[2]


def test_reliability_and_coverage_have_intervals_over_users() -> None:
    rng = np.random.default_rng(1)
    user, p = np.repeat(np.arange(400), 20), rng.random(8_000)
    bins = reliability(Scored(user, user, (rng.random(8_000) < p).astype(float), p))
    assert len(bins) == 10
    # Each holds the truth 95 times in 100; all ten of this seed do but for one, at most.
    assert sum(one.low <= one.predicted <= one.high for one in bins) >= 9
    assert all(one.low < one.actual < one.high for one in bins)
    # What holds for half of the users or not at all is known worse than what holds by chance.
    one, other = share_of(user, user % 2 == 0), share_of(user, rng.random(8_000) < 0.5)
    assert one.value == 0.5
    assert one.low < 0.5 < one.high
    assert one.high - one.low > 2 * (other.high - other.low)
    assert np.isnan(share_of(user[:0], user[:0] > 0).value)


def test_auc_of_equal_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="some of each kind"):
        auc([1, 1], [0.1, 0.2])


def test_the_reports_hold_the_numbers_and_the_page_needs_nothing_else() -> None:
    users = told(log(20))
    model = replace(MODEL, name="<feed>")
    cut = cut_at(users, 0.3)
    results = evaluate(users, variants(model, cut), cut, resamples=10)
    document = json.loads(as_json(results))
    value = document["fresh"]["all"]["auc"]["value"]
    assert 0 <= value <= 1
    assert f"{value:.4f}" in as_text(results)
    page = as_html(results, model.name)
    assert f"{value:.4f}" in page
    assert "<feed>" not in page
    assert "http" not in page.replace('http-equiv="', "")
    assert page.count("<svg") == 3
    # Well-formed, but for the doctype and the meta elements that HTML leaves open.
    body = page[page.index("<body>") : page.index("</html>")].replace("<!doctype html>", "")
    ElementTree.fromstring(body)
