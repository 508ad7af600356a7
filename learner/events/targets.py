"""Events as the model of a target has them: what it learns from is in the place of clicks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.events.microbatch import BAD, CLICK, Microbatch
from learner.events.parsed import Parsed
from learner.events.wire import WireImpression
from learner.limits import MAX_OFFSET
from learner.model.fields import MAX_VARIANCE, ItemEffects
from learner.model.kinds import ItemError
from learner.model.spec import Model


def of_target(parsed: Parsed, model: Model) -> Parsed:
    """Events, as any model has them that reads them alike, as the model of a target has them.

    Clicks are nobody's, and the events of its kind are clicks. Offsets are what stands for one that is missing, as
    those of items are of clicks; the effects of items are those on this target.
    """
    batch, rule = parsed.batch, model.declared.rule
    assert rule is not None, "a model of clicks takes them as they are"
    target = model.specification.target
    event, item, user = batch.events.event.copy(), batch.events.item.copy(), list(batch.user)
    clicks = event["kind"] == CLICK
    event["kind"][clicks], event["item"][clicks] = BAD, 0
    for place in np.flatnonzero(clicks).tolist():
        user[place] = ""
    for place, one in batch.rewards.items():
        if one.kind == (rule.kind or target) and (
            rule.above is None or (one.value is not None and one.value >= rule.above)
        ):
            user[place], event["kind"][place] = one.user_id, CLICK
            event["value"][place] = 0.0 if model.declared.noise == 0.0 or one.value is None else one.value
    item["offset"] = model.offsets((), batch.events.row)
    if model.item is not None:
        given = [one.get(target) for one in batch.item_effects] or [None] * len(item)
        item["other_mean"], item["other_var"] = model.item.as_scored(given, batch.events.row)
    told = [wire for wire in batch.told if isinstance(wire, WireImpression)]
    whole: Microbatch = batch._replace(
        user=user, events=batch.events._replace(event=event, item=item), rewards={}, told=told,
        without_offset=np.arange(len(item)), item_effects=(),
    )  # fmt: skip
    return Parsed(whole, parsed.bad)


def check_item_effects(effects: Sequence[ItemEffects], model: Model) -> None:
    """See that what items say of their effects on log-odds are log-odds: only a number may be of any size.

    Raises
    ------
    ItemError
        If an item says more.
    """
    if model.item is None or not any(effects):
        return
    of_log_odds = [name for name, rule in model.specification.targets.items() if rule.noise is None]
    for i, one in enumerate(effects):
        for name in of_log_odds:
            if (pair := one.get(name)) is not None and not (abs(pair[0]) <= MAX_OFFSET and pair[1] <= MAX_VARIANCE):
                field = f"items[{i}].item_effects.{name}"
                expected = f"a mean within {MAX_OFFSET} of 0, and a variance of at most {MAX_VARIANCE:g}"
                raise ItemError("bad_field", field, f"{field}: expected of log-odds {expected}")
