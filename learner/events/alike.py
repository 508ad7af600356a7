"""Events that several models read alike: read once, for all of them."""

from __future__ import annotations

from learner.events.parsed import Parsed
from learner.events.targets import of_target
from learner.model.effect import ItemEffect
from learner.model.spec import Model


def read_alike(one: Model, other: Model) -> bool:
    """Whether events make the same columns for two models, but for what stands for an offset that is missing.

    A catalog is each model's own: what it has of an item depends on how far that model is in the log. What is read for
    a target is read for it alone.
    """
    if one is other:
        return True
    if one.is_target or one.catalog is not None or other.catalog is not None:
        return False
    # Of clicks, and of what is said of items to their model, a target takes no notice.
    is_alike = other.is_target or _of_clicks(one) == _of_clicks(other)
    return is_alike and _how(one) == _how(other)


def _how(model: Model) -> tuple[object, ...]:
    """All that the columns of an event depend on, whatever is learnt."""
    are_numbers = {name: rule.noise is not None for name, rule in model.specification.targets.items()}
    return (
        list(model.features.items()), model.ignore_unknown, model.events, model.unframed, model.by_item,
        model.specification.weights, model.declared.kinds, model.declared.kinds_of_numbers, are_numbers,
        model.max_ahead_ms, model.item is None, model.examination is None, model.missing_offset == "refuse",
        model.experiment, model.encoder and (model.encoder.hash, model.encoder.inputs),
    )  # fmt: skip


def _of_clicks(model: Model) -> tuple[object, ...]:
    return model.click_delay is None, _of_items(model.item)


def _of_items(item: ItemEffect | None) -> object:
    """An item whose effect an event does not tell has the prior's."""
    return None if item is None else (item.fingerprint, item.population_fingerprint)


def as_read_for(parsed: Parsed, model: Model) -> Parsed:
    """Events as a model reads them, from what another has read that reads alike."""
    if model.is_target:
        return of_target(parsed, model)
    batch = parsed.batch
    its, events = batch.without_offset, batch.events
    if not len(its):
        return parsed
    item = events.item.copy()
    item["offset"][its] = (events.row[its] * model.stand_in).sum(axis=1)
    return parsed._replace(batch=batch._replace(events=events._replace(item=item)))
