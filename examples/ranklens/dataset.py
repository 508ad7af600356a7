"""RankLens as a stream of slates: real impressions and clicks, with features and a fixed effect for every film.

RankLens (https://github.com/metarank/ranklens, CC BY-SA 4.0) has 9,800 lists of 24 films, each shown to one of 2,145
crowd workers who ticked the films they liked. The fixed effect, the model a batch job would have trained, is fitted on
the first 30 % of the lists; nothing here looks at a label after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array, hstack
from scipy.special import expit, log_expit

Array: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.int64]
FeatureValue: TypeAlias = float | str | list[float | str]
Columns: TypeAlias = dict[str, list[Any]]

# The converter that made the published events dated every click so; the real delays were not kept.
CLICK_DELAY_MS = 5_000
SLATE_SIZE = 24
FITTED_SHARE = 0.3
TASTE_SIZE = 8

_IMPRESSIONS = ("ranking_no", "user_no", "ts_ms", "position", "item", "clicked")
_NUMBERS = ("popularity", "vote_avg", "vote_cnt", "budget", "runtime", "release_date")
_WORDS = ("genres", "tags", "actors", "director")
# A word that fewer films share says nothing about another film.
_MIN_FILMS_PER_WORD = 5
# A user's variance per component is this squared times that of a film's other features; chosen, like the variances in
# model.toml, by the progressive log loss of the first 30 %.
_TASTE_SCALE = 0.4

# Prior variances of the fixed effect's coefficients, on the log-odds scale.
_VARIANCE_CONTENT = 0.2
_VARIANCE_ITEM = 0.25
_VARIANCE_USER = 1.2
_VARIANCE_INTERCEPT = 1_000.0

_SECONDS_PER_YEAR = 365.25 * 86_400


class DatasetMissing(Exception):
    """The RankLens files are missing or not in the expected form; the message says what to do."""


@dataclass(frozen=True)
class Slate:
    """One list of films, as shown to one user.

    Attributes
    ----------
    request_id, user_id
        Unique per list, and per crowd worker.
    timestamp
        When it was shown, epoch ms.
    item_ids
        The films, from top to bottom.
    features
        For each film, the `features` of an impression's item; films without metadata have only `appeal`.
    offsets
        Log-odds of a click according to the fixed effect, for a user of average eagerness, shape (n_items,).
    clicked
        Which films were clicked, shape (n_items,).
    clicked_at
        When they were, epoch ms, the same for all.
    """

    request_id: str
    user_id: str
    timestamp: int
    item_ids: tuple[str, ...]
    features: tuple[dict[str, FeatureValue], ...]
    offsets: Array
    clicked: NDArray[np.bool_]
    clicked_at: int


@dataclass(frozen=True)
class Slates:
    """All slates in time order.

    Attributes
    ----------
    slates
        The slates; a user's never share a timestamp.
    split
        The fixed effect was fitted on `slates[:split]`; progressive metrics count from `slates[split]` on.
    """

    slates: tuple[Slate, ...]
    split: int


def load(folder: Path, fitted_share: float = FITTED_SHARE, taste_size: int = TASTE_SIZE) -> Slates:
    """Read RankLens, fit the fixed effect on its first 30 % and describe every film.

    Takes some seconds; the same files always give the same slates.

    Parameters
    ----------
    folder
        Holds ``impressions.parquet``, one row per film shown, lists in time order (ranking_no, user_no, ts_ms,
        position, item, clicked), and ``items.parquet``, one row per film (item, popularity, vote_avg, vote_cnt, budget,
        runtime, release_date in epoch seconds, and genres, tags, actors, director, each joined by ``|``).
    fitted_share
        The first share of lists that the fixed effect is fitted on.
    taste_size
        How many numbers `taste` has.

    Raises
    ------
    DatasetMissing
        If the folder, a file or a column is missing, or a list does not have 24 films.
    """
    shown = _read(folder, "impressions.parquet", _IMPRESSIONS)
    films = _read(folder, "items.parquet", ("item", *_NUMBERS, *_WORDS))
    item, user, clicked, shown_at = (
        np.array(shown[name]).reshape(-1, SLATE_SIZE) for name in ("item", "user_no", "clicked", "ts_ms")
    )
    split = int(len(item) * fitted_share)

    item_ids = np.union1d(item, np.array(films["item"]))
    film_rows = np.searchsorted(item_ids, np.array(films["item"]))
    shown_rows = np.searchsorted(item_ids, item)
    taste = _taste(films, taste_size)
    described = _content(films, taste)
    content = np.zeros((len(item_ids), described.shape[1]))
    content[film_rows] = described
    appeal = fit_fixed_effect(content, shown_rows[:split], user[:split, 0], clicked[:split])

    features: list[dict[str, FeatureValue]] = [{"appeal": round(float(z), 4)} for z in appeal]
    for row, described_by in zip(film_rows, _event_features(films, taste), strict=True):
        features[row] |= described_by
    return Slates(
        tuple(
            Slate(
                request_id=f"r{number}",
                user_id=f"u{user[number, 0]}",
                timestamp=int(shown_at[number, 0]),
                item_ids=tuple(map(str, item[number].tolist())),
                features=tuple(features[row] for row in rows),
                offsets=np.round(appeal[rows], 4),
                clicked=clicked[number].astype(bool),
                clicked_at=int(shown_at[number, 0]) + CLICK_DELAY_MS,
            )
            for number, rows in enumerate(shown_rows)
        ),
        split,
    )


def fit_fixed_effect(content: Array, items: Index, users: Index, clicked: NDArray[Any]) -> Array:
    """Log-odds of a click for every item, from a penalised logistic regression.

    ``logit P(click) = b0 + content[i]'b + item effect[i] + user effect[u]``, each effect Gaussian around 0, at the
    posterior mode by L-BFGS. The user effects are then dropped. They are fitted so that the others are what they are
    *given* a user, which is what a per-user model adds to: without them the offsets come out about 30 % too flat.

    Parameters
    ----------
    content
        What is known of each item, shape (n_items, k), columns of about unit scale.
    items
        Rows of `content` that were shown, shape (n_slates, slate size).
    users
        To whom, shape (n_slates,).
    clicked
        Whether they were clicked, shape (n_slates, slate size).

    Returns
    -------
    Array
        Shape (n_items,), intercept included.
    """
    n_items, k = content.shape
    _, user_rows = np.unique(users, return_inverse=True)
    flat_items, flat_users = items.ravel(), np.repeat(user_rows, items.shape[1])
    fixed = np.column_stack([np.ones(n_items), content])
    X = hstack([csr_array(fixed[flat_items]), _indicators(flat_items, n_items), _indicators(flat_users)], format="csr")
    n_users = X.shape[1] - 1 - k - n_items
    precision = 1.0 / np.repeat(
        [_VARIANCE_INTERCEPT, _VARIANCE_CONTENT, _VARIANCE_ITEM, _VARIANCE_USER], [1, k, n_items, n_users]
    )
    y = clicked.ravel().astype(np.float64)
    # Columns range from one film's 28 views to the intercept's 70,000: equal curvature spares L-BFGS many steps.
    scale = 1.0 / np.sqrt(y.var() * X.multiply(X).sum(axis=0) + precision)

    def negative_log_posterior(scaled: Array) -> tuple[float, Array]:
        b = scale * scaled
        z = X @ b
        loss = -log_expit(np.where(y > 0, z, -z)).sum() + 0.5 * (precision * b * b).sum()
        return float(loss), scale * (X.T @ (expit(z) - y) + precision * b)

    start = np.zeros(X.shape[1])
    fit = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", options={"maxiter": 1_000})
    if not fit.success:
        raise RuntimeError(f"the fixed effect did not converge: {fit.message}")
    b: Array = scale * fit.x
    return fixed @ b[: 1 + k] + b[1 + k : 1 + k + n_items]


def _read(folder: Path, name: str, columns: Sequence[str]) -> Columns:
    path = folder / name
    if not path.is_file():
        raise DatasetMissing(
            f"{path} is missing. This example replays RankLens, which does not come with Freshet (its licence is "
            "CC BY-SA 4.0): get it from https://github.com/metarank/ranklens and convert it to two Parquet files, "
            "impressions.parquet and items.parquet; the docstring of load() in examples/ranklens/dataset.py lists "
            "their columns."
        )
    table = pq.read_table(path)
    if absent := [column for column in columns if column not in table.column_names]:
        raise DatasetMissing(f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(table.column_names)}")
    read: Columns = table.select(list(columns)).to_pydict()
    if columns == _IMPRESSIONS:
        _check_lists(path, read)
    return read


def _check_lists(path: Path, shown: Columns) -> None:
    number = np.array(shown["ranking_no"])
    if len(number) % SLATE_SIZE or (np.ptp(number.reshape(-1, SLATE_SIZE), axis=1) > 0).any():
        raise DatasetMissing(f"{path}: expected lists of {SLATE_SIZE} films, one after the other")
    if (np.diff(shown["ts_ms"]) < 0).any():
        raise DatasetMissing(f"{path}: expected lists in time order")


def _words(films: Columns, name: str) -> list[set[str]]:
    return [set(filter(None, (text or "").split("|"))) for text in films[name]]


def _multi_hot(films: Columns, name: str) -> Array:
    """Which films have which word, shape (n_films, n_words), words shared by enough films only."""
    words = _words(films, name)
    counts = Counter(word for film in words for word in film)
    kept = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n >= _MIN_FILMS_PER_WORD))}
    hot = np.zeros((len(words), len(kept)))
    for row, film in enumerate(words):
        hot[row, [kept[word] for word in film if word in kept]] = 1.0
    return hot


def _taste(films: Columns, size: int) -> Array:
    """Films in a small space where those with the same genres, tags, actors and director are close, shape (n, k).

    The leading components of the inverse-document-frequency weighted words, each film of unit length; scaled so that
    the first has standard deviation one.
    """
    hot = np.hstack([_multi_hot(films, name) for name in _WORDS])
    weighted = hot * np.log(len(hot) / hot.sum(axis=0))
    weighted /= np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)
    left, singular, _ = np.linalg.svd(weighted, full_matrices=False)
    taste: Array = left[:, :size] * singular[:size]
    return taste / taste[:, 0].std()


def _content(films: Columns, taste: Array) -> Array:
    """What the fixed effect is told of each film, shape (n, k)."""
    numbers = np.array([films[name] for name in _NUMBERS], dtype=np.float64).T
    # Counts and money spread over orders of magnitude.
    skewed = [_NUMBERS.index(name) for name in ("popularity", "vote_cnt", "budget")]
    numbers[:, skewed] = np.log1p(numbers[:, skewed])
    numbers = (numbers - numbers.mean(axis=0)) / numbers.std(axis=0)
    return np.hstack([numbers, numbers**2, _multi_hot(films, "genres"), taste])


def _event_features(films: Columns, taste: Array) -> list[dict[str, FeatureValue]]:
    """What the per-user model is told of each film, `appeal` aside; names as in model.toml."""
    return [
        {
            "votes": round(float(np.log10(votes)), 4),
            "rating": float(rating),
            "year": round(1970 + seconds / _SECONDS_PER_YEAR, 1),
            "runtime": float(runtime),
            "genres": sorted(genres),
            "taste": np.round(_TASTE_SCALE * place, 4).tolist(),
        }
        for votes, rating, seconds, runtime, genres, place in zip(
            films["vote_cnt"],
            films["vote_avg"],
            films["release_date"],
            films["runtime"],
            _words(films, "genres"),
            taste,
            strict=True,
        )
    ]


def _indicators(rows: Index, n: int | None = None) -> csr_array:
    """One-hot rows, shape (len(rows), n)."""
    n = int(rows.max()) + 1 if n is None else n
    return csr_array((np.ones(len(rows)), (np.arange(len(rows)), rows)), shape=(len(rows), n))
