"""What freshness would have been worth on a log: the same slates scored with what each way of learning knew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Gaussian, Method
from learner.evaluation.metrics import Bin, Estimate, Scored, reliability, share_of, summarise
from learner.evaluation.replay import (
    Available,
    Log,
    Replayed,
    fresh,
    frozen_at,
    joined_after,
    lagging,
    replay,
)
from learner.model.spec import Model

LAGS_MS = {"lag 1 h": 3_600_000.0, "lag 10 min": 600_000.0, "lag 1 min": 60_000.0}
# Outcomes shown to the user before: the borders of the classes of evidence.
EVIDENCE = (0, 1, 10, 50, 200)
NOMINAL = 0.9
FRESH = "fresh"


class Variant(NamedTuple):
    """One way of learning: a model, and when it gets each event (None: never)."""

    name: str
    model: Model
    available: Available | None


class Result(NamedTuple):
    """How one way of learning did.

    Attributes
    ----------
    name
        Of the variant.
    metrics, new, known
        Over all outcomes, and over those of users without and with a slate before the cut.
    by_evidence
        Over the outcomes of each class of evidence, by its name.
    bins
        The reliability table.
    coverage
        Share of slates whose number of clicks lies in the central 90 in 100 of its predictive distribution; NaN but for
        the fresh ones.
    """

    name: str
    metrics: dict[str, Estimate]
    new: dict[str, Estimate]
    known: dict[str, Estimate]
    by_evidence: dict[str, dict[str, Estimate]]
    bins: list[Bin]
    coverage: Estimate


def cut_at(log: Log, share: float) -> float:
    """The time before which that share of all outcomes was shown, epoch ms."""
    event = log.batch.events.event
    shown = np.repeat(event["at"], event["n_items"])
    return float(np.quantile(shown, share, method="higher")) if len(shown) and share > 0 else -np.inf


def variants(model: Model, cut_ms: float, everything: bool = True) -> list[Variant]:
    """The ways of learning to compare; the fixed effect alone is among them as a model without a belief."""
    # No coefficient moves: its variance is as small as a belief can hold.
    known = Gaussian(
        np.zeros_like(model.prior.mean), 1e-30 * (np.ones(model.d) if model.prior.is_diagonal else np.eye(model.d))
    )
    ways = [
        Variant("fixed effect", replace(model, prior=known), None),
        Variant("frozen prior", model, None),
        Variant("per user, frozen at the cut", model, frozen_at(cut_ms)),
        *(Variant(name, model, lagging(lag)) for name, lag in LAGS_MS.items()),
        Variant(FRESH, model, fresh),
    ]
    if not everything:
        return ways
    at_once = replace(model, click_delay=None)
    ways.append(Variant("joiner, after the window", at_once, joined_after(model.window_ms)))
    if model.click_delay is not None:
        ways.append(Variant("no at once, then flip", at_once, fresh))
    methods: tuple[Method, ...] = ("adf", "laplace")
    for method in methods:
        for diagonal in (False, True):
            other = with_covariance(replace(model, method=method), diagonal)
            if other is not None and (method, diagonal) != (model.method, model.prior.is_diagonal):
                ways.append(Variant(f"fresh, {method}, {'diagonal' if diagonal else 'full'}", other, fresh))
    return ways


def with_covariance(model: Model, diagonal: bool) -> Model | None:
    """The model with a prior of the other shape: a full one keeps its variances, a diagonal one gains no covariance."""
    mean, cov = model.prior
    if diagonal and not model.prior.is_diagonal:
        return replace(model, prior=Gaussian(mean, np.diagonal(cov).copy()))
    if not diagonal and model.prior.is_diagonal:
        return replace(model, prior=Gaussian(mean, np.diag(cov)))
    return model


def evaluate(
    log: Log,
    ways: Sequence[Variant],
    cut_ms: float,
    resamples: int = 200,
    seed: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> list[Result]:
    """Replay the log once for each way of learning, and measure the slates from the cut on.

    Parameters
    ----------
    cut_ms
        Slates before it are learnt from only. A user is new if none was shown to them before it.
    resamples, seed
        Of the bootstrap; the seed also draws the predictive distributions.
    advance
        Called with the number of slates scored.
    """
    new = np.array([not (history.at < cut_ms).any() for history in log.users], dtype=bool)
    results = []
    for way in ways:
        pit_seed = seed if way.name.startswith(FRESH) else None
        done = replay(way.model, log, way.available, cut_ms, pit_seed, advance)
        results.append(_result(way.name, done, new, resamples, seed))
    return results


def _result(name: str, done: Replayed, new: np.ndarray, resamples: int, seed: int) -> Result:
    scored, outside = done.scored, (1.0 - NOMINAL) / 2
    is_new = new[scored.user] if len(scored.user) else np.zeros(0, dtype=bool)
    classes = np.searchsorted(EVIDENCE, done.evidence, side="right") - 1
    names = [f"{low}" if low + 1 == high else f"{low} to {high - 1}" for low, high in pairwise(EVIDENCE)]
    names.append(f"{EVIDENCE[-1]} or more")

    def of(chosen: np.ndarray) -> dict[str, Estimate]:
        return summarise(Scored(*(column[chosen] for column in scored)), resamples, seed)

    return Result(
        name,
        summarise(scored, resamples, seed),
        of(is_new),
        of(~is_new),
        {label: of(classes == i) for i, label in enumerate(names) if (classes == i).any()},
        reliability(scored, resamples, seed),
        share_of(
            # Whose each slate is.
            scored.user[np.unique(scored.slate, return_index=True)[1]],
            (done.pit > outside) & (done.pit < 1 - outside),
            resamples,
            seed,
        ),
    )
