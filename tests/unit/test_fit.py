from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from learner.batch.click_delay import fit_click_delay
from learner.batch.collect import Sample, sample
from learner.batch.columns import whose
from learner.batch.duck import Duck
from learner.batch.fixed_effect import fit_fixed_effect, flat
from learner.batch.half_life import DAY_MS, Losses, difference, fit_half_life
from learner.batch.outcomes import Outcomes
from learner.batch.prior import Iteration, fit_prior, laplace_posteriors, users_under
from learner.batch.reading import LogError, read_events
from learner.batch.rows import Rows
from learner.batch.scaling import feature_scaling
from learner.batch.users import user_hash
from learner.belief.gaussian import Belief, Gaussian, sum_of_covariances
from learner.evaluation.history import read_log
from learner.evaluation.replay import progressive_losses
from learner.events.microbatch import Microbatch, item_places
from learner.model.duration import HalfLife
from learner.model.spec import Model, load_model
from service.commands import fit_choices
from service.commands.fit_choices import others_to_choose_by
from tests.outcomes import collected, rows_in
from tests.stepping import Click, Erase, Event, Impression, columns, outcome_key
from tests.unit.covariance_form import condition_microbatch

MODEL = load_model(
    'name = "t"\nattribution_window = "1m"\n[features]\nx = { kind = "numeric", mean = 2.0, std = 3.0 }\n'
)
TRUE_MEAN = np.array([-0.5, 1.0])
TRUE_COV = np.array([[0.6, 0.3], [0.3, 0.8]])


def joined(events: Iterable[Event], model: Model, **options: Any) -> Outcomes:
    """The outcomes of events that come one a microbatch."""
    return collected((columns(model, [event]) for event in events), model, **options)


def n_events(batches: Iterable[Microbatch]) -> int:
    return sum(len(batch.user) for batch in batches)


def simulated(n_users: int = 300, n_items: int = 60, seed: int = 0, cov: np.ndarray = TRUE_COV) -> list[Event]:
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for user in range(n_users):
        theta = rng.multivariate_normal(TRUE_MEAN, cov)
        rows = np.column_stack([np.ones(n_items), rng.normal(size=n_items)]).astype(np.float32)
        keys = [outcome_key(f"r{user}", str(i)) for i in range(n_items)]
        none, ones = np.full(n_items, np.nan, np.float32), np.ones(n_items, np.float32)
        events.append(Impression(f"u{user}", 1_000 * user, keys, rows, none, ones))
        clicked = rng.random(n_items) < expit(rows @ theta)
        events += [Click(f"u{user}", 1_000 * user + 10, key) for key, yes in zip(keys, clicked, strict=True) if yes]
    return events


def test_em_recovers_the_population_and_its_evidence_rises() -> None:
    seen: list[Iteration] = []
    fitted = fit_prior(joined(simulated(), MODEL), MODEL.prior, np.zeros(2), tolerance=1e-7, observe=seen.append)
    prior = fitted.population
    np.testing.assert_allclose(prior.mean, TRUE_MEAN, atol=0.15)
    np.testing.assert_allclose(prior.cov, TRUE_COV, atol=0.2)
    evidence = np.array([one.evidence for one in seen])
    assert len(evidence) > 3
    # Laplace's approximation of the evidence may fall by its own error near the end.
    assert (np.diff(evidence) > -1e-5 * np.abs(evidence[:-1])).all()


