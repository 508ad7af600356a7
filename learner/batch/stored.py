"""The prior of a population of users or items, from their beliefs alone, as a store has them.

A user's evidence is what their natural parameters have beyond the prior's (`learner.belief.population.gained`): a
Gaussian factor exp(h'theta - theta'G theta / 2) of the posterior, whatever the prior. So the E-step under any other
prior is exact, and needs no log: S_u = (P0 + G_u)^-1, m_u = S_u (P0 m0 + h_u).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from learner.batch.disk import on_disk, spool
from learner.batch.prior import Iteration, expectation_maximisation
from learner.batch.users import user_hash
from learner.belief.gaussian import Array, Gaussian, blocks, factor_size, joined, sum_of_squares
from learner.belief.population import gained
from learner.model.crowd import Crowd
from learner.model.effect import Effect
from learner.record import NEVER, DamagedRecord, RecordError, decode_record

# Stops once the evidence gains less than so many nats a user.
TOLERANCE = 1e-4
# Of fewer items a variance says nothing. EM is slow where an item has little evidence, and its steps are cheap.
MIN_ITEMS, ITEM_ITERATIONS, ITEM_TOLERANCE = 10, 500, 1e-6


class Evidence:
    """What is known of users, or items, beyond their prior, in a temporary file, without a name and soon gone.

    Memory holds 8 bytes a user; the file has as many numbers of 8 bytes as a belief has, d and those of its factor.
    """

    def __init__(self, table: IO[bytes], d: int, n_dense: int, once: NDArray[np.bool_]) -> None:
        self._table, self._d, self._n_dense, self._once = table, d, n_dense, once
        weakref.finalize(self, table.close)

    def __len__(self) -> int:
        """How many there are."""
        return int(self._once.sum())

    def chunks(self, numbers: int = 1 << 20) -> Iterator[tuple[Array, Array, Array]]:
        """Precisions gained, shapes (n, k, k) and (n, d - k), and shifts, (n, d), of some users at a time."""
        d, k = self._d, self._n_dense
        width, together = d + factor_size(d, k), max(1, numbers // (k * k + d))
        upper, lower = np.triu_indices(k), np.tril_indices(k)
        self._table.seek(0)
        for first in range(0, len(self._once), together):
            once = self._once[first : first + together]
            found = np.frombuffer(self._table.read(8 * width * len(once)), np.float64).reshape(-1, width)[once]
            first_single = width - (d - k)
            precision = np.zeros((len(found), k, k))
            precision[:, *upper] = found[:, d:first_single]
            precision[:, *lower] = np.swapaxes(precision, 1, 2)[:, *lower]
            yield precision, found[:, first_single:], found[:, :d]


def collect_evidence(
    records: Iterable[Sequence[tuple[str, bytes]]],
    effect: Effect,
    wanted: Callable[[str], bool] = lambda user_id: True,
    refuse: Callable[[RecordError], object] | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Evidence:
    """The evidence of each user, or item, that has any; one who comes twice counts once.

    Parameters
    ----------
    records
        Ids and records. Those of an earlier population are moved to the effect's, as when they are served.
    wanted
        Whose.
    refuse
        Called with what is wrong with a record, which is then passed over. None: the first such ends it.
    advance
        Called with the number of records read.

    Raises
    ------
    RecordError
        If a record cannot be used.
    ValueError
        If the temporary file does not fit on the disk.
    """
    users: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    table = spool()
    try:
        with on_disk():
            for some in records:
                found = []
                for user_id, value in some:
                    if not wanted(user_id):
                        continue
                    try:
                        mine = _evidence_of(value, effect, user_id)
                    except RecordError as exc:
                        if refuse is None:
                            raise
                        refuse(exc)
                        continue
                    if mine is not None:
                        table.write(mine.tobytes())
                        found.append(user_hash(user_id))
                users.append(np.array(found, np.uint64))
                advance(len(some))
            table.flush()
    except BaseException:
        table.close()
        raise
    user = np.concatenate(users)
    once = np.zeros(len(user), np.bool_)
    once[np.unique(user, return_index=True)[1]] = True
    return Evidence(table, effect.d, effect.prior.n_dense, once)


def _evidence_of(value: bytes, effect: Effect, user_id: str) -> Array | None:
    """A row of the file; None of a user without evidence."""
    record = decode_record(value, effect, user_id)
    if record.settled_at == NEVER:
        return None
    try:
        precision, shift = gained(record.settled, effect.population, effect.fixed_effect)
    except np.linalg.LinAlgError as exc:
        raise DamagedRecord(user_id, "a covariance that cannot be inverted", effect.key) from exc
    dense, single = blocks(precision, effect.d)
    return np.concatenate([shift, dense[np.triu_indices(len(dense))], single])


def fit_stored_prior(
    evidence: Evidence,
    start: Gaussian,
    max_iterations: int = 50,
    observe: Callable[[Iteration], None] = lambda iteration: None,
    advance: Callable[[int], object] = lambda n: None,
    keep_mean: bool = False,
    tolerance: float = TOLERANCE,
) -> Crowd:
    """The users under the population N(m0, S0) that makes the evidence most likely, by `expectation_maximisation`.

    Parameters
    ----------
    start
        The effect's prior, of the form that the evidence has.
    advance
        Called with the number of users, or items, gone through.
    keep_mean
        See `expectation_maximisation`.
    tolerance
        Nats of each of them.
    """
    return expectation_maximisation(
        lambda prior: _moments(evidence, prior, advance),
        start,
        max_iterations,
        lambda users: tolerance * users.n,
        observe,
        keep_mean=keep_mean,
    )


def fit_stored_item_prior(
    evidence: Evidence, start: Gaussian, advance: Callable[[int], object] = lambda n: None
) -> Gaussian:
    """The population of items, whose mean stays 0: their level is the intercept of users. Of too few the one given."""
    if len(evidence) < MIN_ITEMS:
        return start
    return fit_stored_prior(
        evidence, start, ITEM_ITERATIONS, advance=advance, keep_mean=True, tolerance=ITEM_TOLERANCE
    ).population


def _moments(evidence: Evidence, prior: Gaussian, advance: Callable[[int], object]) -> Crowd:
    """The E-step. With r = h - G m0: m_u - m0 = S_u r, and the evidence is that of a Gaussian integral."""
    d, k = len(prior.mean), prior.n_dense
    users = Crowd(prior, 0.0, 0.0, np.zeros(d), np.zeros_like(prior.cov), np.zeros_like(prior.cov))
    cov_0, var_0 = blocks(prior.cov, d)
    P_0 = np.asarray(np.linalg.inv(cov_0), dtype=np.float64)
    volume = np.linalg.slogdet(cov_0)[1] + np.log(var_0).sum()
    for dense, single, shift in evidence.chunks():
        pull = np.concatenate([dense @ prior.mean[:k], single * prior.mean[k:]], axis=1)
        left = shift - pull
        P = P_0 + dense
        S, var = np.asarray(np.linalg.inv(P), dtype=np.float64), 1.0 / (1.0 / var_0 + single)
        step = np.concatenate([(S @ left[:, :k, None])[:, :, 0], var * left[:, k:]], axis=1)
        log_volume = np.log(var).sum(axis=1) - np.linalg.slogdet(P)[1]
        value = float(0.5 * (log_volume - volume).sum() + (shift @ prior.mean).sum())
        value += 0.5 * float((left * step).sum() - (pull @ prior.mean).sum())
        covariances = joined(S.sum(axis=0), var.sum(axis=0))
        users = users.and_of(Crowd(prior, len(step), value, step.sum(axis=0), sum_of_squares(step, k), covariances))
        advance(len(step))
    return users
