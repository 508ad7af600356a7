"""MovieLens-1M as a log of events: an impression for each group of ratings, a click for each of four stars or more.

Three parts: films are described by the first 60 %, the prior is of the next 20 %, and the last 20 % are replayed. What
describes a film knows the ratings it was made from: a prior of the same ratings would trust it too much.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

Index: TypeAlias = NDArray[np.int64]

COLUMNS = ("user_id", "movie_id", "rating", "timestamp")
DESCRIBED_SHARE, TRAINED_SHARE = 0.6, 0.8
TASTE_SIZE = 16
LIKED = 4
# Ratings by which a film's own share of likes is drawn to the overall one.
_PSEUDO_RATINGS = 10.0
# Larger groups in the first 80 %, which are of two moments, are cut into so many.
_CUT = 10
# No page had more.
_WHOLE = 200


def describe_films(user: Index, film: Index, rating: Index) -> list[dict[str, object]]:
    """The features of films 0 to max(film), from the ratings of the first 60 %; names as in model.toml."""
    n_films, n_users = int(film.max()) + 1, int(user.max()) + 1
    liked = (rating >= LIKED).astype(np.float64)
    count, likes = np.bincount(film, minlength=n_films), np.bincount(film, liked, n_films)
    overall = liked.mean()
    share = (likes + _PSEUDO_RATINGS * overall) / (count + _PSEUDO_RATINGS)
    user_mean = (np.bincount(user, rating, n_users) + 5 * rating.mean()) / (np.bincount(user, minlength=n_users) + 5)
    film_mean = (np.bincount(film, rating, n_films) + 5 * rating.mean()) / (count + 5)
    # What neither the film's nor the user's mean explains.
    residual = rating - user_mean[user] - film_mean[film] + rating.mean()
    _, s, vt = svds(csr_array((residual, (user, film)), shape=(n_users, n_films)), k=TASTE_SIZE, random_state=0)
    taste = (vt * s[:, None]).T / np.sqrt(np.maximum(count, 1) + _PSEUDO_RATINGS)[:, None]
    taste /= taste[count > 0].std()
    return [
        {
            "appeal": round(float(np.log(share[i] / (1 - share[i]))), 4),
            "ratings": round(float(np.log10(count[i] + 1)), 4),
            "taste": np.round(taste[i], 4).tolist(),
        }
        for i in range(n_films)
    ]


def main(argv: list[str] | None = None) -> int:
    """Write the logs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.movielens.log", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help=f"a folder with ratings.parquet ({', '.join(COLUMNS)})"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder for batch.jsonl.gz, train.jsonl.gz and stream.jsonl.gz"
    )
    arguments = parser.parse_args(argv)
    file = arguments.data / "ratings.parquet"
    if not file.is_file():
        print(
            f"movielens: {file} is missing. MovieLens-1M (https://grouplens.org/datasets/movielens/1m/) does not come "
            f"with Freshet, since its licence forbids it; convert ratings.dat to Parquet with the columns "
            f"{', '.join(COLUMNS)}",
            file=sys.stderr,
        )
        return 2
    table = pq.read_table(file, columns=list(COLUMNS)).to_pydict()
    at = np.array([-1 if one is None else one for one in table["timestamp"]], dtype=np.int64)
    order = np.argsort(at, kind="stable")
    user, film, rating = (np.array(table[name], dtype=np.int64)[order] for name in COLUMNS[:3])
    at = at[order]
    described, split = round(len(at) * DESCRIBED_SHARE), round(len(at) * TRAINED_SHARE)
    # Of old ratings some copies lack the time, and those of few stars only. So the first 80 % are put in random order,
    # those that describe films at one moment and the others a second later: a sequential approximation would mind if
    # all of a user's dislikes came first.
    shuffled = np.random.default_rng(0).permutation(split)
    user[:split], film[:split], rating[:split] = user[shuffled], film[shuffled], rating[shuffled]
    at[:split] = at[split] - 1
    at[:described] -= 1
    features = describe_films(user[:described], film[:described], rating[:described])
    features += [{}] * (int(film.max()) + 1 - len(features))
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = {"batch": slice(described), "train": slice(described, split), "stream": slice(split, None)}
    for name, part in parts.items():
        with gzip.open(arguments.out / f"{name}.jsonl.gz", "wb", compresslevel=3) as out:
            _write(out, user[part], film[part], rating[part], at[part], features, name)
    return 0


def _write(
    out: gzip.GzipFile, user: Index, film: Index, rating: Index, at: Index, features: list[dict[str, object]], name: str
) -> None:
    """Ratings of one user in one second are one slate, as they were one page."""
    largest = _WHOLE if name == "stream" else _CUT
    _, group = np.unique(np.stack([at, user]), axis=1, return_inverse=True)
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        for first in range(0, len(rows), largest):
            place = rows[first : first + largest]
            ids = {"request_id": f"{name}-{group[place[0]]}-{first}", "user_id": f"u{user[place[0]]}"}
            when = int(at[place[0]]) * 1000
            items = [{"item_id": f"m{film[i]}", "features": features[film[i]]} for i in place]
            # A page was handed in as a whole. Its clicks stand before it, and wait for it, so that every label is known
            # when the page is learnt: the other way round each click would find its film learnt as a "no" already.
            for i in place:
                if rating[i] >= LIKED:
                    click = {"type": "click", **ids, "item_id": f"m{film[i]}", "timestamp": when}
                    out.write(msgspec.json.encode(click) + b"\n")
            event = {"type": "impression", **ids, "timestamp": when, "items": items}
            out.write(msgspec.json.encode(event) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
