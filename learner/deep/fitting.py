"""An encoder from what was gathered of a log, beside what earlier logs have taught."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
import numpy as np

from learner.deep.export import to_onnx
from learner.deep.gather import Gathered
from learner.deep.increment import RIDGE, Anchor, blended, grown, nothing
from learner.deep.network import init
from learner.deep.state import Trained
from learner.deep.training import Options, State, begin, information, train

# Outcomes on which ONNX and JAX are compared.
_COMPARED = 512


class Before(NamedTuple):
    """What stands beside a log.

    Attributes
    ----------
    previous, cold
        What the logs before have taught; and a second anchor, which the first descends from.
    strength
        Lambda: how often what is known counts against the new outcomes, once each.
    keep
        How much of it is kept, where the world drifts.
    cold_weight
        How much of that is the second anchor's.
    ridge
        The precision of a weight of which nothing is known.
    """

    previous: Trained | None = None
    cold: Trained | None = None
    strength: float = 1.0
    keep: float = 1.0
    cold_weight: float = 0.5
    ridge: float = RIDGE

    def anchor(self, gathered: Gathered, strength: float) -> Anchor:
        """What is known beside the log, for the network that has its values too; never less than before any log."""
        of_cold = self.cold_weight if self.cold is not None else 0.0
        parts = [(nothing(gathered.network, self.ridge), max(0.0, 1.0 - strength * self.keep))]
        for one, share in ((self.previous, 1.0 - of_cold), (self.cold, of_cold)):
            if one is not None:
                parts.append((grown(one.anchor, gathered.network, self.ridge), strength * self.keep * share))
        return blended(parts) if self.previous is not None else nothing(gathered.network, self.ridge)


class Fitting(NamedTuple):
    """One training: what it starts from, and what tells it from others.

    Attributes
    ----------
    of
        The same for the same outcomes, options and start: what a checkpoint is of.
    """

    gathered: Gathered
    before: Before
    options: Options
    anchor: Anchor
    start: State
    of: str


def prepare(gathered: Gathered, before: Before, options: Options) -> Fitting:
    """What is to be trained."""
    anchor = before.anchor(gathered, before.strength)
    if before.previous is None:
        weights = init(gathered.network, np.random.default_rng(options.seed))
    else:
        weights = grown(before.previous.anchor, gathered.network, before.ridge).mean
    start = begin(gathered.network, weights, gathered.held_out)
    said = msgspec.json.encode(
        [gathered.network, options, gathered.learnt.fingerprint(), gathered.held_out.fingerprint()]
    )
    digest = sha256(said)
    for name in sorted(weights):
        for one in (weights, anchor.mean, anchor.precision):
            digest.update(np.ascontiguousarray(one[name]).tobytes())
    return Fitting(gathered, before, options, anchor, start, digest.hexdigest()[:16])


def run(fitting: Fitting, state: State, advance: Callable[[int], object], observe: Callable[[State], object]) -> State:
    """Train on from a state, the start or a checkpoint; `observe` is called with each epoch's."""
    gathered = fitting.gathered
    steps = train(
        gathered.network, gathered.learnt, gathered.held_out, fitting.anchor, fitting.options, state, advance
    )  # fmt: skip
    for state in steps:
        observe(state)
    return state


def finish(fitting: Fitting, state: State) -> tuple[bytes, Trained]:
    """The ONNX file, and what the next log is learnt beside.

    Raises
    ------
    ExportError
        If ONNX Runtime computes something else than JAX.
    """
    gathered = fitting.gathered
    known = fitting.before.anchor(gathered, 1.0).precision
    found = information(state.best, gathered.network, gathered.learnt)
    weights, precision = state.best, {name: known[name] + found[name] for name in known}
    n = min(-(-_COMPARED // gathered.learnt.length), len(gathered.learnt))
    examples: Any = gathered.learnt.batch(np.linspace(0, len(gathered.learnt) - 1, n).astype(np.intp), n).inputs
    previous = fitting.before.previous
    with_offset = not gathered.outcomes.n_offsets
    data = to_onnx(weights, gathered.network, gathered.vocabulary, examples, with_offset)
    seen = gathered.learnt.n_outcomes + (0 if previous is None else previous.outcomes)
    encoder = sha256(data).hexdigest()[:16]
    anchor = Anchor(weights, precision)
    return data, Trained(gathered.network, anchor, gathered.vocabulary, seen, encoder, with_offset)
