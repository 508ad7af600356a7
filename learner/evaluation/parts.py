"""The replay of a log in parts, each of users of its own: one is in memory at a time, here or on a machine of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from learner.evaluation.compare import FRESH, Part, Result, Variant, extent, results
from learner.evaluation.history import Log, read_log
from learner.evaluation.replay import Replayed, replay
from learner.events.microbatch import Microbatch
from learner.model.spec import Model


def evaluate(
    logs: Iterable[Log], ways: Sequence[Variant], cut_ms: float, resamples: int = 200, seed: int = 0
) -> list[Result]:
    """Replay the parts of a log and measure the slates from the cut on; see `replay_part` and `results`."""
    parts = [replay_part(log, ways, cut_ms, seed + number) for number, log in enumerate(logs)]
    return results(parts, [way.name for way in ways], resamples, seed)


def replay_events(
    number: int,
    batch: Microbatch,
    advance: Callable[[int], object],
    model: Model,
    ways: Sequence[Variant],
    cut_ms: float,
    seed: int,
) -> Part:
    """The same as `replay_part` of a part's events, in the order of the log; the part's number is added to the seed."""
    return replay_part(read_log(batch, model.window_ms, model.by_item), ways, cut_ms, seed + number, advance)


def replay_part(
    log: Log, ways: Sequence[Variant], cut_ms: float, seed: int = 0, advance: Callable[[int], object] = lambda n: None
) -> Part:
    """Replay some users once for each way of learning.

    Parameters
    ----------
    cut_ms
        Slates before it are learnt from only.
    seed
        Draws the predictive distributions.
    advance
        Called with the number of slates scored.
    """
    done: list[Replayed] = []
    for way in ways:
        pit_seed = seed if way.name.startswith(FRESH) else None
        one = replay(way.model, log, way.available, cut_ms, pit_seed, advance, way.item_lag_ms, way.settled)
        if way.as_shown and way.model.examination is not None:
            position = log.batch.events.item["position"][one.place]
            e = np.array(way.model.examination)[np.minimum(position, len(way.model.examination) - 1)]
            one = one._replace(scored=one.scored._replace(p=one.scored.p * e), pit=np.empty(0))
        first = done[0] if done else one
        if np.array_equal(one.place, first.place):
            one = first._replace(scored=first.scored._replace(p=one.scored.p), pit=one.pit)
        done.append(one)
    is_new = np.array([not (history.at < cut_ms).any() for history in log.users], dtype=bool)
    kept = [one._replace(shown_at=np.empty(0, np.int64), place=np.empty(0, np.int64), items={}) for one in done]
    return Part(extent(log), extent(log, cut_ms), is_new, kept)
