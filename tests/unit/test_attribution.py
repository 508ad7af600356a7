"""The bookkeeping of all users at once, of some alone, and of one user and one outcome after another, are the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner.attribution import Attribution, _cheapest, attribute, unseen

from learner.events import Click, Event, Impression
from learner.model import Model, load_model
from learner.record import Partition, Position, Record, State, fresh_record, outcome_dtype
from tests.stepping import apply
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
MODELS = [
    load_model(SPEC.format(more))
    for more in ("", DELAY, f'half_life = "1m"\n{DELAY}', f"discount = 0.8\n{DELAY}", f'method = "laplace"\n{DELAY}')
]
LOGS = [Partition(b"t" * 16, 0), Partition(b"u" * 16, 1)]

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
    fresh, applied = unseen(records, events, counts := Counter())
    assert applied == [one.applied for one in expected]
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


def shown(at: int) -> Impression:
    return Impression("u", at, [at], np.ones((1, 2), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32))


@pytest.mark.parametrize("n_alone", [0, 1, 2])
def test_a_busy_users_outcomes_settle_and_are_forgotten_early_but_not_those_of_others(n_alone: int) -> None:
    model = MODELS[1]
    busy = [shown(i) for i in range(40)]
    found = attribute(model, [fresh_record(model)] * 2, [busy, busy[:1]], counts := Counter(), n_alone)
    assert found.outcomes["key"].tolist() == [*range(32, 40), 0]
    assert found.outcomes["state"].tolist() == 6 * [State.SETTLED] + 3 * [State.OPEN]
    assert counts["settled_early"] == 38
    assert counts["forgotten_early"] == 32


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
    counts = one_by_one.attribute(
        model, fresh_record(model), [(one, Position(LOGS[0], i)) for i, one in enumerate(log)]
    ).counts
    assert counts["repeated"] == is_repeat


@pytest.mark.parametrize(
    ("users", "n_alone"),
    [
        ([(1_000, 0)], 1),
        (1_000 * [(1, 0)], 0),
        (19 * [(1, 0)], 19),
        (3 * [(1, 50)], 3),
        (4 * [(1, 50)], 0),
        ([(100, 0)] + 200 * [(2, 0)], 1),
        ([(100, 0)] + 10 * [(2, 0)], 11),
        (10 * [(100, 0)] + 20 * [(30, 0)] + 200 * [(10, 0)], 10),
    ],
)
def test_those_go_alone_who_cost_less_than_the_waves_they_save(users: list[tuple[int, int]], n_alone: int) -> None:
    """Users as the numbers of their events and of their kept outcomes."""
    kept = {n: np.zeros(n, outcome_dtype(MODELS[0].d)) for _, n in users}
    records = [fresh_record(MODELS[0])._replace(outcomes=kept[n]) for _, n in users]
    assert _cheapest(records, [[shown(0)] * n for n, _ in users]) == n_alone


@pytest.mark.parametrize("model", MODELS)
def test_no_events_are_no_change(model: Model) -> None:
    records, report = apply(model, [fresh_record(model)] * 2, [[], []])
    assert report.changed == [False, False]
    assert [record.revision for record in records] == [0, 0]
