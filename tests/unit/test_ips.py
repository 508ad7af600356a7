"""`weights = "ips"`: what an outcome weighs by the chance of its place."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from learner.events.ips import MOST_WEIGHT
from learner.events.parse import parse_events
from learner.model.spec import load_model
from learner.policy.chances import place_chances
from learner.policy.rank import Keys
from learner.policy.rule import Rule

TEXT = 'name = "t"\n{}\n[features.price]\nkind = "numeric"\n'
IPS, PLAIN = load_model(TEXT.format('weights = "ips"')), load_model(TEXT.format(""))
AT = 1_700_000_000_000


def shown(items: list[dict[str, Any]], candidates: int = 0, **more: Any) -> bytes:
    others = [{"item_id": f"c{i}", "features": {"price": 1.0}} for i in range(candidates)]
    event = {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT, "items": items, **more}
    return msgspec.json.encode({**event, "candidates": others} if others else event)


def item(name: str, propensity: float | None = None, **more: Any) -> dict[str, Any]:
    said = {} if propensity is None else {"propensity": [propensity, propensity]}
    return {"item_id": name, "features": {"price": 1.0}, **said, **more}


def weights(*raws: bytes, model: Any = IPS) -> list[float]:
    batch, bad = parse_events(raws, model)
    assert not bad
    return batch.events.item["weight"].tolist()  # type: ignore[no-any-return]


def test_an_outcome_weighs_the_more_the_less_likely_its_place_was() -> None:
    slate = shown([item("a", 0.5), item("b", 0.125), item("c", 1e-6)], candidates=5)
    assert weights(slate) == [1 / (8 * 0.5), 1 / (8 * 0.125), MOST_WEIGHT]


def test_weights_multiply_those_that_are_sent() -> None:
    assert weights(shown([item("a", 0.5, weight=3.0)])) == [6.0]


def test_without_a_propensity_and_without_ips_an_outcome_weighs_what_it_says() -> None:
    slate, other = shown([item("a", 0.01)]), shown([item("a"), item("b", weight=2.0)])
    assert weights(slate, model=PLAIN) == [1.0]
    assert weights(other, slate) == [1.0, 2.0, MOST_WEIGHT]


def test_items_at_a_place_weigh_together_what_they_would_in_a_random_order() -> None:
    generator = np.random.default_rng(1)
    log_weight = generator.normal(size=6)
    place = place_chances(Rule("plackett-luce"), Keys(np.zeros((1, 6), np.float32), log_weight), 3)
    slate = [shown([item("i", float(place[i, k]))], candidates=5) for k in range(3) for i in range(6)]
    expected = np.array(weights(*slate)).reshape(3, 6) * place.T
    np.testing.assert_allclose(expected, 1 / 6, rtol=1e-6)


def test_another_value_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weights = 'snips': expected 'ips'"):
        load_model(TEXT.format('weights = "snips"'))