def test_em_hands_out_its_users_as_an_e_step_under_their_population_finds_them() -> None:
    outcomes = joined(simulated(40), MODEL)
    for iterations in (0, 1, 2, 50):
        fitted = fit_prior(outcomes, MODEL.prior, np.zeros(2), iterations)
        again = users_under(fitted.population, outcomes, np.zeros(2))
        assert (fitted.n, fitted.evidence) == (again.n, again.evidence)
        for one, other in zip(fitted[3:], again[3:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_diagonal_prior_stays_diagonal_and_recovers_the_variances() -> None:
    model = load_model('name = "t"\ncovariance = "diagonal"\n[features]\nx = { kind = "numeric" }\n')
    truth = np.diag(np.diagonal(TRUE_COV))
    fitted = fit_prior(joined(simulated(cov=truth), model), model.prior, np.zeros(2)).population
    assert fitted.is_diagonal
    np.testing.assert_allclose(fitted.cov, np.diagonal(TRUE_COV), atol=0.2)


def test_the_same_log_gives_the_same_prior() -> None:
    first, second = (fit_prior(joined(simulated(40), MODEL), MODEL.prior, np.zeros(2)) for _ in range(2))
    np.testing.assert_array_equal(first.population.cov, second.population.cov)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_e_step_is_the_joint_laplace_posterior(diagonal: bool) -> None:
    rng = np.random.default_rng(5)
    starts = np.array([0, 3, 3, 40, 41])
    X, offset = ((3 * rng.normal(size=size)).astype(np.float32).astype(float) for size in ((41, 3), 41))
    rows = Rows(X, (rng.random(41) < 0.5).astype(float), offset, rng.random(41), starts)
    root = rng.normal(size=(3, 3))
    cov = root @ root.T + np.eye(3)
    prior = Gaussian(rng.normal(size=3), np.diagonal(cov).copy() if diagonal else cov)
    batch = Gaussian(np.tile(prior.mean, (4, 1)), np.tile(prior.cov, (4,) + (1,) * prior.cov.ndim))
    expected = condition_microbatch(batch, *rows[:5])
    means, factors = laplace_posteriors(rows, prior)
    covs = [Belief(mean, factor).cov for mean, factor in zip(means, factors, strict=True)]
    np.testing.assert_allclose(means, expected.mean, atol=1e-8)
    np.testing.assert_allclose(covs, expected.cov, atol=1e-8)
    np.testing.assert_allclose(sum_of_covariances(factors, 3), expected.cov.sum(axis=0), atol=1e-8)


def test_the_fixed_effect_is_the_mode_that_another_optimiser_finds() -> None:
    outcomes = joined(simulated(50), MODEL)
    (rows,) = outcomes.chunks(np.zeros(2))

    def loss(b: np.ndarray) -> float:
        z = rows.X @ b
        return float(np.logaddexp(0, np.where(rows.y > 0, -z, z)).sum() + 0.5 * b @ b)

    expected = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    np.testing.assert_allclose(fit_fixed_effect(outcomes, flat(2)), expected, atol=1e-5)


def test_the_click_delay_is_recovered_from_clicks_censored_at_the_window_and_cut_by_the_logs_end() -> None:
    rng = np.random.default_rng(0)
    delay = np.exp(np.log(20_000) + 1.3 * rng.normal(size=40_000))
    horizon = rng.uniform(1_000, 600_000, size=40_000)
    seen = delay <= horizon
    fitted = fit_click_delay(delay[seen], horizon[seen], 60_000.0)
    assert fitted is not None
    assert fitted[0] == pytest.approx(20_000, rel=0.05)
    assert fitted[1] == pytest.approx(1.3, rel=0.05)


def test_clicks_at_the_time_of_their_impression_leave_no_delay_to_fit() -> None:
    assert fit_click_delay(np.ones(10), np.full(10, 1e6), 60_000.0) is None
    assert fit_click_delay(np.empty(0), np.empty(0), 60_000.0) is None


def test_scaling_is_told_in_the_features_own_unit() -> None:
    (mean, std) = feature_scaling(joined(simulated(), MODEL), MODEL)["x"]
    assert mean == pytest.approx(2.0, abs=0.1)
    assert std == pytest.approx(3.0, abs=0.1)


def test_a_click_counts_once_inside_the_window_and_repeats_are_one_outcome() -> None:
    rows = np.ones((2, 2), np.float32)
    one, two = outcome_key("r", "a"), outcome_key("r", "b")
    shown = Impression("u", 1000, [one, two], rows, np.zeros(2, np.float32), np.ones(2, np.float32))
    events: list[Event] = [Click("u", 900, one), shown, shown, Click("u", 61_001, two), Click("v", 1, one)]
    outcomes = joined(events, MODEL)
    assert sorted(rows_in(outcomes)["y"].tolist()) == [0.0, 1.0]
    assert sorted(outcomes.delay.tolist()) == [1.0, 60_001.0]
    assert outcomes.n_users == 1


def test_outcomes_are_sorted_by_user_and_time_and_a_share_ends_the_log() -> None:
    events = simulated(20, 3)[::-1]
    whole = joined(events, MODEL)
    assert whole.n_users == 20
    assert (np.diff(np.unique(rows_in(whole)["user"], return_index=True)[1]) == 3).all()
    times = rows_in(whole)["at"]
    assert sorted(times[::3].tolist()) == [1_000 * user for user in range(20)]
    assert (np.diff(times.reshape(20, 3)) == 0).all()
    half = joined(events, MODEL, until=0.5)
    assert half.n_users == 11
    assert half.end == int(rows_in(half)["at"].max()) == 10_000
    sample = joined(events, MODEL, share=0.5, seed=1)
    assert 0 < sample.n_users < 20


def test_outcomes_from_a_date_on_are_kept_and_earlier_ones_still_count_for_the_share() -> None:
    late = joined(simulated(20, 3), MODEL, since_ms=15_000)
    assert late.n_users == 5
    between = joined(simulated(20, 3), MODEL, since_ms=8_000, until=0.5)
    assert sorted(set(rows_in(between)["at"].tolist())) == [8_000, 9_000, 10_000]


def test_the_order_of_the_log_changes_no_outcome() -> None:
    events = simulated(20, 5)
    shuffled = [events[i] for i in np.random.default_rng(0).permutation(len(events))]
    first, second = (joined([*one, *one[:50]], MODEL) for one in (events, shuffled))
    assert first.n_users == second.n_users == 20
    assert rows_in(first).tobytes() == rows_in(second).tobytes()
    assert sorted(first.delay) == sorted(second.delay)


@pytest.mark.parametrize("until", [1.0, 0.6])
def test_what_is_dated_up_to_an_erasure_is_not_fitted_wherever_in_the_log_it_stands(until: float) -> None:
    events = simulated(20, 5)
    # u7 and u12 are erased behind all their events, u3 before all of them, u9 twice between two slates.
    erasures: list[Event] = [Erase("u7", 7_010), Erase("u12", 90_000), Erase("u3", 100)]
    slate = [event for event in events if event.user_id == "u9"]
    again: list[Event] = [
        event._replace(timestamp=event.timestamp + 500)
        if isinstance(event, Click)
        else event._replace(timestamp=event.timestamp + 500, keys=[key + 1 for key in event.keys])  # type: ignore[union-attr]
        for event in slate
    ]
    erasures += [Erase("u9", 9_200), Erase("u9", 9_100)]
    left = [event for event in events if event.user_id not in ("u7", "u12", "u9")] + again
    expected = joined(left, MODEL, until=until)
    for order in range(3):
        mixed = [*events, *again, *erasures]
        shuffled = [mixed[i] for i in np.random.default_rng(order).permutation(len(mixed))]
        found = joined(shuffled, MODEL, until=until)
        assert found.n_users == expected.n_users
        assert rows_in(found).tobytes() == rows_in(expected).tobytes()
        assert sorted(found.delay) == sorted(expected.delay)
    everybody = joined([*events, *(Erase(f"u{user}", 10**6) for user in range(20))], MODEL, until=until)
    assert len(everybody) == 0


def test_memory_does_not_grow_with_the_log() -> None:
    rows, none, ones = np.ones((50, 2), np.float32), np.full(50, np.nan, np.float32), np.ones(50, np.float32)

    def peak(n_slates: int) -> int:
        events = (
            Impression(f"u{k % 100}", k, [k * 50 + i for i in range(50)], rows, none, ones) for k in range(n_slates)
        )
        tracemalloc.start()
        outcomes = joined(events, MODEL, numbers=10_000)
        for _ in outcomes.chunks(np.zeros(2)):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(outcomes) == 50 * n_slates
        return found

    # Both of more events than are read and written at a time: pieces wait for one another in both, and how many do
    # at the peak differs by some MB with the threads' turns.
    peak(1)  # what is imported at its first use counts for neither
    small, large = peak(6_000), peak(16_000)
    # Half a million outcomes more; a table of them alone would be 20 MB.
    assert large - small < 5_000_000


def test_of_many_clicks_a_sample_of_delays_is_kept_that_does_not_depend_on_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = simulated(100, 20)
    whole = joined(events, MODEL)
    monkeypatch.setattr("learner.batch.click_delay.MAX_DELAYS", 200)
    sample = joined(events, MODEL)
    assert 50 < len(sample.delay) <= 200 < len(whole.delay)
    assert sorted(joined(events[::-1], MODEL).horizon) == sorted(sample.horizon)


def test_an_outcome_without_an_offset_has_the_fixed_effects_as_when_it_is_served() -> None:
    rows = np.array([[1, 2], [1, 3]], np.float32)
    offset = np.array([np.nan, 0.5], np.float32)
    outcomes = joined([Impression("u", 5, [2, 1], rows, offset, np.ones(2, np.float32))], MODEL)
    assert outcomes.n_offsets
    (one,) = outcomes.chunks(np.array([1.0, 10.0]))
    assert one.offset.tolist() == [0.5, 21.0]


def test_the_half_life_that_made_the_tastes_predicts_best_and_the_models_own_stays_where_nothing_tells() -> None:
    rng = np.random.default_rng(2)
    events: list[Event] = []
    hour = 3_600_000
    for user in range(20):
        theta = rng.normal(size=2)
        for k in range(60):
            keep = 2.0 ** (-1 / 6)
            theta = keep * theta + np.sqrt(1 - keep**2) * rng.normal(size=2)
            rows = np.column_stack([np.ones(4), 2 * rng.normal(size=4)]).astype(np.float32)
            keys = [outcome_key(f"{user}-{k}", str(i)) for i in range(4)]
            zeros = np.zeros(4, np.float32)
            events.append(Impression(f"u{user}", k * hour, keys, rows, zeros, zeros + 1))
            clicked = rng.random(4) < expit(rows @ theta)
            events += [Click(f"u{user}", k * hour + 1, key) for key, yes in zip(keys, clicked, strict=True) if yes]
    users = read_log(columns(MODEL, events), MODEL.window_ms)

    def losses(one: HalfLife) -> Losses:
        model = replace(MODEL, half_life_ms=one.ms, half_life_outcomes=one.outcomes)
        return Losses(*progressive_losses(model, users))

    six_hours, length = HalfLife(0.25 * DAY_MS), 60.0 * hour
    chosen, tried = fit_half_life(losses, HalfLife(), length)
    by_loss = dict(tried)
    assert {HalfLife(), six_hours, HalfLife(None, 300.0)} < by_loss.keys()
    assert HalfLife(180 * DAY_MS) not in by_loss  # of a log of two and a half days
    assert min((one for one in by_loss if one.outcomes is None), key=lambda one: by_loss[one].mean) == six_hours
    assert chosen.ms == six_hours.ms
    assert difference(by_loss[HalfLife()], by_loss[chosen]).is_clear
    # 18 minutes more tell nothing apart.
    own = HalfLife(6.3 * hour)
    assert fit_half_life(losses, own, length)[0] == own


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        outcomes = rng.integers(1, 40, size=60).astype(float)
        total = outcomes * (0.1 + 0.5 * rng.normal(size=60))
        found = difference(Losses(total, outcomes), Losses(np.zeros(60), outcomes))
        held += abs(found.value - 0.1) <= found.half_width
    assert 0.91 < held / 400 < 0.97


def sampled(
    log: Iterable[Microbatch], since_ms: int = 0, until_ms: int = 10**12, wanted: str = "", **bounds: Any
) -> Sample:
    with Duck(2) as tables:
        tables.read(log, lambda user_id: not wanted or user_id in wanted.split())
        return sample(tables, 2, since_ms, until_ms, **bounds)


def names(batch: Microbatch) -> set[str]:
    """Users of a sample by their names."""
    by_hash = {str(whose(f"u{i}")): f"u{i}" for i in range(60)}
    return {by_hash[user] for user in batch.user}


def test_a_sample_is_of_the_same_users_whatever_the_order_and_the_prior_of_the_others() -> None:
    events = simulated(60, 5)
    batch, below = sampled((columns(MODEL, [event]) for event in events), max_users=10)
    users = names(batch)
    assert users == set(sorted((f"u{i}" for i in range(60)), key=user_hash)[:10])
    assert users == {f"u{i}" for i in range(60) if user_hash(f"u{i}") < below}
    assert users == names(sampled((columns(MODEL, [event]) for event in events[::-1]), max_users=10).batch)
    others = joined((event for event in events if event.user_id not in users), MODEL)
    left = [rows.y for rows in joined(events, MODEL).between(below, 2**64).chunks(np.zeros(2))]
    np.testing.assert_array_equal(np.concatenate(left), rows_in(others)["y"])


def test_the_outcomes_between_hashes_are_those_of_their_users_and_none_is_in_two_ranges() -> None:
    outcomes = joined(simulated(60, 5), MODEL, numbers=100)
    cuts = [0, 1 << 62, user_hash("u7"), user_hash("u7") + 1, 1 << 64]
    parts = [
        [rows.X for rows in outcomes.between(first, end).chunks(np.zeros(2)) if len(rows.X)]
        for first, end in pairwise(sorted(cuts))
    ]
    whole = np.concatenate([rows.X for rows in outcomes.chunks(np.zeros(2))])
    np.testing.assert_array_equal(np.concatenate([X for part in parts for X in part]), whole)
    assert sum(map(len, parts[sorted(cuts).index(user_hash("u7"))])) == len(whole) // 60


def test_a_prior_that_only_chooses_is_of_a_bounded_part_of_the_users_that_are_not_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes, below = joined(simulated(200, 5), MODEL), 1 << 62
    others = np.concatenate([rows.y for rows in outcomes.between(below, 1 << 64).chunks(np.zeros(2))])

    def n_of_choice() -> int:
        return sum(len(rows.y) for rows in others_to_choose_by(outcomes, below).chunks(np.zeros(2)))

    assert n_of_choice() == len(others)
    monkeypatch.setattr(fit_choices, "MOST_OUTCOMES", 200)
    assert 100 < n_of_choice() < 300


def test_a_sample_has_all_events_of_its_users_as_the_log_has_them() -> None:
    events = simulated(20, 3)
    whole = columns(MODEL, events)
    batch = sampled([columns(MODEL, events[:13]), columns(MODEL, events[13:])], max_share=1.0).batch
    event, expected = batch.events.event, whole.events.event
    assert names(batch) == {f"u{i}" for i in range(20)}
    np.testing.assert_array_equal(item_places(event), item_places(expected))
    for field in ("kind", "at", "key", "item", "n_items"):
        np.testing.assert_array_equal(event[field], expected[field])
    for field in ("key", "item", "offset", "weight", "position"):
        np.testing.assert_array_equal(batch.events.item[field], whole.events.item[field])
    np.testing.assert_array_equal(batch.events.row, whole.events.row)


def test_the_sample_of_a_log_has_its_times_and_the_fixed_effect_where_an_offset_is_missing() -> None:
    log, wanted = [columns(MODEL, simulated(20, 3))], "u3 u7 u9 u12"
    whole = sampled(log, wanted=wanted).with_offsets(np.array([1.0, 10.0]))
    assert len(set(whole.user)) > 1
    item, row = whole.events.item, whole.events.row
    np.testing.assert_allclose(item["offset"], row @ [1.0, 10.0], rtol=1e-6)
    part = sampled(log, 4_000, 11_000, wanted).batch
    assert {user for user in names(whole) if 4 <= int(user[1:]) < 11} == names(part)


def test_the_sample_of_a_log_passes_over_what_is_dated_up_to_an_erasure_wherever_in_the_log_that_stands() -> None:
    events = simulated(20, 3)
    # u3 is erased behind all that it did, u7 before; u9 from the time on that is asked for, and behind its end.
    erasures: list[Event] = [Erase("u3", 3_010), Erase("u7", 6_999), Erase("u9", 20_000)]
    for log in ([*events, *erasures], [*erasures, *events]):
        batch = sampled((columns(MODEL, [event]) for event in log), 0, 15_000, "u3 u7 u9 u12").batch
        # As many as without them, since half of the users are for the prior.
        known = {user for user in ("u7", "u12") if user_hash(user) < 2**63}
        assert known
        assert names(batch) == known
        assert len(batch.user) == sum(event.user_id in known for event in events)


AT = 1_700_000_000_000


def an_event(**features: object) -> dict[str, object]:
    item = {"item_id": "a", "features": features}
    return {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT, "items": [item]}


CLICK = {"type": "click", "request_id": "r", "user_id": "u", "item_id": "a", "timestamp": AT + 4}


def test_lines_gzip_and_both_parquets_are_read_alike(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    lines = [json.dumps(one) for one in (an_event(x=3.0), CLICK)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    pq.write_table(pa.table({"value": lines}), tmp_path / "a.parquet")
    flat = {
        "user_id": ["u"],
        "request_id": ["r"],
        "item_id": ["a"],
        "timestamp": [AT],
        "clicked_at": [AT + 4],
        "x": [3.0],
    }
    pq.write_table(pa.table(flat), tmp_path / "b.parquet")
    read = [
        list(read_events([str(tmp_path / name)], MODEL)) for name in ("a.jsonl", "a.json.gz", "a.parquet", "b.parquet")
    ]
    assert all(n_events(one) == 2 for one in read)
    for one in read:
        outcomes = collected(one, MODEL)
        (row,) = rows_in(outcomes)
        assert row["y"] == 1.0
        np.testing.assert_allclose(row["row"], [1, 1 / 3], rtol=1e-6)
    assert n_events(read_events([str(tmp_path)], MODEL)) == 8


def test_a_log_that_does_not_fit_the_model_is_refused_naming_place_and_feature(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(an_event(x=1.0)) + "\n" + json.dumps(an_event(price=1.0)) + "\n")
    with pytest.raises(LogError, match=r"a\.jsonl:2: unknown_feature: .*price"):
        list(read_events([str(file)], MODEL))
    lines = [an_event(x=1.0), an_event(price=1.0, size=2), CLICK, an_event(price=2.0, colour="red")]
    file.write_text("\n".join(map(json.dumps, lines)))
    named = r"colour \(1 items\), price \(2 items\), size \(1 items\), which model 't' has not, and lacks x"
    with pytest.raises(LogError, match=named):
        list(read_events([str(file)], MODEL))
    flat = {"user_id": ["u"], "request_id": ["r"], "item_id": ["a"], "timestamp": [AT], "colour": [3.0]}
    pq.write_table(pa.table(flat), tmp_path / "b.parquet")
    with pytest.raises(LogError, match=r"columns colour are not features of model 't'"):
        list(read_events([str(tmp_path / "b.parquet")], MODEL))
