"""What freshness would have been worth on a log: the same slates scored with what each way of learning knew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Gaussian, Method
from learner.belief.population import marginal
from learner.evaluation.history import Available, Log, fresh, frozen_at, joined_after, lagging, slates_of
from learner.evaluation.metrics import Bin, Estimate, Metrics, Scored, measure, reliability, share_of
from learner.evaluation.replay import ITEM_LAG_MS, Replayed
from learner.events.microbatch import ends_of
from learner.limits import MAX_TIMESTAMP_MS
from learner.model.effect import independent
from learner.model.spec import Model

A_DAY = "lag 1 d"
LAGS_MS = {A_DAY: 86_400_000.0, "lag 1 h": 3_600_000.0, "lag 10 min": 600_000.0, "lag 1 min": 60_000.0}
ITEM_LAGS_MS = {"10 min late": 600_000.0, "1 h late": 3_600_000.0}
# The least number of outcomes shown before, of each age.
AGES = {"new": 0, "few": 1, "known": 50}
USER_AGE, ITEM_AGE = "outcomes shown to the user before", "outcomes shown of the item before"
NOMINAL = 0.9
# Of more coefficients full covariance is not tried where it is not the model's own.
MOST_IN_FULL = 64
AS_MEASURED = "fresh, as GET /quality"
FIXED_EFFECT, PRIOR, FROZEN, FRESH = "fixed effect", "frozen prior", "per user, frozen at the cut", "fresh"


class Variant(NamedTuple):
    """One way of learning: a model, when it gets each event (None: never), and how late items learn at the most.

    With `as_shown` an item is scored for where it was shown: times the examination of its rank. With `settled` what is
    due has settled; see `replay`.
    """

    name: str
    model: Model
    available: Available | None
    item_lag_ms: float = ITEM_LAG_MS
    as_shown: bool = False
    settled: bool = False


class Result(NamedTuple):
    """How one way of learning did.

    Attributes
    ----------
    name
        Of the variant.
    metrics
        Over all outcomes.
    parts
        The same of each class of outcomes, for each way of telling them apart (`classes_of`).
    bins
        The reliability table.
    coverage
        Share of slates whose number of clicks lies in the central 90 in 100 of its predictive distribution; NaN but for
        the fresh ones.
    """

    name: str
    metrics: Metrics
    parts: dict[str, dict[str, Metrics]]
    bins: list[Bin]
    coverage: Estimate


class Extent(NamedTuple):
    """What a log, or a part of it, holds.

    Attributes
    ----------
    first_ms, last_ms
        When its first and last slate were shown, epoch ms.
    users, slates, outcomes, clicks
        How many; clicks are those inside the window.
    unclicked, all_clicked
        Slates of one class: without a click, and with nothing but clicks. No order of them is wrong.
    """

    first_ms: int
    last_ms: int
    users: int
    slates: int
    outcomes: int
    clicks: int
    unclicked: int
    all_clicked: int

    def and_of(self, other: Extent) -> Extent:
        """That of two parts with different users."""
        first, last = min(self.first_ms, other.first_ms), max(self.last_ms, other.last_ms)
        return Extent(first, last, *(a + b for a, b in zip(self[2:], other[2:], strict=True)))


def extent(log: Log, start_ms: float = -np.inf) -> Extent:
    """What the slates shown from a time on hold."""
    if not log.users:
        return Extent(MAX_TIMESTAMP_MS, 0, 0, 0, 0, 0, 0, 0)
    at = np.concatenate([history.at for history in log.users])
    user = np.repeat(np.arange(len(log.users)), [len(history.at) for history in log.users])
    labels = [one for history in log.users for one in history.labels]
    size = np.array([len(one) for one in labels])
    clicks = np.bincount(np.repeat(np.arange(len(size)), size), np.concatenate(labels), len(size)).astype(np.int64)
    # A click has no items.
    is_shown = (size > 0) & (at >= start_ms)
    at, user, size, clicks = (column[is_shown] for column in (at, user, size, clicks))
    request = np.concatenate([log.batch.events.event["key"][history.places] for history in log.users])[is_shown]
    slate = slates_of(user, request)
    size, clicks = (np.bincount(slate, column).astype(np.int64) for column in (size, clicks))
    return Extent(
        int(at.min(initial=MAX_TIMESTAMP_MS)), int(at.max(initial=0)), len(np.unique(user)), len(size),
        int(size.sum()), int(clicks.sum()), int((clicks == 0).sum()), int((clicks == size).sum()),
    )  # fmt: skip


def cut_at(log: Log, share: float) -> float:
    """The time before which that share of all outcomes was shown, epoch ms."""
    event = log.batch.events.event
    shown = np.repeat(event["at"], event["n_items"])
    return float(np.quantile(shown, share, method="higher")) if len(shown) and share > 0 else -np.inf


def variants(model: Model, cut_ms: float, everything: bool = True) -> list[Variant]:
    """The ways of learning to compare; the fixed effect alone is among them as a model without a belief."""
    # No coefficient moves: its variance is as small as a belief can hold.
    known = independent(np.zeros(model.d), np.full(model.d, 1e-30), model.prior.n_dense)
    ways = [
        Variant(FIXED_EFFECT, replace(model, prior=known, item=None), None),
        Variant(PRIOR, model, None),
        Variant(FROZEN, model, frozen_at(cut_ms)),
        *(Variant(name, model, lagging(lag)) for name, lag in LAGS_MS.items()),
        Variant(FRESH, model, fresh),
    ]
    if model.item is not None:
        average = Gaussian(model.prior.mean, known.cov)
        ways += [
            Variant("fresh, user only", replace(model, item=None), fresh),
            Variant("fresh, item only", replace(model, prior=average), fresh),
            *(Variant(f"fresh, items {name}", model, fresh, lag) for name, lag in ITEM_LAGS_MS.items()),
        ]
    if model.examination is not None:
        ways.append(Variant("fresh, times examination", model, fresh, as_shown=True))
        ways.append(Variant("fresh, without examination", replace(model, examination=None), fresh))
    if not everything:
        return ways
    if model.click_delay is not None:
        ways.append(Variant(AS_MEASURED, model, fresh, settled=True))
    at_once = replace(model, click_delay=None)
    ways.append(Variant("joiner, after the window", at_once, joined_after(model.window_ms)))
    if model.click_delay is not None:
        ways.append(Variant("no at once, then flip", at_once, fresh))
    methods: tuple[Method, ...] = ("adf", "laplace")
    own = model.prior.form
    for method in methods:
        for form, n_dense in model.forms.items():
            # Columns stand in the order of a block only where that is the model's own form.
            soon_tried = form in (own, "diagonal") or (form == "full" and model.d <= MOST_IN_FULL)
            if soon_tried and (method, form) != (model.method, own):
                prior = marginal(model.prior, np.eye(model.d), n_dense)
                ways.append(Variant(f"fresh, {method}, {form}", replace(model, method=method, prior=prior), fresh))
    return ways


class Part(NamedTuple):
    """What is kept of a part of a log that was replayed.

    Attributes
    ----------
    whole, scored
        What it holds, and from the cut on.
    is_new
        Of each user, whether nothing was shown to them before the cut.
    ways
        For each way of learning what each scored outcome was; what is the same in all ways is there once.
    """

    whole: Extent
    scored: Extent
    is_new: NDArray[np.bool_]
    ways: list[Replayed]


def results(parts: Sequence[Part], names: Sequence[str], resamples: int = 200, seed: int = 0) -> list[Result]:
    """Measure the slates from the cut on.

    Parameters
    ----------
    parts
        Of a log, each of users of its own; with an effect of items one, since these know of all users. Of each scored
        outcome they have what it was, and 8 bytes for each way.
    names
        Of the ways of learning.
    resamples, seed
        Of the bootstrap.
    """
    is_new = np.concatenate([np.empty(0, np.bool_), *(part.is_new for part in parts)])
    sizes = [len(part.is_new) for part in parts]
    return [
        _result(name, _together([part.ways[i] for part in parts], sizes), is_new, resamples, seed)
        for i, name in enumerate(names)
    ]


def _together(parts: Sequence[Replayed], n_users: Sequence[int]) -> Replayed:
    """The parts of a log as one, of so many users each."""
    if len(parts) == 1:
        return parts[0]
    users = ends_of(n_users)
    slates = ends_of([int(part.scored.slate.max(initial=-1)) + 1 for part in parts])

    def column(of: Callable[[Replayed], Any], first: NDArray[np.int64] | None = None) -> Any:
        each = [of(part) if first is None else of(part) + first[i] for i, part in enumerate(parts)]
        return np.concatenate(each)

    scored = Scored(
        column(lambda one: one.scored.user, users),
        column(lambda one: one.scored.slate, slates),
        column(lambda one: one.scored.y),
        column(lambda one: one.scored.p),
    )
    return parts[0]._replace(scored=scored, evidence=column(lambda one: one.evidence), pit=column(lambda one: one.pit))


def classes_of(done: Replayed, is_new: NDArray[np.bool_]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Which outcomes are of which class, for each way of telling them apart.

    Classes are the same for all ways of learning, so that these can be compared inside each. Where one tears slates
    apart, order inside slates is that of the items of the class.
    """
    return {
        USER_AGE: by_age(done.evidence),
        **({} if done.item_evidence is None else {ITEM_AGE: by_age(done.item_evidence)}),
        "user at the cut": {"unknown": is_new[done.scored.user], "known": ~is_new[done.scored.user]},
    }


def by_age(shown_before: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """The classes of `AGES`, by how many outcomes were shown before each, of its user or its item."""
    borders = [*AGES.values(), np.inf]
    return {
        f"{name}: {low}" + ("" if high == low + 1 else " or more" if np.isinf(high) else f" to {high - 1}"): (
            (shown_before >= low) & (shown_before < high)
        )
        for name, (low, high) in zip(AGES, pairwise(borders), strict=True)
    }


def _result(name: str, done: Replayed, new: NDArray[np.bool_], resamples: int, seed: int) -> Result:
    scored, outside = done.scored, (1.0 - NOMINAL) / 2

    def of(chosen: NDArray[np.bool_]) -> Metrics:
        return measure(Scored._make(column[chosen] for column in scored), resamples, seed)

    return Result(
        name,
        measure(scored, resamples, seed),
        {
            way: {label: of(chosen) for label, chosen in classes.items() if chosen.any()}
            for way, classes in classes_of(done, new).items()
        },
        reliability(scored, resamples, seed),
        share_of(
            # Whose each slate is.
            scored.user[np.unique(scored.slate, return_index=True)[1]],
            (done.pit > outside) & (done.pit < 1 - outside),
            resamples,
            seed,
        ),
    )
