"""What `freshet fit` learns of how likely ranks are looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from learner.batch.examination import MIN_CLICKS, Examined, examined, report
from learner.batch.fixed_effect import fit_fixed_effect, flat
from learner.belief.gaussian import Gaussian
from learner.events.microbatch import Microbatch
from learner.model.position import examination_text
from learner.model.spec import Model
from service.commands.fit_trial import trial_of
from service.progress import progress

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes

# It stops once no rank changes by more than this share: after two rounds, where the log has offsets.
ROUNDS, ENOUGH = 6, 0.01

Take = Callable[[Model], Microbatch]
"""The events of a sample of users, with the offsets that a model stands in with."""


def with_fixed_effect(
    model: Model, outcomes: Outcomes, advance: Callable[[int], object], before: Gaussian | None = None
) -> Model:
    """The model with the fixed effect of a log without offsets, where it is to stand in for them.

    `before` is what is known of it already.
    """
    if model.missing_offset != "fixed_effect" or outcomes.n_offsets:
        return model
    return replace(model, fixed_effect=fit_fixed_effect(outcomes, before or flat(model.width), advance))


def choose_examination(model: Model, outcomes: Outcomes, take: Take) -> Model:
    """The model with the examination that the log has, where it tells; the outcomes are then fitted with it.

    EM: each outcome of the sample is predicted before it is learnt, under the examination found so far; the clicks at
    each rank, by what was predicted of them, give the next. The prior is the model's own: what it gets wrong of all
    ranks alike leaves the ratio to the top as it is.
    """
    found = None
    for number in range(ROUNDS):
        outcomes.examination = model.examination
        with progress(f"examination, round {number + 1}", " outcomes") as bar:
            model = with_fixed_effect(model, outcomes, bar.update)
            trial = trial_of(take(model), model, len(outcomes))
            done = trial.replayed(model, bar.update)
        scored = done.scored
        position = trial.log.batch.events.item["position"][done.place]
        new = examined(position, scored.user, scored.slate, scored.y, scored.p)
        if new is None:
            print(f"examination: the model's is kept: expected at least {MIN_CLICKS} clicks at the top, and behind it")
            return model
        step = _step(model, new)
        found, model = new, replace(model, examination=new.by_rank())
        if step < ENOUGH:
            break
    outcomes.examination = model.examination
    assert found is not None
    print(
        f"examination: from {len(scored.y):,} outcomes of {len(np.unique(scored.user)):,} users, each "
        "predicted before it was learnt; 95 % intervals over users"
    )
    for line in report(found):
        print(line)
    return model


def say_in_force(own: Model, chosen: Model) -> None:
    """Say what the prior file puts in force."""
    now, was = examination_text(chosen.examination), examination_text(own.examination)
    print(f"position.examination = [{now}] is in force with this prior, in the place of the model's [{was}]")


def _step(model: Model, new: Examined) -> float:
    """By what share any rank has changed at the most."""
    e = np.array(new.by_rank())
    known = np.array(model.examination)
    before = known[np.minimum(np.arange(len(e)), len(known) - 1)]
    return float(np.abs(e / before - 1.0).max())
