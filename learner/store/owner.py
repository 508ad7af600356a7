"""Whose a store is: one model, learnt by one consumer group. Another one that is pointed at it by mistake is told.

The learner of the group that started last says how it learns. Others that learn in another way are told, and go on: the
group's learners may be on their way from one setting to another.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from learner.model.duration import duration_text
from learner.model.effect import Effect, ItemEffect
from learner.model.file import TargetRule
from learner.model.position import examination_text
from learner.model.spec import Model
from learner.store import Store


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """A model's name, the consumer group that learns it, and how it learns: settings by their keys."""

    model: str
    group: str
    settings: dict[str, str] = {}


class WrongStore(ValueError):
    """The store has records of another model, or of another group."""


def owner_of(model: Model, group: str) -> Owner:
    """A group that learns a model; its settings are what the feature space does not say."""
    settings = {
        "method": model.method,
        "half_life": duration_text(model.half_life_ms) if model.half_life_ms else "none",
        "half_life in outcomes": str(model.half_life_outcomes),
        "discount": str(model.discount),
        "attribution_window": duration_text(model.window_ms),
        "max_ahead": duration_text(model.max_ahead_ms),
        "click_delay": "none",
        "max_open": str(model.max_open),
        "match_clicks": "item" if model.by_item else "request",
        "weights": model.specification.weights or "none",
        "events": "ours" if model.events is None else f"{crc32(msgspec.json.encode(model.events)):08x}",
        "unknown_features": "ignore" if model.ignore_unknown else "reject",
        "prior": model.population_fingerprint.hex(),
        "position.examination": examination_text(model.examination),
        "effects.user.max_age": _age(model),
        "effects.item": "none" if model.item is None else _items(model.item),
        "encoder": "none" if model.encoder is None else model.encoder.hash,
        "experiment": "none" if model.experiment is None else f"{model.experiment.name} {model.experiment.number:08x}",
    }
    if model.declared.rule is not None:
        settings["target"] = f"{crc32(msgspec.json.encode(_what(model.declared.rule))):08x}"
    if model.click_delay is not None:
        median, sigma = model.click_delay
        settings["click_delay"] = f"median {duration_text(median)}, sigma {sigma:g}"
    return Owner(model.name, group, settings)


def _what(rule: TargetRule) -> tuple[object, ...]:
    """What of a target its records depend on, beside what other settings say."""
    return rule.kind, rule.above, rule.noise


def _items(effect: ItemEffect) -> str:
    half_life = f"half_life {effect.half_life_ms} ms, {effect.half_life_outcomes} outcomes"
    features, prior = effect.fingerprint.hex(), effect.population_fingerprint.hex()
    return f"features {features}, prior {prior}, {half_life}, max_age {_age(effect)}"


def _age(effect: Effect) -> str:
    return "none" if effect.max_age_ms is None else duration_text(effect.max_age_ms)


def claim(store: Store, owner: Owner) -> Owner:
    """Make the store this owner's, if it is nobody's or was of the same model and group; returns whose it was.

    Raises
    ------
    WrongStore
        If it is somebody else's.
    StoreUnavailable
        As the store does.
    """
    claimed = msgspec.json.encode(owner)
    before = store.owner(claimed)
    held = _decoded(before)
    require_same(held, owner)
    if before != claimed:
        store.owner(claimed, instead_of=before or b"")
    return held


def others(store: Store, owner: Owner) -> str | None:
    """How the learner that started last learns otherwise than this one; None if it does not.

    A store that was emptied meanwhile is this owner's again.

    Raises
    ------
    WrongStore
        If the store has become somebody else's.
    StoreUnavailable
        As the store does.
    """
    held = _decoded(store.owner() or store.owner(msgspec.json.encode(owner)))
    require_same(held, owner)
    return difference(held, owner)


def difference(held: Owner, owner: Owner) -> str | None:
    """Which settings differ between two owners of a model and group; None if none do."""
    differing = [
        f"{name} = {held.settings[name]} there, {value} here"
        for name, value in owner.settings.items()
        if held.settings.get(name, value) != value
    ]
    return "; ".join(differing) or None


def trouble(store: Store, model: str) -> str | None:
    """Why a store is not one to score this model from; None if it is, or is nobody's yet."""
    held = owner_in(store)
    if held is None or held.model == model:
        return None
    return f"the store is of model {held.model!r}: expected one of {model!r}"


def owner_in(store: Store) -> Owner | None:
    """Whose a store is; None if it is nobody's yet."""
    value = store.owner()
    return None if value is None else _decoded(value)


def require_same(held: Owner, owner: Owner) -> None:
    """Raise `WrongStore` for an owner of another model or group."""
    if (held.model, held.group) != (owner.model, owner.group):
        raise WrongStore(
            f"the store is of model {held.model!r}, learnt by group {held.group!r}; this is model {owner.model!r}, "
            f"group {owner.group!r}: expected the same, or another key prefix or database; to take it over, stop "
            "its learners and delete its key <prefix>:owner (SQLite: the row in the table owner)"
        )


def _decoded(value: bytes | None) -> Owner:
    try:
        return msgspec.json.decode(value or b"", type=Owner)
    except msgspec.MsgspecError as exc:
        raise WrongStore("the store's owner cannot be read: expected a key that Freshet wrote") from exc
