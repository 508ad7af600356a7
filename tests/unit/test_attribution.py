"""What the compiled loop makes of events is what the plain oracle makes of them, one outcome after another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.belief import forget, laplace, update
from learner.belief.gaussian import Belief
from learner.belief.moments import no_weight
from learner.events.microbatch import ITEM, SWEEP
from learner.model.spec import Model, load_model
from learner.record import NEVER, Record, State, fresh_record
from learner.step.apply import apply as apply_to_bytes
from tests.stepping import EFFECTS, Click, Event, Impression, apply, microbatch
from tests.unit import one_by_one

SPEC = """
name = "t"
attribution_window = "1m"
max_open = 2
{}
[prior]
variance = 0.7
[features]
x = {{ kind = "numeric" }}
"""
DELAY = 'click_delay = { median = "10s", sigma = 0.6 }'
DIAGONAL = 'covariance = "diagonal"'
POSITION = "[position]\nexamination = [1.0, 0.5, 0.1]"
MODELS = [
    load_model(SPEC.format(more))
    for more in (
        "",
        DELAY,
        f'half_life = "1m"\n{DELAY}',
        f'half_life = "1m"\n{DIAGONAL}\n{DELAY}',
        f"discount = 0.8\n{DELAY}",
        f'method = "laplace"\nhalf_life = "1m"\n{DELAY}',
        f'half_life = "32 outcomes"\n{DELAY}',
        f'half_life = ["1m", "32 outcomes"]\n{DIAGONAL}\n{DELAY}',
        f'method = "laplace"\nhalf_life = ["1m", "32 outcomes"]\n{DELAY}',
        'match_clicks = "item"',
        f'match_clicks = "item"\nhalf_life = "1m"\n{DELAY}',
        f'match_clicks = "item"\nmethod = "laplace"\nhalf_life = "1m"\n{DELAY}',
        f'half_life = "1m"\n{DELAY}\n{POSITION}',
        f'method = "laplace"\n{DIAGONAL}\n{DELAY}\n{POSITION}',
    )
]
HALF_LIFE_MS, TICK_MS, OUTCOME_TICK = 60_000, 1_000, 2

keys = st.integers(1, 12)
times = st.integers(0, 150_000)
event = st.one_of(
    st.builds(lambda at, key: Click("u", at, key), times, keys),
    st.builds(
        lambda at, shown: Impression(
            "u",
            at,
            shown,
            np.array([[1.0, key] for key in shown], np.float32),
            np.array(shown, np.float32) / 7,
            np.array([key % 3 for key in shown], np.float32),
            np.array([(0, 0.0, 0.0, key % 4) for key in shown], ITEM[EFFECTS]),
        ),
        times,
        st.lists(keys, min_size=1, max_size=4),
    ),
)
user = st.lists(event, max_size=14)


def shuffled_in_time(events: list[Event]) -> list[Event]:
    """Mostly in the order of time, as logs are."""
    return sorted(events[::2], key=lambda one: one.timestamp) + events[1::2]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MODELS), st.lists(user, min_size=1, max_size=4), st.integers(-1, 60_000), st.data())
def test_each_user_is_what_the_oracle_makes_of_one_outcome_after_another(
    model: Model, users: list[list[Event]], erased_at: int, data: st.DataObject
) -> None:
    streams = [shuffled_in_time(one) for one in users]
    records = [fresh_record(model) for _ in users]
    records[0] = records[0]._replace(erased_at=erased_at)
    cut = data.draw(st.integers(0, 14))
    for part in (slice(0, cut), slice(cut, None)):
        events = [stream[part] for stream in streams]
        expected = [one_by_one.attribute(model, record, mine) for record, mine in zip(records, events, strict=True)]
        after, report = apply(model, records, events)
        assert report.counts == sum((one.counts for one in expected), Counter())
        for i, record in enumerate(after):
            assert_found(record, expected[i])
            assert_learnt(model, records[i], record, expected[i], events[i])
        records = after


def assert_found(found: Record, expected: one_by_one.Attribution) -> None:
    assert (found.updated_at, found.n_events) == (expected.updated_at, expected.n_events)
    assert found.clicks[["key", "clicked_at"]].tolist() == expected.clicks
    for name in ("key", "shown_at", "offset", "weight", "state"):
        assert found.outcomes[name].tolist() == [getattr(one, name) for one in expected.outcomes]
    assert found.rows.tolist() == [one.row for one in expected.outcomes]


def assert_learnt(
    model: Model,
    before: Record,
    after: Record,
    expected: one_by_one.Attribution,
    events: list[Event],
) -> None:
    """The same steps, called from here one at a time, leave the same bits: belief, sites and time."""
    rows = {
        int(one["key"]): (row, one["offset"], one["weight"])
        for one, row in zip(before.outcomes, before.rows, strict=True)
    }
    for one in events:
        if isinstance(one, Impression):
            # Rows of a key are the same whenever it is shown.
            rows |= {
                key: (one.rows[i], one.offset[i], one.weight[i]) for i, key in enumerate(one.keys) if key not in rows
            }
    learner = Learner(model, before)
    if model.discount is not None and any(one.timestamp > before.erased_at for one in events):
        learner.forget(model.discount)
    if model.method == "laplace":
        learner.learn_jointly(expected.steps, rows)
    else:
        for step in expected.steps:
            if isinstance(step, one_by_one.Relax):
                learner.show(step)
            else:
                learner.learn(step, *rows[step.key])
    np.testing.assert_array_equal(after.settled.mean, learner.belief.mean)
    np.testing.assert_array_equal(after.settled.factor, learner.belief.factor)
    assert (after.settled_at, after.n_learnt) == (learner.settled_at, learner.n_learnt)
    for one in after.outcomes:
        # One shown again after it was forgotten is open, without a site.
        is_settled = one["state"] == State.SETTLED
        site = learner.sites[int(one["key"]), int(one["shown_at"])] if is_settled else (0.0, 0.0)
        assert (one["precision"], one["shift"]) == site


class Learner:
    """Steps of a settled belief in float32."""

    def __init__(self, model: Model, record: Record) -> None:
        self.model = model
        self.belief = Belief(record.settled.mean.copy(), record.settled.factor.copy())
        self.settled_at = record.settled_at
        self.n_learnt = record.n_learnt
        # By key and time: an item may be shown several times.
        self.sites = {
            (int(one["key"]), int(one["shown_at"])): (one["precision"], one["shift"]) for one in record.outcomes
        }
        self.work = np.empty(model.d), np.empty(model.d)

    def fade(self, kept: float) -> None:
        self.sites = {
            key: (np.float32(float(precision) * kept), np.float32(float(shift) * kept))
            for key, (precision, shift) in self.sites.items()
        }

    def forget(self, discount: float) -> None:
        forget.discount(*self.belief, *self.model.prior_belief, discount)
        self.fade(discount)

    def relax(self, at: int) -> None:
        now = at // TICK_MS * TICK_MS
        if self.settled_at != NEVER and now <= self.settled_at:
            return
        if self.settled_at != NEVER and self.model.half_life_ms:
            kept = float(np.exp2(-(now - self.settled_at) / HALF_LIFE_MS))
            forget.relax(*self.belief, *self.model.prior_belief, kept)
            self.fade(kept * kept)
        self.settled_at = now

    def show(self, step: one_by_one.Relax) -> None:
        if self.settled_at != NEVER:
            self.relax(step.at)

    def relax_by_evidence(self, n: int) -> None:
        steps = (self.n_learnt + n) // OUTCOME_TICK - self.n_learnt // OUTCOME_TICK
        self.n_learnt += n
        if self.model.half_life_outcomes and steps:
            kept = (2.0 ** (-OUTCOME_TICK / self.model.half_life_outcomes)) ** steps
            forget.relax(*self.belief, *self.model.prior_belief, kept)
            self.fade(kept * kept)

    def take_back(self, step: one_by_one.Step, row: np.ndarray, offset: np.float32) -> None:
        precision, shift = self.sites.pop((step.key, step.shown_at), (np.float32(0), np.float32(0)))
        if precision > 0.0:
            update.retract(*self.belief, row, offset, precision, shift, *self.work)

    def weight(self, key: int, clicked: bool, row: np.ndarray, offset: np.float32, weight: np.float32) -> float:
        """A "no" weighs less as its item may not have been looked at, at a place that tests take from its key."""
        e = (self.model.examination or (1.0,))[: key % 4 + 1][-1]
        if clicked:
            return float(weight)
        mu, v = update.project(*self.belief, row, self.work[0])
        return float(weight) * no_weight(mu + float(offset), v, np.float32(e))

    def learn(self, step: one_by_one.Step, row: np.ndarray, offset: np.float32, weight: np.float32) -> None:
        self.relax(step.at)
        if step.late:
            self.take_back(step, row, offset)
        weight = self.weight(step.key, step.clicked, row, offset, weight)
        site = update.condition(*self.belief, row, step.clicked, offset, weight, False, *self.work)
        nothing = np.float32(0), np.float32(0)
        self.sites[step.key, step.shown_at] = nothing if step.clicked else tuple(map(np.float32, site))
        self.relax_by_evidence(not step.late)

    def learn_jointly(
        self, events: list[one_by_one.Step | one_by_one.Relax], rows: dict[int, tuple[np.ndarray, ...]]
    ) -> None:
        """The label that each outcome came to at last, all in one update."""
        labels: list[tuple[tuple[int, int], bool]] = []
        for step in events:
            if isinstance(step, one_by_one.Relax):
                self.show(step)
                continue
            of = step.key, step.shown_at
            if step.late and (of, False) in labels:
                labels[len(labels) - 1 - labels[::-1].index((of, False))] = of, True
            else:
                if step.late:
                    self.take_back(step, *rows[step.key][:2])
                labels.append((of, step.clicked))
        if not labels:
            return
        steps = [step for step in events if isinstance(step, one_by_one.Step)]
        self.relax(max(step.at for step in steps))
        row, offset, _ = (np.array(column) for column in zip(*(rows[key] for (key, _), _ in labels), strict=True))
        clicked = np.array([yes for _, yes in labels])
        weight = np.array([self.weight(key, yes, *rows[key]) for (key, _), yes in labels])
        precision, shift = np.empty(len(labels)), np.empty(len(labels))
        laplace.condition_jointly(*self.belief, row, clicked, offset, weight, precision, shift)
        for (of, yes), *site in zip(labels, precision, shift, strict=True):
            self.sites[of] = (np.float32(0), np.float32(0)) if yes else tuple(map(np.float32, site))
        self.relax_by_evidence(sum(not step.late for step in steps))


def shown(at: int) -> Impression:
    return Impression("u", at, [at], np.ones((1, 2), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32))


def test_a_busy_users_outcomes_settle_and_are_forgotten_early_but_not_those_of_others() -> None:
    model = MODELS[1]
    busy: list[Event] = [shown(i) for i in range(40)]
    (found, other), report = apply(model, [fresh_record(model)] * 2, [busy, busy[:1]])
    assert found.outcomes["key"].tolist() == [*range(32, 40)]
    assert other.outcomes["key"].tolist() == [0]
    assert found.outcomes["state"].tolist() == 6 * [State.SETTLED] + 2 * [State.OPEN]
    assert other.outcomes["state"].tolist() == [State.OPEN]
    assert report.counts["settled_early"] == 38
    assert report.counts["forgotten_early"] == 32


@pytest.mark.parametrize(("n_since", "is_repeat"), [(5, True), (6, False)])
def test_an_outcome_is_known_until_three_times_max_open_others_have_come(n_since: int, is_repeat: bool) -> None:
    """At worst: as many as may be are open, older than it, and stay while those that are closed are forgotten.

    No later one is ever open that would settle them: its click comes first.
    """
    model = MODELS[1]
    log: list[Event] = [shown(0), shown(1)]
    for at in range(2, 3 + n_since):
        log += [Click("u", at, at), shown(at)]
    log.append(Click("u", 50, 2))
    _, report = apply(model, [fresh_record(model)], [log])
    assert report.counts["repeated"] == is_repeat


def test_a_sweep_settles_what_is_due_and_is_written_only_if_something_is_forgotten() -> None:
    # Where nothing is measured: what is scored is written, see `test_quality`.
    model = replace(MODELS[1], quality=0.0)
    log: list[Event] = [shown(i) for i in range(2)]
    stored = apply_to_bytes(model, [None], *microbatch(model, [log])).values
    for at, is_written in ((1_000, False), (59_000, False), (70_000, True)):
        events, users = microbatch(model, [[shown(at)]])
        events.event["kind"], events.event["n_items"] = SWEEP, 0
        swept = apply_to_bytes(model, stored, events, users)
        assert (swept.values[0] is not None) == is_written
        assert swept.counts["outcomes"] == (2 if at > 1_000 else 0)


@pytest.mark.parametrize("model", MODELS)
def test_no_events_are_no_change(model: Model) -> None:
    records, report = apply(model, [fresh_record(model)] * 2, [[], []])
    assert report.changed == [False, False]
    assert [record.revision for record in records] == [0, 0]
