"""The bookkeeping of all users at once, of some alone, and of one user and one outcome after another, are the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.apply import apply
from learner.attribution import Attribution, attribute, unseen
from learner.events import Click, Event, Impression
from learner.model import Model, load_model
from learner.record import Partition, Position, Record, fresh_record
from tests.unit import one_by_one

SPEC = """
name = "t"
attribution_window = "1m"
max_open = 3
{}
[prior]
variance = 0.7
[features]
x = {{ kind = "numeric" }}
"""
DELAY = 'click_delay = { median = "10s", sigma = 0.6 }'
MODELS = [
    load_model(SPEC.format(more))
    for more in ("", DELAY, f'half_life = "1m"\n{DELAY}', f"discount = 0.8\n{DELAY}", f'method = "laplace"\n{DELAY}')
]
LOGS = [Partition(b"t" * 16, 0), Partition(b"u" * 16, 1)]

keys = st.integers(1, 9)
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
        ),
        times,
        st.lists(keys, min_size=1, max_size=4),
    ),
)
user = st.lists(st.tuples(event, st.integers(0, 1), st.integers(0, 30)), max_size=14)


def shuffled_in_time(events: list[tuple[Event, int, int]]) -> list[tuple[Event, Position]]:
    """Mostly in the order of time, as logs are; offsets sometimes come again."""
    in_order = sorted(events[::2], key=lambda one: one[0].timestamp) + events[1::2]
    return [(one, Position(LOGS[log], offset)) for one, log, offset in in_order]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MODELS), st.lists(user, min_size=1, max_size=4), st.integers(-1, 60_000), st.data())
def test_users_at_once_or_alone_are_what_each_is_one_outcome_after_another(
    model: Model, users: list[list[tuple[Event, int, int]]], erased_at: int, data: st.DataObject
) -> None:
    streams = [shuffled_in_time(one) for one in users]
    records = [fresh_record(model) for _ in users]
    records[0] = records[0]._replace(erased_at=erased_at)
    cut = data.draw(st.integers(0, 14))
    for part in (slice(0, cut), slice(cut, None)):
        events = [stream[part] for stream in streams]
        assert_same(model, records, events)
        records, _ = apply(model, records, events)


def assert_same(model: Model, records: list[Record], events: list[list[tuple[Event, Position]]]) -> None:
    """However many of the users, the busiest first, go alone."""
    order = sorted(range(len(records)), key=lambda i: -len(unseen(records, events, Counter())[0][i]))
    records, events = [records[i] for i in order], [events[i] for i in order]
    expected = [one_by_one.attribute(model, record, mine) for record, mine in zip(records, events, strict=True)]
    fresh, watermarks = unseen(records, events, counts := Counter())
    assert watermarks == [one.watermarks for one in expected]
    for n_alone in range(len(records) + 1):
        assert_found(attribute(model, records, fresh, found := Counter(counts), n_alone), expected)
        assert found == sum((one.counts for one in expected), Counter())


def assert_found(found: Attribution, expected: list[one_by_one.Attribution]) -> None:
    assert found.updated_at.tolist() == [one.updated_at for one in expected]
    assert found.n_events.tolist() == [one.n_events for one in expected]
    outcomes = [found.outcomes[start:end].tobytes() for start, end in pairwise(found.outcome_starts)]
    assert outcomes == [one.outcomes.tobytes() for one in expected]
    clicks = [found.clicks[start:end].tobytes() for start, end in pairwise(found.click_starts)]
    assert clicks == [one.clicks.tobytes() for one in expected]

    steps = [(i, step) for i, one in enumerate(expected) for step in one.steps]
    assert found.steps.user.tolist() == [i for i, _ in steps]
    for name in ("at", "offset", "weight", "label", "flips"):
        assert getattr(found.steps, name).tolist() == [getattr(step, name) for _, step in steps]
    assert found.steps.x.tolist() == [step.row.tolist() for _, step in steps]


def test_a_busy_user_costs_the_others_nothing_and_is_bounded() -> None:
    model = MODELS[1]
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    shown = [Impression("u", i, [i], np.ones((1, 2), np.float32), zero, one) for i in range(40)]
    busy: list[tuple[Event, Position]] = [(event, Position(LOGS[0], i)) for i, event in enumerate(shown)]
    (hot, quiet), report = apply(model, [fresh_record(model)] * 2, [busy, busy[:1]])
    assert len(hot.outcomes) == 4 * model.max_open
    assert len(quiet.outcomes) == 1
    assert report.counts["settled_early"] == 37
    assert report.counts["forgotten_early"] == 28


@pytest.mark.parametrize("model", MODELS)
def test_no_events_are_no_change(model: Model) -> None:
    records, report = apply(model, [fresh_record(model)] * 2, [[], []])
    assert report.changed == [False, False]
    assert [record.revision for record in records] == [0, 0]
