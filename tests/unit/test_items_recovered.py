"""Where the truth is known: users and items that click by GLMix are both recovered, with honest uncertainty."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.special import expit

from learner.belief.gaussian import Array, click_probability, predict
from learner.events.microbatch import by_user
from learner.events.parse import item_key, parse_events
from learner.model.effect import Effect
from learner.model.spec import load_model
from learner.record import decode_record, fresh_record
from learner.record.items import effects_at, item_id, read_beliefs
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import by_item

USERS, ITEMS, SLATES, TOGETHER = 300, 300, 9_000, 60
USER_SD, ITEM_SD, LEVEL = 0.8, 0.9, -1.5
MODEL = load_model(
    f'name = "s"\n[prior]\nvariance = {USER_SD**2}\nintercept_mean = {LEVEL}\n[features]\nx = {{ kind = "numeric" }}\n'
    f"[effects.item]\n[effects.item.prior]\nvariance = {ITEM_SD**2}\n"
)
AT = 1_700_000_000_000


class Run(NamedTuple):
    """Labels and scores in the order of time, and the truth beside what is believed at the end."""

    y: Array
    both: Array
    users_only: Array
    users: Array
    items: Array


@pytest.fixture(scope="module")
def run() -> Run:
    rng = np.random.default_rng(11)
    theta = rng.normal([LEVEL, 0.0], USER_SD, (USERS, 2))
    gamma = rng.normal(0.0, ITEM_SD, ITEMS)
    popularity = 1.0 / np.arange(20, ITEMS + 20)
    popularity /= popularity.sum()
    effect = MODEL.item
    assert effect is not None
    users: dict[str, bytes | None] = {}
    items: dict[str, bytes | None] = {}
    labels, both, users_only = [], [], []
    for start in range(0, SLATES, TOGETHER):
        raws: list[bytes] = []
        # A user at most once, so that each slate is scored with all that was known.
        for i, user in enumerate(rng.choice(USERS, TOGETHER, replace=False).tolist()):
            shown, x = rng.choice(ITEMS, 6, replace=False, p=popularity), rng.normal(size=6)
            y = rng.random(6) < expit(theta[user, 0] + theta[user, 1] * x + gamma[shown])
            rows = MODEL.rows([{"x": float(one)} for one in x])
            names = [item_id(item_key(str(item))) for item in shown]
            beliefs, _ = read_beliefs(effect, [items.get(name) for name in names], names)
            mean, var = effects_at(effect, beliefs, rows, AT)
            value = users.get(str(user))
            record = fresh_record(MODEL) if value is None else decode_record(value, MODEL, str(user))
            mu, v = predict(belief_at(MODEL, record, AT), rows, np.zeros(6))
            labels.append(y)
            both.append(click_probability(mu + mean, v + var))
            users_only.append(click_probability(mu, v))
            about: dict[str, Any] = {"request_id": f"{start}-{i}", "user_id": str(user), "timestamp": AT + start}
            slate = [
                {"item_id": str(item), "features": {"x": float(one)}, "item_effect": effects}
                for item, one, *effects in zip(shown, x, mean, var, strict=True)
            ]
            clicks = [{"type": "click", **about, "item_id": str(item)} for item in shown[y]]
            raws += [json.dumps(one).encode() for one in [*clicks, {"type": "impression", **about, "items": slate}]]
        batch, bad = parse_events(raws, MODEL)
        assert not bad
        grouped = by_user(batch)
        done = apply(MODEL, [users.get(name) for name in grouped.user_ids], batch.events, grouped)
        users |= zip(grouped.user_ids, done.values, strict=True)
        of = by_item(done.transitions)
        stored = [items.get(name) for name in of.user_ids]
        items |= zip(of.user_ids, apply_to_items(effect, stored, done.transitions, of), strict=True)
    believed_users = [errors(MODEL, users.get(str(u)), theta[u]) for u in range(USERS)]
    believed_items = [errors(effect, items.get(item_id(item_key(str(i)))), gamma[i : i + 1]) for i in range(ITEMS)]
    return Run(
        np.concatenate(labels).astype(float), np.concatenate(both), np.concatenate(users_only),
        np.concatenate(believed_users), np.concatenate(believed_items),
    )  # fmt: skip


def errors(effect: Effect, value: bytes | None, truth: Array) -> Array:
    """How far the truth is from what is believed, in standard deviations."""
    record = fresh_record(effect) if value is None else decode_record(value, effect, "one")
    errors: Array = (truth - record.settled.mean) / np.sqrt(record.settled.variances)
    return errors


def loss(y: Array, p: Array) -> Array:
    losses: Array = -np.log(np.where(y > 0, p, 1 - p))
    return losses


def test_nine_of_ten_intervals_of_users_and_of_items_hold_the_truth(run: Run) -> None:
    for found in (run.users, run.items):
        assert 0.86 <= (np.abs(found) <= 1.645).mean() <= 0.94
        assert abs(found.mean()) < 0.25


def test_as_many_click_as_were_promised_also_of_what_is_likely_and_of_what_is_not(run: Run) -> None:
    assert run.both.sum() / run.y.sum() == pytest.approx(1.0, abs=0.03)
    order = np.argsort(run.both)
    for part in np.array_split(order, 5):
        assert run.both[part].sum() / run.y[part].sum() == pytest.approx(1.0, abs=0.1)


def test_items_are_worth_more_than_chance(run: Run) -> None:
    later = slice(len(run.y) // 2, None)
    gain = (loss(run.y, run.users_only) - loss(run.y, run.both))[later]
    assert gain.mean() > 10 * gain.std() / np.sqrt(len(gain))
