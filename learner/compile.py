"""`python -m learner.compile`: compile all that is compiled, once, when an environment is built.

Machine code is kept beside the sources, for a generic processor; no later process waits for it.
"""

from __future__ import annotations

import time

import numpy as np

from learner.belief.gaussian import draw, predict
from learner.events.parse import Click, Event, Impression
from learner.log.position import Partition, Position
from learner.model.spec import load_model
from learner.record import decode_record
from learner.record.served import belief_at
from learner.step.apply import apply, microbatch

_MODEL = """
name = "compiled"
half_life = "1d"
click_delay = { median = "10s", sigma = 1.0 }
[features]
x = { kind = "numeric" }
"""


def compile_all() -> None:
    """Call each compiled function that Python code calls, with the types that it is called with."""
    model = load_model(_MODEL)
    one = np.ones(1, np.float32)
    slate = Impression("u", 1, [1], np.ones((1, model.d), np.float32), one, one)
    place = Partition(bytes(16), 0)
    events: list[tuple[Event, Position]] = [(slate, Position(place, 0)), (Click("u", 2, 2), Position(place, 1))]
    (value,) = apply(model, [None], microbatch(model, [events]), ["u"]).values
    assert value is not None, "a first event is always learnt"
    belief = belief_at(model, decode_record(value, model, "u"), 2)
    predict(belief, slate.rows, slate.offset)
    draw(belief, np.random.default_rng(0))


if __name__ == "__main__":
    started = time.monotonic()
    compile_all()
    print(f"compiled the learning step in {time.monotonic() - started:.0f} s")
