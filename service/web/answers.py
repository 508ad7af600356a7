"""Beliefs and scores as the API tells them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Belief, Rows
from learner.model.effect import Effect, ItemEffect
from learner.model.fields import ItemEffects
from learner.model.spec import Model
from learner.model.targets import CLICK
from learner.policy.rank import Scores
from learner.record import NEVER, Record, State
from learner.record.served import belief_at
from service.web import api
from service.web.items import ScoredSlate
from service.web.outcomes import outcomes
from service.web.targets import ScoredTarget, weights_of


def describe_model(model: Model) -> api.ModelResponse:
    """The model as the API tells it."""
    return api.ModelResponse(
        name=model.name,
        fingerprint=model.fingerprint.hex(),
        covariance=model.prior.form,
        method=model.method,
        half_life_seconds=None if model.half_life_ms is None else model.half_life_ms / 1000,
        half_life_outcomes=model.half_life_outcomes,
        discount=model.discount,
        attribution_window_seconds=model.window_ms / 1000,
        missing_offset=model.missing_offset,
        mean_offset=model.mean_offset,
        features=msgspec.to_builtins(dict(model.features)),
        prior=coefficients(model, model.prior_belief),
        item_prior=None if model.item is None else coefficients(model.item, model.item.prior_belief),
        encoder=None
        if (one := model.encoder) is None
        else api.EncoderAnswer(one.hash, one.d, one.has_offset, [each.name for each in one.inputs]),
        targets=weights_of(model) if model.targets else None,
    )


def ranked_items(
    wanted: api.ScoreRequest,
    scores: Scores,
    model: Model,
    belief: Belief,
    rows: Rows,
    offset: Array,
    slate: ScoredSlate | None,
    known: Sequence[bool] | None,
    propensities: Sequence[tuple[float, float]] | None,
    fallback: bool,
    scored: Mapping[str, ScoredTarget],
    on_targets: Sequence[ItemEffects] | None,
) -> list[api.ScoredItem]:
    """The items, best first; with `fallback` no item's effect is in its log-odds.

    `known` says of each whether the catalog has it; None without one. `propensities` are of the first items as ranked;
    `scored` are the model's targets, on which `on_targets` has each item's effects.
    """
    score, mean, std = scores.score.tolist(), scores.logit_mean.tolist(), scores.logit_std.tolist()
    sampled = None if scores.sampled_logit is None else scores.sampled_logit.tolist()
    explain = None
    if wanted.explain:
        of_click = _explaining(model, belief, rows, offset, None if fallback else slate)
        parts = {
            name: _explaining(one.model, one.target.belief, rows, one.target.offset, one.target.items and one.slate)
            for name, one in scored.items()
        }
        explain = partial(_explanation, of_click, parts)
    targets = zip(*(one.tolist() for one in scores.expected), strict=True)
    each = [dict(zip((CLICK, *model.targets), one, strict=True)) for one in targets]
    pairs = None if slate is None else slate.effects.pairs()
    return [
        api.ScoredItem(
            wanted.items[i].item_id,
            rank,
            score[i],
            mean[i],
            std[i],
            None if sampled is None else sampled[i],
            None if explain is None else explain(i),
            None if pairs is None else pairs[i],
            None if slate is None else slate.n_events[i],
            None if known is None else known[i],
            None if propensities is None or rank > len(propensities) else propensities[rank - 1],
            each[i] if each else None,
            None if on_targets is None else on_targets[i],
        )
        for rank, i in enumerate(scores.order.tolist(), start=1)
    ]


Explain: TypeAlias = Callable[[int], api.Explanation]


def _explaining(model: Model, belief: Belief, rows: Rows, offset: Array, slate: ScoredSlate | None) -> Explain:
    """What says of each item the offset, and what each coefficient with a value adds, of the user and of the item."""
    deviations = np.sqrt(belief.variances)

    def explain(i: int) -> api.Explanation:
        of_item = None
        if slate is not None and model.item is not None:
            of_item = _parts(model.item, rows[i, list(model.item.columns)], *slate.coefficients(i))
        return api.Explanation(float(offset[i]), _parts(model, rows[i, : model.d], belief.mean, deviations), of_item)

    return explain


def _explanation(of_click: Explain, of_targets: Mapping[str, Explain], i: int) -> api.Explanation:
    """Of an item, the targets' beside the click's.

    As JSON already: those of a large slate are too much to be encoded at once, while nothing else can be done.
    """
    targets = {name: explain(i) for name, explain in of_targets.items()}
    explanation = msgspec.structs.replace(of_click(i), targets=targets or None)
    return cast(api.Explanation, msgspec.Raw(msgspec.json.encode(explanation)))


def _parts(effect: Effect, row: Rows, means: Array, deviations: Array) -> list[api.Contribution]:
    """What the coefficients with a value add, the strongest first."""
    used = np.flatnonzero(row)
    value = row[used].astype(np.float64)
    mean = value * means[used]
    order = np.argsort(-np.abs(mean), kind="stable")
    parts = zip(
        [effect.coefficients[j] for j in used[order].tolist()],
        value[order].tolist(),
        mean[order].tolist(),
        (np.abs(value) * deviations[used])[order].tolist(),
        strict=True,
    )
    return [api.Contribution(*part) for part in parts]


def posterior_of(user_id: str, record: Record, model: Model, now: int) -> api.PosteriorResponse:
    """The belief of a user, relaxed to a time (epoch ms)."""
    return api.PosteriorResponse(
        user_id=user_id,
        user_known=record.n_events > 0,
        model=model.name,
        posterior=state(record, now),
        coefficients=coefficients(model, belief_at(model, record, now)),
        open_impressions=int((record.outcomes["state"] == State.OPEN).sum()),
        waiting_clicks=len(record.clicks),
        outcomes=outcomes(record, model, now),
    )


def item_posterior_of(item_id: str, record: Record, effect: ItemEffect, now: int) -> api.ItemPosteriorResponse:
    """The belief of an item, relaxed to a time (epoch ms)."""
    return api.ItemPosteriorResponse(
        item_id=item_id,
        item_known=record.n_events > 0,
        model=effect.name,
        posterior=state(record, now),
        coefficients=coefficients(effect, belief_at(effect, record, now)),
        outcomes=outcomes(record, effect, now),
    )


def coefficients(effect: Effect, belief: Belief) -> list[api.Coefficient]:
    """Mean and standard deviation of each coefficient."""
    deviations = np.sqrt(belief.variances).tolist()
    return [api.Coefficient(*one) for one in zip(effect.coefficients, belief.mean.tolist(), deviations, strict=True)]


def state(record: Record, now: int) -> api.Posterior:
    """How far a record is."""
    if record.updated_at == NEVER:
        return api.Posterior(record.revision, record.n_events, None, None)
    return api.Posterior(
        record.revision, record.n_events, record.updated_at, max(0.0, (now - record.updated_at) / 1000)
    )
