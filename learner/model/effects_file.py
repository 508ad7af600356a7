"""The keys of `[effects]` in `model.toml`: what is learnt of users, and of items."""

from __future__ import annotations

from typing import Annotated

import msgspec

from learner.belief.gaussian import Form
from learner.limits import MAX_FEATURES
from learner.model.kinds import Positive


class EarlierItemPrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is believed of an item nobody knows; its mean is 0.

    Attributes
    ----------
    variance
        Of every coefficient.
    intercept_variance
        Of the intercept; without, as of the others.
    """

    variance: Positive = 0.25
    intercept_variance: Positive | None = None


class ItemPrior(EarlierItemPrior, frozen=True, forbid_unknown_fields=True):
    """The prior of items in force, unless the `file` of the model's prior has one that `freshet fit` found.

    Attributes
    ----------
    variance
        Of every coefficient.
    intercept_variance
        Of the intercept; without, as of the others.
    earlier
        What stood here before, oldest first: records may still have been written under it.
    """

    earlier: list[EarlierItemPrior] = []


class ItemFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The effect of items: what each one's clicks say of it, beside what its features do.

    Attributes
    ----------
    features
        Which of the model's features it is on; the intercept always is.
    covariance
        Of an item's belief, as of a user's.
    half_life
        Time, or outcomes, in which an item's evidence loses half its pull on the mean; without, it is kept for ever.
    prior
        What is believed of an item nobody knows.
    max_age
        How long after its last event an item is dropped, by the store's clock: one that comes back begins from the
        prior. At least four attribution windows; without, `FRESHET_TTL_DAYS` says how long.
    """

    features: Annotated[list[str], msgspec.Meta(max_length=MAX_FEATURES)] = msgspec.field(
        default_factory=lambda: ["intercept"]
    )
    covariance: Form = "full"
    half_life: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] | None = None
    prior: ItemPrior = ItemPrior()
    max_age: str | None = None


class UserFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The effect of users, of which the rest stands at the top.

    Attributes
    ----------
    features
        Which of the model's features a user's belief is on; the intercept always is. Without, all of them. The fixed
        effect has all in any case, so that what is true of everybody alike need not be in every user's record.
    max_age
        How long after their last event a user is dropped, as of an item.
    """

    features: Annotated[list[str], msgspec.Meta(max_length=MAX_FEATURES)] | None = None
    max_age: str | None = None


class Effects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The effects that are learnt.

    Attributes
    ----------
    user
        That of users.
    item
        That of items; without, items are not learnt.
    """

    user: UserFile = UserFile()
    item: ItemFile | None = None
