"""The keys of `model.toml`, as they stand there."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from learner.limits import MAX_FEATURES
from learner.model.kinds import Feature, FeatureName, Positive


class ClickDelay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log-normal time from an impression to its click.

    Attributes
    ----------
    median
        Half of the clicks come within it.
    sigma
        The standard deviation of the delay's logarithm.
    """

    median: str
    sigma: Positive


class EarlierPrior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The population's belief: the same mean and variance for every coefficient, the intercept's apart if given.

    Attributes
    ----------
    mean, variance
        Of every coefficient.
    intercept_mean, intercept_variance
        Of the intercept; without, as of the others.
    """

    mean: float = 0.0
    variance: Positive = 1.0
    intercept_mean: float | None = None
    intercept_variance: Positive | None = None


class Prior(EarlierPrior, frozen=True, forbid_unknown_fields=True):
    """The prior in force: these numbers, or the `file` that `freshet fit` wrote.

    Attributes
    ----------
    mean, variance
        Of every coefficient.
    intercept_mean, intercept_variance
        Of the intercept; without, as of the others.
    file
        What `freshet fit` wrote, beside the specification; in the place of the numbers.
    earlier
        What stood here before, oldest first: records may still have been written under it.
    """

    file: str | None = None
    earlier: list[EarlierPrior] = []


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of `model.toml`.

    Attributes
    ----------
    name
        What the model is called, in answers and logs.
    features
        What items say of themselves.
    covariance
        Of a user's belief: between all coefficients, or of each alone, for hundreds of them.
    method
        How a label moves a belief: by the exact posterior's moments, or, as in the papers, by its mode and curvature.
    half_life
        Time, outcomes learnt, or a list of both, in which evidence loses half its pull on the mean; without, it is kept
        for ever.
    discount
        Share of the evidence that is kept per microbatch; in the place of `half_life`. Only for parity with the papers:
        on held-out logs it costs .0065 to .058 of log loss against a half-life.
    attribution_window
        How long after its impression a click still counts.
    max_ahead
        How long after it came in an event may be dated.
    click_delay
        How soon clicks come; without, an impression is a "no" until its click comes.
    unknown_features
        Whether an item with a feature that the model does not have is refused, or the feature passed over.
    max_open
        Open impressions kept per user; beyond, the oldest settle early.
    prior
        What is believed of a user nobody knows.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    features: Annotated[dict[FeatureName, Feature], msgspec.Meta(max_length=MAX_FEATURES)]
    covariance: Literal["full", "diagonal"] = "full"
    method: Literal["adf", "laplace"] = "adf"
    half_life: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] | None = None
    discount: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    attribution_window: str = "30m"
    max_ahead: str = "1h"
    click_delay: ClickDelay | None = None
    unknown_features: Literal["reject", "ignore"] = "reject"
    max_open: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    prior: Prior = Prior()
