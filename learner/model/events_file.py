"""The keys of `[events]` in `model.toml`: where events of a foreign shape have what ours have."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from learner.limits import MAX_STRING_LENGTH

Path: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STRING_LENGTH)]
"""Names from the outside in, with points between them: ``ctx.uid``."""
TypeValue: TypeAlias = str | int | bool
"""What tells a type: what stands at `type` in an event of it."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all types have in common.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    timestamp
        The path of its time, if it is another than that of `events`.
    """

    when: TypeValue | list[TypeValue] | None = None
    timestamp: Path | None = None


class EventRule(Rule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What impressions and clicks have in common.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    user_id, timestamp, request_id
        Paths, if they are others than those of `events`.
    item_id
        The path of the item's id.
    """

    user_id: Path | None = None
    request_id: Path | None = None
    item_id: Path = "item_id"


class ImpressionRule(EventRule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an impression has what.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    user_id, timestamp, request_id
        Paths, if they are others than those of `events`.
    items
        The path of the list of items, in which the paths below begin; without, the event is an impression of one item.
    item_id
        The path of the item's id.
    features
        The path of the object that has the features by the model's names; or a table with a path for each feature whose
        name or place is another: the others are looked for in the item itself, as all are by default.
    context
        The same of the features of the context, which are looked for in the event.
    offset, weight, item_effect
        Paths; without, items have none.
    item_effects
        The path of the object that has the item's effects on targets, by their names, each a mean and a variance.
    position
        The path of the rank at which the item was shown; without, that is its place in the list.
    position_from
        The rank of the item at the top: 1, or 0.
    clicked
        The path of what says that the item was clicked, a boolean, 1 or 0, as a click at the time of the impression
        would. Then there need be no clicks beside it, and no `request_id`.
    """

    items: Path | None = None
    features: Path | dict[str, Path] = msgspec.field(default_factory=dict)
    context: Path | dict[str, Path] = msgspec.field(default_factory=dict)
    offset: Path | None = None
    weight: Path | None = None
    item_effect: Path | None = None
    item_effects: Path | None = None
    position: Path | None = None
    position_from: Literal[0, 1] = 1
    clicked: Path | None = None


class ClickRule(EventRule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a click has what.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    user_id, timestamp, request_id
        Paths, if they are others than those of `events`.
    item_id
        The path of the item's id.
    """


class RewardRule(ClickRule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an event of a kind that a target is of has what.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    user_id, timestamp, request_id
        Paths, if they are others than those of `events`.
    item_id
        The path of the item's id.
    value
        The path of the number that a target takes.
    """

    value: Path | None = None


class ItemRule(Rule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an event that says what the catalog is to have of an item has what.

    A record without a value in `FRESHET_ITEMS_TOPIC` removes the item of its key, mapped or not.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    timestamp
        The path of its time, if it is another than that of `events`: of several events of an item the latest counts.
    item_id
        The path of the item's id.
    features
        The path of the object that has the features `from = "catalog"` by the model's names; or a table with a path for
        each whose name or place is another: the others are looked for in the event itself, as all are by default.
    removed
        The path of what says that the item is gone, a boolean, 1 or 0.
    """

    item_id: Path = "item_id"
    features: Path | dict[str, Path] = msgspec.field(default_factory=dict)
    removed: Path | None = None


class EraseRule(Rule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where an event that wants a user to be forgotten has what. `POST /events` takes none: `DELETE /users/{id}` does.

    Attributes
    ----------
    when
        What `type` leads to in such an event, or a list of such.
    user_id, timestamp
        Paths, if they are others than those of `events`.
    """

    user_id: Path | None = None


class EventsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How events of a foreign shape are read; ours are still read beside them.

    A path is the names of the fields that lead to a value, from the outside in, with points between them: `ctx.uid`.
    Ids may be numbers, numbers may be text. A time is epoch seconds, milli-, micro- or nanoseconds, told apart by its
    size, or ISO 8601 with its zone. Fields that no path leads to are passed over.

    Attributes
    ----------
    within
        The path of the object that all other paths begin in: `payload` as Kafka Connect wraps values, `data` of
        CloudEvents; without, the event itself.
    type
        The path of what tells types apart, by their `when`; without, what has `items` is an impression, all else a
        click.
    other_types
        What is done with an event of none of them: it is refused, and goes to the dead letters; or passed over.
    user_id, timestamp, request_id
        Paths of what all types have.
    impression, click
        What each has beside that.
    item, erase
        The same of changes of the catalog, and of erasures of users; without, there are none of this shape.
    rewards
        The same of events of other kinds, by the kind that `[targets]` declares.
    """

    within: Path | None = None
    type: Path | None = None
    other_types: Literal["refuse", "ignore"] = "refuse"
    user_id: Path = "user_id"
    timestamp: Path = "timestamp"
    request_id: Path | None = None
    impression: ImpressionRule = ImpressionRule()
    click: ClickRule = ClickRule()
    item: ItemRule | None = None
    erase: EraseRule | None = None
    rewards: dict[str, RewardRule] = {}
