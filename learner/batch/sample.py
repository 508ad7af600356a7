"""The events of a sample of a log's users, kept in memory while the log is read: small enough to be replayed often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from learner.batch.users import user_hash
from learner.belief.gaussian import Array
from learner.events.microbatch import Microbatch, is_of_item, joined

# In time: of so many users and items. In memory: of so many numbers in their rows.
MAX_USERS, MAX_ITEMS, MAX_NUMBERS = 500, 100_000, 1 << 22
# Where items learn too: what is known of an item is from many users.
MAX_USERS_OF_ITEMS = 5_000
# Of the examination, whose clicks are few at the last ranks.
TIMES_FOR_RANKS = 3
# At most this share of the users: what is chosen on the sample is judged by a prior that is fitted on the others.
MAX_SHARE = 0.5
# While the log is read, so many times as much is kept: which of it is behind its end is known only then.
_SPARE = 4


class Sample:
    """Users with the smallest hashes, as many as the bounds allow: whatever the order of the log, the same ones.

    Parameters
    ----------
    wanted
        Who may be in it.
    d
        Columns of the model's rows.
    max_share
        At most this share of the users.
    times
        So many times as many outcomes.
    """

    def __init__(
        self,
        wanted: Callable[[str], bool],
        d: int,
        max_users: int = MAX_USERS,
        max_share: float = MAX_SHARE,
        times: int = 1,
    ) -> None:
        self._wanted = wanted
        self._d = d
        self._max_users, self._max_items = max_users, times * min(MAX_ITEMS, MAX_NUMBERS // d)
        self._limit = int(max_share * 2**64)
        self._batches: list[Microbatch] = []
        self._hash: dict[str, int] = {}
        self._n_items = 0

    def keep_of(self, batches: Iterable[Microbatch]) -> Iterator[Microbatch]:
        """The same microbatches; the events of users in the sample are noted as they pass."""
        for batch in batches:
            self._add(batch)
            yield batch

    def take(self, stand_in: Array, since_ms: float = -np.inf, until_ms: float = np.inf) -> tuple[Microbatch, int]:
        """The sample between two times (epoch ms), and the `user_hash` that all of its users are below, and no others.

        An item without an offset has x'c, as of `Model.stand_in`; erased users have no events up to their erasure.
        """
        batch = joined((one.only(self._is_in, since_ms, until_ms) for one in self._batches), self._d).without_erased()
        users = sorted(set(batch.user), key=self._hash.__getitem__)
        items = dict.fromkeys(users, 0)
        for user, n in zip(batch.user, batch.events.event["n_items"].tolist(), strict=True):
            items[user] += n
        fits = np.cumsum(list(items.values()))[: self._max_users] <= self._max_items
        if (n_users := int(fits.sum())) < len(users):
            self._limit = self._hash[users[n_users]]
            batch = batch.only(self._is_in)
        item = batch.events.item.copy()
        missing = np.isnan(item["offset"])
        item["offset"][missing] = batch.events.row[missing] @ stand_in
        return batch._replace(events=batch.events._replace(item=item)), self._limit

    def _is_in(self, user_id: str) -> bool:
        known = self._hash.get(user_id)
        return (user_hash(user_id) if known is None else known) < self._limit

    def _add(self, batch: Microbatch) -> None:
        mine = batch.only(lambda user_id: self._is_in(user_id) and self._wanted(user_id) and not is_of_item(user_id))
        self._hash |= {user_id: user_hash(user_id) for user_id in set(mine.user) - self._hash.keys()}
        if mine.user:
            self._batches.append(mine)
        self._n_items += len(mine.events.item)
        # By fixed steps, so that the order of the log chooses nobody.
        while len(self._hash) > _SPARE * self._max_users or self._n_items > _SPARE * self._max_items:
            self._limit = self._limit // 4 * 3
            self._batches = [one.only(self._is_in) for one in self._batches]
            self._hash = {user_id: known for user_id, known in self._hash.items() if known < self._limit}
            self._n_items = sum(len(one.events.item) for one in self._batches)
