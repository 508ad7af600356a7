"""A click that names no request is of the latest showing of its item, to learners, `fit` and `evaluate` alike."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch.reading import read_events
from learner.evaluation.history import read_log
from learner.events.microbatch import Microbatch, by_user
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent
from learner.model.spec import load_model
from learner.step.apply import apply
from learner.step.feed import NO
from service.suggestion import suggest
from tests.outcomes import collected, rows_in
from tests.unit.test_suggestion import as_impressions_of_one_item, as_shop, shop

HEAD = 'name = "m"\nattribution_window = "1m"\nmax_open = 1000\nclick_delay = { median = "5s", sigma = 1.0 }\n'
FEATURES = '[features]\nx = { kind = "numeric" }\n'
BY_REQUEST = load_model(HEAD + FEATURES)
WITH_ITEMS = load_model(HEAD + FEATURES + "[effects.item]\n")  # they are told of each label
BY_ITEM = load_model(HEAD + 'match_clicks = "item"\n' + FEATURES)
AT = 1_700_000_000_000
CLICK: dict[str, Any] = {"type": "click", "user_id": "u", "item_id": "i"}


def shown(at: int, *items: str, user: str = "u") -> dict[str, Any]:
    its = [{"item_id": one, "features": {"x": 1.0}} for one in items]
    return {"type": "impression", "request_id": f"r{at}", "user_id": user, "timestamp": AT + at, "items": its}


def clicked(at: int, item: str = "i", user: str = "u") -> dict[str, Any]:
    return CLICK | {"timestamp": AT + at, "item_id": item, "user_id": user}


def parsed(events: list[dict[str, Any]]) -> Microbatch:
    batch, bad = parse_events([json.dumps(event).encode() for event in events], BY_ITEM)
    assert not bad
    return batch


ITEMS, USERS = st.sampled_from("ijk"), st.sampled_from("uv")
EVENTS = st.lists(
    st.one_of(
        st.builds(lambda at, items, user: shown(at, *items, user=user), st.integers(0, 200_000),
                  st.lists(ITEMS, min_size=1, max_size=3, unique=True), USERS),
        st.builds(clicked, st.integers(0, 200_000), ITEMS, USERS),
    ),
    max_size=25,
)  # fmt: skip


def labels_by_hand(events: list[dict[str, Any]]) -> dict[tuple[str, str, int], bool]:
    """Which showings are clicked, by user, item and time: by the events of each pair, in order of time."""
    showings: dict[tuple[str, str], list[int]] = {}
    for event in events:
        for item in event.get("items", []):
            showings.setdefault((event["user_id"], item["item_id"]), []).append(event["timestamp"])
    labels = {(*pair, at): False for pair, times in showings.items() for at in times}
    for event in events:
        if event["type"] == "click":
            pair = event["user_id"], event["item_id"]
            times = sorted(showings.get(pair, []))
            if (place := bisect_right(times, event["timestamp"])) and event["timestamp"] - times[place - 1] <= 60_000:
                labels[*pair, times[place - 1]] = True
    return labels


@settings(deadline=None)
@given(EVENTS)
def test_learner_fit_and_evaluate_give_each_showing_the_label_of_its_own_click(events: list[dict[str, Any]]) -> None:
    # Impressions before clicks of the same time; a learner reads the log in its order.
    events = sorted(events, key=lambda event: (event["timestamp"], event["type"] == "click"))
    expected, batch = labels_by_hand(events), parsed(events)
    outcomes = collected([batch], BY_ITEM)
    rows = rows_in(outcomes)
    assert sorted(rows["y"].tolist()) == sorted(map(float, expected.values()))
    assert sorted(rows["at"][rows["y"] == 1].tolist()) == sorted(at for (_, _, at), yes in expected.items() if yes)
    log = read_log(batch, BY_ITEM.window_ms, by_item=True)
    assert sum(labels.sum() for one in log.users for labels in one.labels) == sum(expected.values())
    users = by_user(batch)
    counts = apply(BY_ITEM, [None] * len(users.user_ids), batch.events, users).counts
    assert counts["clicks"] == sum(expected.values())


REQUESTS = st.integers(0, 8)


@settings(deadline=None)
@given(
    st.dictionaries(REQUESTS, st.integers(0, 300_000)),
    st.lists(st.tuples(REQUESTS, st.integers(0, 300_000), ITEMS), max_size=12),
)
def test_where_clicks_name_their_request_all_three_give_the_same_labels_however_early_or_late_they_are(
    slates: dict[int, int], clicks: list[tuple[int, int, str]]
) -> None:
    events = [shown(at, "i", "j") | {"request_id": f"r{request}"} for request, at in slates.items()]
    events += [clicked(at, item) | {"request_id": f"r{request}"} for request, at, item in clicks]
    events.sort(key=lambda event: (event["timestamp"], event["type"] == "click"))
    batch, bad = parse_events([json.dumps(event).encode() for event in events], WITH_ITEMS)
    assert not bad
    yes = {(r, item) for r, at, item in clicks if r in slates and item != "k" and abs(at - slates[r]) <= 60_000}
    assert rows_in(collected([batch], WITH_ITEMS))["y"].sum() == len(yes)
    log = read_log(batch, WITH_ITEMS.window_ms)
    assert sum(labels.sum() for one in log.users for labels in one.labels) == len(yes)
    users = by_user(batch)
    told = apply(WITH_ITEMS, [None] * len(users.user_ids), batch.events, users).transitions
    assert (told.row["kind"] != NO).sum() == len(yes)


@settings(deadline=None)
@given(EVENTS, st.data())
def test_fit_and_evaluate_do_not_depend_on_the_order_of_the_log(
    events: list[dict[str, Any]], data: st.DataObject
) -> None:
    found = []
    for log in (events, data.draw(st.permutations(events))):
        outcomes = collected([parsed(log)], BY_ITEM)
        rows = rows_in(outcomes)
        # Of two slates of one moment with an item in common, the one that the log has first has shown it.
        users = read_log(parsed(log), BY_ITEM.window_ms, by_item=True).users
        found.append((sorted(rows["y"].tolist()), sorted(y for one in users for labels in one.labels for y in labels)))
    assert found[0] == found[1]


def test_by_hand_the_latest_showing_gets_the_click_and_a_repeat_changes_nothing() -> None:
    events = [
        shown(0, "i", "j"),
        shown(30_000, "i"),
        shown(30_000, "i"),
        clicked(31_000),
        clicked(31_000),
        clicked(2_000),
    ]
    users = by_user(batch := parsed(events))
    counts = apply(BY_ITEM, [None], batch.events, users).counts
    # The click of second 31 is of the second showing; the one of second 2 of the first.
    assert (counts["clicks"], counts["repeated"], counts["impressions"]) == (2, 2, 2)
    assert rows_in(collected([batch], BY_ITEM))["y"].tolist() in ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0])


def test_a_click_that_comes_first_waits_for_a_showing_that_was_before_it() -> None:
    batch = parsed([clicked(5_000), shown(6_000, "i"), shown(4_000, "i")])
    applied = apply(BY_ITEM, [None], batch.events, by_user(batch))
    assert (applied.counts["waiting_clicks"], applied.counts["clicks"]) == (1, 0)
    labels = read_log(batch, BY_ITEM.window_ms, by_item=True).users[0].labels
    assert [one.tolist() for one in labels] == [[1.0], [], [0.0]]


def test_a_click_without_a_request_is_refused_where_the_model_goes_by_requests() -> None:
    raw = json.dumps(clicked(5_000)).encode()
    assert parse_event(raw, BY_ITEM).timestamp == AT + 5_000
    with pytest.raises(BadEvent, match=r"request_id: .*missing.*match_clicks = 'item'"):
        parse_event(raw, BY_REQUEST)
    assert list(parse_events([raw], BY_REQUEST).bad) == [0]


def without_request(event: dict[str, Any]) -> list[dict[str, Any]]:
    (one,) = as_shop(event)
    del one["ctx"]["sid"]
    return [one]


def of_one_item_without_request(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in one.items() if name != "requestId"} for one in as_impressions_of_one_item(event)
    ]


@pytest.mark.parametrize("shape", [without_request, of_one_item_without_request])
def test_foreign_clicks_without_a_request_find_the_item_they_are_of(shape: Any, tmp_path: Path) -> None:
    plain = shop(150)
    events = [one for event in plain for one in shape(event)]
    text = suggest(events, "x")
    assert 'match_clicks = "item"' in text
    assert "request_id" not in text
    model = load_model(text)
    (tmp_path / "log.ndjson").write_text("\n".join(map(json.dumps, events)))
    outcomes = collected(read_events([str(tmp_path / "log.ndjson")], model), model)
    rows = rows_in(outcomes)
    n_clicks = len({(event["request"], event["item"]) for event in plain if event["kind"] == "click"})
    assert len(rows) == sum(len({item["id"] for item in event.get("items", [])}) for event in plain)
    # But for one or two items that a user was shown twice in the window.
    assert abs(rows["y"].sum() - n_clicks) <= 2
    assert np.isfinite(rows["row"]).all()
