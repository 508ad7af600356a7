"""`python -m learner.compile`: compile all that is compiled, once, when an environment is built.

Machine code is kept beside the sources, for a generic processor; no later process waits for it.
"""

from __future__ import annotations

import time

import msgspec
import numpy as np

from learner.belief.gaussian import draw, predict
from learner.belief.laplace import posteriors
from learner.belief.update import predict_each
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.limits import MIN_TIMESTAMP_MS
from learner.model.spec import load_model
from learner.policy.chances import Categories, chances
from learner.policy.rank import keys_of
from learner.policy.rule import Rule
from learner.record import decode_record
from learner.record.items import read_items
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import by_item

_MODEL = """
name = "compiled"
half_life = "1d"
click_delay = { median = "10s", sigma = 1.0 }
[features]
x = { kind = "numeric" }
[effects.item]
"""


def compile_all() -> None:
    """Call each compiled function that Python code calls, with the types that it is called with."""
    model = load_model(_MODEL)
    ids = {"request_id": "r", "user_id": "u"}
    shown = impression_json("r", "u", MIN_TIMESTAMP_MS, [{"item_id": "a"}])
    clicked = msgspec.json.encode({"type": "click", **ids, "item_id": "b", "timestamp": MIN_TIMESTAMP_MS + 1})
    batch, _ = parse_events([shown, clicked], model)
    done = apply(model, [None], batch.events, by_user(batch))
    (value,) = done.values
    assert model.item is not None
    told = by_item(done.transitions)
    items = apply_to_items(model.item, [None], done.transitions, told)
    assert value is not None, "a first event is always learnt"
    belief = belief_at(model, decode_record(value, model, "u"), MIN_TIMESTAMP_MS + 2)
    mean, factor = model.prior_belief
    X, one = batch.events.row, np.ones(1)
    yes, starts = np.ones(1, np.bool_), np.array([0, 1])
    posteriors(mean, factor, X, yes, one.astype(np.float32), one, starts, mean[None].copy(), factor[None].copy())
    predict(belief, batch.events.row, batch.events.item["offset"])
    draw(belief, generator := np.random.default_rng(0))
    for rule in (Rule("thompson"), Rule("plackett-luce")):
        rows, places = np.repeat(X, 2, axis=0), np.arange(2)
        keys = keys_of(belief, rows, np.zeros(2), rule, generator, 2)
        chances(rule, keys, places)
        chances(rule._replace(max_per_category=1), keys, places, Categories(places, generator, True))
    assert (belief.variances > 0.0).all()
    of_items = read_items(model.item, items, told.user_ids)
    of_items.at(model.item, MIN_TIMESTAMP_MS).effects(model.item, X[: len(items)], MIN_TIMESTAMP_MS)
    settled = of_items.of(np.arange(len(items)))
    predict_each(settled.mean, settled.factor, model.item.of(X[: len(items)]), *np.empty((2, len(items))))


if __name__ == "__main__":
    started = time.monotonic()
    compile_all()
    print(f"compiled the learning step in {time.monotonic() - started:.0f} s")
