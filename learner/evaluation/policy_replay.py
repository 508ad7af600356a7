"""Another policy in a replay of users whose slates say with what chance they were shown: its weights. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, click_probability, predict
from learner.evaluation.history import History, Log
from learner.evaluation.items import ReplayedItems
from learner.evaluation.replay import Asked, replay
from learner.events.keys import item_keys, outcome_keys
from learner.events.wire import WireClick, WireImpression, WireItem
from learner.model.design import Shown
from learner.model.encoded_rows import encode, with_encoded_offsets
from learner.model.kinds import ItemError
from learner.model.spec import Model
from learner.policy.chances import DRAWS, Categories, chances, place_chances
from learner.policy.combined import ItemEffects
from learner.policy.rank import keys_of
from learner.policy.rule import Rule


class WeighedSlate(NamedTuple):
    """One slate, by its places: as `Weighed`."""

    user: str
    reward: Array
    at_place: Array
    down_to: Array
    q: Array
    promised: float


class WeighedPart(NamedTuple):
    """What is kept of some users' slates: of each its places, with q and promises of a click.

    Attributes
    ----------
    slates
        Those that are weighed, each user's in order.
    n, unsaid, unsupported, impossible
        As of `Slates`.
    clicks, earned
        The sums of clicks, and of what was earned, of all slates.
    """

    slates: list[WeighedSlate]
    n: int
    unsaid: int
    unsupported: int
    impossible: int
    clicks: float
    earned: float


def weigh_part(
    model: Model,
    log: Log,
    rule: Rule,
    reward: str = "clicks",
    top: int | None = None,
    score_from_ms: float = -np.inf,
    seed: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> WeighedPart:
    """Replay some users, and weigh each slate by what a policy would have done by the model's posterior at that moment.

    Parameters
    ----------
    rule
        The target.
    reward
        What is earned: ``clicks``, or ``reward``, what clicks say that they are worth.
    top
        Only the first so many places count; None for all.
    score_from_ms
        Slates before it are learnt from only.
    seed
        Of the draws of a target that has some, 256 a slate: each slate has its own.
    """
    target = _Target(model, log, rule, reward, top, seed)
    replay(model, log, score_from_ms=score_from_ms, advance=advance, asked=Asked(target.items, target.tell))
    return WeighedPart(
        target.found, target.n, target.unsaid, target.unsupported, target.impossible, target.clicks, target.earned
    )


class _Target:
    """A policy that is told of each slate of a replay."""

    def __init__(self, model: Model, log: Log, rule: Rule, reward: str, top: int | None, seed: int) -> None:
        self._model, self._log, self._rule, self._top, self._seed = model, log, rule, top, seed
        self._shown, self._worth_of = _told(model, log)
        self._owner = {int(place): (u, n) for u, one in enumerate(log.users) for n, place in enumerate(one.places)}
        self._rewards = [one.labels for one in log.users]
        self.clicks = self.earned = sum(float(label.sum()) for labels in self._rewards for label in labels)
        if reward != "clicks":
            self._rewards = [self._earned(log, history) for history in log.users]
            self.earned = sum(float(one.sum()) for mine in self._rewards for one in mine)
        self.items = item_keys([one.item_id for wire in self._shown.values() for one in wire.candidates])
        self.found: list[WeighedSlate] = []
        self.n = self.unsaid = self.unsupported = self.impossible = 0

    def tell(self, place: int, belief: Belief, now: int, items: ReplayedItems | None) -> None:
        """See `Asked`."""
        self.n += 1
        wire = self._shown.get(place)
        if wire is None:
            self.unsaid += 1
            return
        by_place = _by_place(wire.items)[: self._top]
        logged = np.array([wire.items[i].propensity for i in by_place])
        if not (logged > 0.0).all():
            self.unsupported += 1
            return
        # In an order that does not tell what was shown: of items that are alike the first is ranked first.
        candidates = [*wire.items, *wire.candidates]
        order = sorted(range(len(candidates)), key=lambda i: candidates[i].item_id)
        shown = np.argsort(order)[by_place]
        candidates = [candidates[i] for i in order]
        request = Shown([len(candidates)], [wire.timestamp], [wire.context])
        try:
            features = [one.features for one in candidates]
            encoded = encode(self._model, (one.item_id for one in candidates), features, request)
            rows = self._model.rows(features, request, encoded)
            given = with_encoded_offsets(self._model, [one.offset for one in candidates], encoded)
            offset = self._model.offsets(given, rows).astype(np.float64)
        except ItemError:
            # Candidates that are not the model's, which no learner looks at: it says as little as without propensities.
            self.unsaid += 1
            return
        mean, var = predict(belief, rows, offset)
        effects = None
        if items is not None:
            keys = item_keys([one.item_id for one in candidates])
            effects = ItemEffects(*items.effects(keys, rows, now), None)
            mean, var = mean + effects.mean, var + effects.var
        generator = self._draws(place)
        ranked_by = keys_of(belief, rows, offset, self._rule, generator, DRAWS, effects)
        some = None
        if self._model.categories is not None:
            some = Categories(self._model.categories.of(rows), generator, served=False)
        mine = chances(self._rule, ranked_by, shown, some)
        promised = click_probability(mean, var)[:, None] * self._examined(len(shown))
        self.impossible += bool(mine.at_place[0] == 0.0)
        user, number = self._owner[place]
        self.found.append(
            WeighedSlate(
                self._log.batch.user[place],
                self._rewards[user][number][by_place],
                mine.at_place / logged[:, 0],
                np.cumprod(mine.given_above / logged[:, 1]),
                promised[shown, range(len(shown))],
                float((place_chances(self._rule, ranked_by, len(shown), some) * promised).sum()),
            )
        )

    def _draws(self, place: int) -> np.random.Generator:
        """Of the slate at a place, whatever was drawn for others."""
        event, item = self._log.batch.events.event, self._log.batch.events.item
        key = int(item["key"][self._log.batch.items(place)][0]) % 2**64
        return np.random.default_rng([self._seed, key, int(event["at"][place])])

    def _examined(self, n_places: int) -> Array:
        """How likely each place is looked at, shape (n_places,)."""
        e = self._model.examination
        return np.ones(n_places) if e is None else np.array(e)[np.minimum(np.arange(n_places), len(e) - 1)]

    def _earned(self, log: Log, history: History) -> list[Array]:
        """As the labels of a history: what the clicks inside the window say that they are worth."""
        event, item = log.batch.events.event, log.batch.events.item
        earned = [np.zeros(len(one)) for one in history.labels]
        for place, shown in zip(history.places.tolist(), history.shown_by, strict=True):
            if (worth := self._worth_of.get(place)) is None or shown < 0:
                continue
            mine = item["key"][log.batch.items(history.places[shown])] == event["key"][place]
            if event["at"][place] - history.at[shown] <= self._model.window_ms:
                earned[shown][int(mine.argmax())] += worth
        return earned


def _told(model: Model, log: Log) -> tuple[dict[int, WireImpression], dict[int, float]]:
    """By place, the impressions whose items all have a propensity and a place, and what clicks are worth."""
    event, item = log.batch.events.event, log.batch.events.item
    n_items = event["n_items"] > 0
    first = np.where(n_items, event["first_item"], 0)
    key = np.where(n_items, item["key"][first], event["key"]) if len(item) else event["key"]
    place_of = {
        one: place for place, one in enumerate(zip(log.batch.user, event["at"].tolist(), key.tolist(), strict=True))
    }
    shown: dict[int, WireImpression] = {}
    worth: dict[int, float] = {}
    for wire in log.batch.told:
        item_id = wire.item_id if isinstance(wire, WireClick) else wire.items[0].item_id
        place = place_of.get((wire.user_id, wire.timestamp, _key(wire.request_id or "", item_id, model)))
        if place is None:
            continue
        if isinstance(wire, WireClick):
            worth[place] = wire.reward or 0.0
        elif all(one.propensity is not None for one in wire.items) and len(_by_place(wire.items)):
            shown[place] = wire
    return shown, worth


def _key(request_id: str, item_id: str, model: Model) -> int:
    """The key of an outcome, as the columns have it."""
    key = item_keys([item_id])
    return int((key if model.by_item else outcome_keys([request_id], 1, key))[0])


def _by_place(items: Sequence[WireItem]) -> NDArray[np.intp]:
    """Which item is at each place from the top; none if two are at one place, or one is missing."""
    place = np.array([i if one.position is None else one.position - 1 for i, one in enumerate(items)])
    order = np.argsort(place)
    return order if (place[order] == np.arange(len(items))).all() else order[:0]
