"""Events as the model of a target has them: what it learns from is in the place of clicks. Pure."""

from __future__ import annotations

import numpy as np

from learner.events.microbatch import BAD, CLICK, Microbatch
from learner.events.parsed import Parsed
from learner.events.wire import WireImpression
from learner.model.spec import Model


def of_target(parsed: Parsed, model: Model) -> Parsed:
    """Events, as any model has them that reads them alike, as the model of a target has them.

    Clicks are nobody's, and the events of its kind are clicks. Offsets are what stands for one that is missing, as
    those of items are of clicks; nothing is said of items' effects.
    """
    batch, rule = parsed.batch, model.declared.rule
    assert rule is not None, "a model of clicks takes them as they are"
    kind = rule.kind or model.specification.target
    event, item, user = batch.events.event.copy(), batch.events.item.copy(), list(batch.user)
    clicks = event["kind"] == CLICK
    event["kind"][clicks], event["item"][clicks] = BAD, 0
    for place in np.flatnonzero(clicks).tolist():
        user[place] = ""
    for place, one in batch.rewards.items():
        if one.kind == kind and (rule.above is None or (one.value is not None and one.value >= rule.above)):
            user[place], event["kind"][place] = one.user_id, CLICK
            event["value"][place] = 0.0 if model.declared.noise == 0.0 or one.value is None else one.value
    for name in ("item", "other_mean", "other_var"):
        item[name] = 0
    item["offset"] = model.offsets((), batch.events.row)
    told = [wire for wire in batch.told if isinstance(wire, WireImpression)]
    whole: Microbatch = batch._replace(
        user=user, events=batch.events._replace(event=event, item=item), rewards={}, told=told,
        without_offset=np.arange(len(item)),
    )  # fmt: skip
    return Parsed(whole, parsed.bad)
