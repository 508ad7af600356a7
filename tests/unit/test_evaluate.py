from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from learner.belief.gaussian import click_probability, predict
from learner.evaluation.compare import USER_AGE, by_age, cut_at, extent, variants
from learner.evaluation.history import Log, fresh, frozen_at, joined_after, lagging, read_log
from learner.evaluation.metrics import log_loss
from learner.evaluation.page import as_html
from learner.evaluation.parts import evaluate
from learner.evaluation.replay import replay
from learner.evaluation.report import Evaluation, as_json, as_text, headline
from learner.model.spec import load_model
from learner.record import fresh_record
from learner.record.served import belief_at
from tests.stepping import Click, Erase, Event, Impression, apply, columns, outcome_key, single

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
    kept = read_log(whole.only(lambda user: user != "u0", until_ms=100_000), MODEL.window_ms)
    assert sorted(kept.batch.user) == sorted(e.user_id for e in log() if e.user_id > "u1" and e.timestamp <= 100_000)
    late = columns(MODEL, [*log(), Erase("u1", 70_000)])
    kept = read_log(late.only(lambda user: user == "u1", 60_000), MODEL.window_ms)
    expected = [e.timestamp for e in log() if e.user_id == "u1" and e.timestamp > 70_000]
    assert expected
    assert sorted(kept.batch.events.event["at"].tolist()) == sorted(expected)


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
    (result,) = evaluate([users], [one for one in variants(MODEL, cut) if one.name == "fresh"], cut, resamples=10)
    done = replay(MODEL, users, fresh, cut)
    assert len(np.unique(done.scored.slate)) == 13
    unknown = result.parts["user at the cut"]["unknown"]
    assert np.isnan(unknown["pooled_auc"].value)
    assert unknown["log_loss"].value == pytest.approx(log_loss(np.zeros(3), done.scored.p[done.scored.user == 4]))


def test_a_user_ages_with_what_they_were_shown_before_whoever_learnt_from_it() -> None:
    users = told(log(1, 40))
    for available in (fresh, None):
        done = replay(MODEL, users, available)
        assert done.evidence.tolist() == [3 * k for k in range(40) for _ in range(3)]
    ages = by_age(done.evidence)
    assert {name: int(chosen.sum()) for name, chosen in ages.items()} == {
        "new: 0": 3, "few: 1 to 49": 48, "known: 50 or more": 69,
    }  # fmt: skip
    assert np.sum(list(ages.values()), axis=0).tolist() == [1] * 120


def test_the_extent_counts_slates_of_one_class_and_what_was_shown_from_a_time_on() -> None:
    # One clicked of three; a click too late; all clicked; a click without an impression.
    events: list[Event] = [
        shown("a", "1", 1_000), Click("a", 2_000, outcome_key("1", "0")),
        shown("b", "2", 5_000), Click("b", 65_001, outcome_key("2", "0")),
        shown("a", "3", 9_000, 1), Click("a", 9_500, outcome_key("3", "0")),
        Click("c", 9_900, outcome_key("4", "0")),
    ]  # fmt: skip
    assert extent(told(events)) == (1_000, 9_000, 2, 3, 7, 2, 1, 1)
    assert extent(told(events), 5_000) == (5_000, 9_000, 2, 2, 4, 1, 1, 1)


def evaluation(n_users: int, model: object = MODEL, command: str = "freshet evaluate log.jsonl") -> Evaluation:
    users = told(log(n_users))
    cut = cut_at(users, 0.3)
    results = evaluate([users], variants(model, cut), cut, resamples=10)  # type: ignore[arg-type]
    return Evaluation("<feed>", "prior.npz", command, extent(users), extent(users, cut), results)


def test_the_headline_is_the_paired_gain_over_learning_a_day_later() -> None:
    done = evaluation(20)
    area = {name: done.of(name).metrics["slate_auc"].value for name in ("fresh", "lag 1 d", "fixed effect")}
    said = headline(done)
    assert said.startswith("Learning each event as it came instead of a day later")
    assert f"{area['fresh'] - area['lag 1 d']:+.4f} [" in said
    assert f"fixed effect alone: {area['fresh'] - area['fixed effect']:+.4f} [" in said
    # The log spans three minutes.
    assert "never counts" in said
    assert "never counts" not in headline(done._replace(whole=done.whole._replace(first_ms=-(10**9))))


@pytest.mark.parametrize(
    ("gain", "words"), [(0.1, "is worth +0.1000 [0.1000, 0.1000]"), (-0.1, "costs"), (0.0, "no difference")]
)
def test_the_headline_claims_no_more_than_the_interval_holds(gain: float, words: str) -> None:
    done = evaluation(4)
    (late, now) = done.of("lag 1 d"), done.of("fresh")
    area = late.metrics["slate_auc"]
    moved = now._replace(
        metrics=now.metrics | {"slate_auc": area._replace(value=area.value + gain, samples=area.samples + gain)}
    )
    assert words in headline(done._replace(results=[moved if one is now else one for one in done.results]))


def test_without_an_order_to_judge_the_headline_is_of_log_loss() -> None:
    done = evaluation(4)
    blind = [
        one._replace(metrics=one.metrics | {"slate_auc": one.metrics["slate_auc"]._replace(value=float("nan"))})
        for one in done.results
    ]
    assert "changes log loss by" in headline(done._replace(results=blind))


def test_the_reports_hold_the_numbers_and_the_page_needs_nothing_else() -> None:
    done = evaluation(20, command="freshet evaluate '<log>'")
    document = json.loads(as_json(done))
    value = document["ways"]["fresh"]["all"]["slate_auc"]["value"]
    assert 0 <= value <= 1
    gain = document["ways"]["fixed effect"]["fresh_minus"]["slate_auc"]
    assert gain["value"] == pytest.approx(value - document["ways"]["fixed effect"]["all"]["slate_auc"]["value"])
    assert document["ways"]["fresh"]["fresh_minus"]["slate_auc"] == {"value": 0, "low": 0, "high": 0}
    assert list(document["ways"]["fresh"]["parts"][USER_AGE]) == ["few: 1 to 49"]
    assert document["log"]["slates"] == 120
    text, page = as_text(done), as_html(done, "")
    for report in (text, page):
        assert f"{value:.4f}" in report
        assert f"{gain['value']:+.4f}" in report
        assert "120 slates" in report
        assert "1970-01-01 00:00" in report
    assert text.startswith(headline(done))
    assert done.command in text
    assert "<feed>" not in page
    assert "<log>" not in page
    assert "http" not in page.replace('http-equiv="', "")
    drawn = [json.loads(html.unescape(one)) for one in re.findall(r'data-plot="([^"]*)"', page)]
    assert [plot["x"] for plot in drawn] == [
        "how far learning lags behind", USER_AGE, "predicted probability of a click"
    ]  # fmt: skip
    told = {line["name"]: line["points"] for line in drawn[0]["lines"]}
    at_fresh = next(point for point in told["learning with this lag"] if point["label"] == "fresh")
    assert at_fresh["value"] == value
    assert {point["low"] for point in told["frozen prior"]} == {None}
    # Well-formed, but for the doctype and the meta elements that HTML leaves open.
    body = page[page.index("<body>") : page.index("</html>")].replace("<!doctype html>", "")
    ElementTree.fromstring(body)
