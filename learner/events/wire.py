"""The wire format: what producers send, and the reasons why an event is bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import msgspec

from learner.limits import MAX_EMBEDDING, MAX_ITEMS, MAX_NUMBER, UNREADABLE
from learner.model.encoder import EncoderHash
from learner.model.fields import Id, ItemEffects, Offset, Position, Timestamp, Variance, Weight
from learner.model.kinds import Features
from learner.model.targets import OURS

S = TypeVar("S", bound=msgspec.Struct)


class Reason(StrEnum):
    """Why an event is bad; the values are the dead letters' headers and the metrics' labels."""

    NOT_JSON = "not_json"
    UNKNOWN_TYPE = "unknown_type"
    BAD_FIELD = "bad_field"
    BAD_TIMESTAMP = "bad_timestamp"
    FROM_THE_FUTURE = "from_the_future"
    """Its timestamp is too far after it came in."""
    NON_FINITE_NUMBER = "non_finite_number"
    UNKNOWN_FEATURE = "unknown_feature"
    UNKNOWN_CATEGORY = "unknown_category"
    BAD_FEATURE = "bad_feature"
    MISSING_OFFSET = "missing_offset"
    """An item has no offset, and the model refuses such."""
    TOO_MANY_ITEMS = "too_many_items"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    TOO_DEEP = "too_deep"
    TOO_BUSY = "too_busy"
    """The user has had more slates in this minute than are learnt."""
    UNREADABLE = "unreadable"
    """The log's bytes cannot be read: there is nothing of the event but where it stands."""
    OTHER_ENCODER = "other_encoder"
    """The impression has the rows of another encoder, and not what this one would read."""
    DAMAGED_RECORD = "damaged_record"
    """The event is good; the record of its user is not."""
    FOREIGN_RECORD = "foreign_record"
    """The event is good; the record of its user is of another model or another release."""


class BadEvent(ValueError):
    """An event that can never be learnt from."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadEvent], tuple[Reason, str]]:
        """As it is sent from one process to another."""
        return type(self), (self.reason, str(self))


Chance: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]


class WireItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One shown item, as sent; without an `offset` it has what the model's `[offset]` says.

    `item_effect` is mean and variance of the item's effect on the log-odds as it was scored; without, the prior's.
    `item_effects` has the same of the item's effect on targets of the model, by their names; of a target that is a
    number it is in units of that. What it says of a target that the model does not have is passed over.
    `position` is the rank at which it was shown, 1 at the top; without, its place among the items. `clicked` says what
    a click at the time of its slate does. `propensity` has the two chances of `learner.policy.chances` with which it
    came to its place: whatever stands above it, and given what does.
    """

    item_id: Id
    features: Features = {}
    offset: Offset | None = None
    weight: Weight = 1.0
    item_effect: tuple[Offset, Variance] | None = None
    position: Position | None = None
    clicked: bool = False
    propensity: tuple[Chance, Chance] | None = None
    item_effects: ItemEffects | None = None


class Ranked(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a slate was ranked: what replays it exactly, together with the log up to the user's `n_events`-th event.

    `revision` is the stored record's; `prior` the fingerprint of the population; `at` the time (epoch ms) that the
    belief was relaxed to; `seed` of the draws, of a policy that has some; `alpha` the optimism, for ``ucb``; `fallback`
    says that it was by the fixed effect alone. `temperature` is that of ``plackett-luce``; `epsilon` and `explored` are
    how much was explored, and at how many places;
    `max_per_category` how many of a category were to be among these. `weights` is what each target counted.
    """

    policy: Id
    revision: int
    n_events: int
    prior: Id
    at: int
    seed: int | None = None
    alpha: float | None = None
    fallback: bool = False
    temperature: float | None = None
    epsilon: float | None = None
    explored: int | None = None
    max_per_category: int | None = None
    weights: dict[str, float] | None = None


_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


class WireEncoded(msgspec.Struct, frozen=True):
    """The rows that an encoder made of the items of a slate as they were scored, for learners to use as they are.

    `encoder` is the hash of the encoder's file. `rows` has for each item, in order, the numbers of its embedding, and
    behind them the offset of an encoder that makes one: float32, little-endian, in base64.
    """

    encoder: EncoderHash
    rows: Annotated[
        bytes,
        msgspec.Meta(max_length=4 * MAX_ITEMS * (MAX_EMBEDDING + 1), extra_json_schema={"pattern": _BASE64}),
    ]


class WireImpression(msgspec.Struct, frozen=True, tag_field="type", tag="impression", omit_defaults=True):
    """A slate that was shown to a user, as sent; `context` is of all items; learning takes no notice of `ranked`.

    `resolved` says that its items have the features they were scored with: nothing is looked up in the catalog.
    `candidates` are the items that were ranked and not shown: where the items have propensities, an evaluation of
    another policy wants to know what else could have been shown. Nothing is learnt of them.
    `arm` is the ``experiment/arm`` that the slate was ranked for, as `POST /score` answers it: clicks and log loss are
    counted by it. `encoded` are the encoded rows of the items; without, learners run the model's encoder.
    """

    request_id: Id
    user_id: Id
    timestamp: Timestamp
    items: Annotated[list[WireItem], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    ranked: Ranked | None = None
    context: Features = {}
    resolved: bool = False
    candidates: Annotated[list[WireItem], msgspec.Meta(max_length=MAX_ITEMS)] = []
    arm: Id | None = None
    encoded: WireEncoded | None = None


class WireClick(msgspec.Struct, frozen=True, tag_field="type", tag="click"):
    """A click on one item of a slate, as sent; it may lack the request where the model matches clicks by item.

    `reward` is what it is worth, to an evaluation of policies; learning takes no notice of it.
    """

    user_id: Id
    item_id: Id
    timestamp: Timestamp
    request_id: Id | None = None
    reward: Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = None


class WireReward(msgspec.Struct, frozen=True):
    """An event of a kind that `[targets]` of the model declares, about one item of a slate, as sent.

    Its `type` is that kind. `value` is what a target compares or learns, where it is one of a number. It may lack the
    request as a click may.
    """

    user_id: Id
    item_id: Id
    timestamp: Timestamp
    request_id: Id | None = None
    value: Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = None


class WireErase(msgspec.Struct, frozen=True, tag_field="type", tag="erase"):
    """A user is to be forgotten, and never to be learnt from events dated up to then; the service sends it."""

    user_id: Id
    timestamp: Timestamp


class WireEraseItem(msgspec.Struct, frozen=True, tag_field="type", tag="erase_item"):
    """An item is to begin again from its prior: what was shown up to then teaches it nothing; the service sends it."""

    item_id: Id
    timestamp: Timestamp


class WireCatalogItem(msgspec.Struct, frozen=True, tag_field="type", tag="item"):
    """What the catalog is to have of an item: all its features of the catalog; null, or an erasure, removes it.

    Of several events of an item that of the latest time counts, and of one time the last.
    """

    item_id: Id
    timestamp: Timestamp
    features: Features | None


Wire: TypeAlias = WireImpression | WireClick | WireReward | WireErase | WireEraseItem | WireCatalogItem


@lru_cache(maxsize=64)
def reward_of(kind: str) -> type[WireReward]:
    """The events of a kind: their `type` tells which."""
    made = msgspec.defstruct("Reward", [], bases=(WireReward,), tag_field="type", tag=kind, frozen=True)
    return cast(type[WireReward], made)


def kind_of(wire: WireReward) -> str:
    """The kind of an event that `reward_of` has decoded."""
    return str(type(wire).__struct_config__.tag)


def with_features(structs: tuple[type[msgspec.Struct], ...], slate: type[S], item: type[msgspec.Struct]) -> type[S]:
    """A kind of slate whose items have features, and which has a context, of the types of a model's `structs`."""
    features, context = structs
    one = msgspec.defstruct("Item", [("features", features, features())], bases=(item,), frozen=True, gc=False)
    items = Annotated[list[one], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]  # type: ignore[valid-type]
    fields: list[Any] = [("items", items), ("context", context, context())]
    if issubclass(slate, WireImpression):
        fields.append(("candidates", Annotated[list[one], msgspec.Meta(max_length=MAX_ITEMS)], []))  # type: ignore[valid-type]
    return cast(type[S], msgspec.defstruct("Slate", fields, bases=(slate,), frozen=True, kw_only=True))


def catalog_item(features: type[msgspec.Struct]) -> type[WireCatalogItem]:
    """The event of an item whose features are of the type of a model's `structs`."""
    fields = [("features", features | None)]
    kind = msgspec.defstruct("CatalogItem", fields, bases=(WireCatalogItem,), frozen=True)
    return cast(type[WireCatalogItem], kind)


def has_our_type(raw: bytes, has_catalog: bool, kinds: Sequence[str]) -> bool:
    """Whether an event says that it is of a type of ours, whatever else is wrong with it."""
    try:
        said = msgspec.json.decode(raw, type=_TypeOnly).type
    except UNREADABLE:
        return False
    return said in kinds or (said in OURS and (has_catalog or said != "item"))


class _TypeOnly(msgspec.Struct):
    type: str


def impression_json(
    request_id: str, user_id: str, timestamp: int, items: Sequence[Mapping[str, Any]], **more: Any
) -> bytes:
    """The bytes of an impression event, for those who produce one; `more` are fields that it may have."""
    event = {"type": "impression", "request_id": request_id, "user_id": user_id, "timestamp": timestamp, "items": items}
    return msgspec.json.encode(event | more)
