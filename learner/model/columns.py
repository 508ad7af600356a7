"""The coefficients of an effect: on which features, in which order, and which have covariances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat

from learner.belief.gaussian import Form, factor_size
from learner.limits import MAX_RECORD_BYTES
from learner.model.duration import ModelError
from learner.model.kinds import Category, Cross, Feature, Hashed, Multi
from learner.model.space import Column

INTERCEPT_NAME = "intercept"
# Of very many columns an item has a 1 in one, or a few.
WIDE = Category | Multi | Hashed | Cross


def first_column(name: str, features: Mapping[str, Feature]) -> int:
    """Where the columns of a feature begin in a row, behind the intercept and those of the features before it."""
    before = list(features)[: list(features).index(name)]
    return 1 + sum(features[one].width for one in before)


def check_size(key: str, covariance: Form, is_wide: Sequence[bool], width: int, max_open: int) -> int:
    """How many of an effect's coefficients have a dense covariance.

    Raises
    ------
    ModelError
        If a record would be larger than `MAX_RECORD_BYTES`.
    """
    d = len(is_wide)
    n_dense = {"full": d, "block": is_wide.count(False), "diagonal": 0}[covariance]
    belief = 4 * (d + factor_size(d, n_dense))
    rows = 4 * width * max_open
    if belief + rows > MAX_RECORD_BYTES:
        total, of_belief, of_rows = (f"{one / 2**20:,.1f}" for one in (belief + rows, belief, rows))
        raise ModelError(
            f"{key}: a record would have {total} MiB: {of_belief} for {d:,} coefficients with covariance = "
            f"{covariance!r}, {of_rows} for max_open = {max_open:,} rows of {width:,} numbers; "
            f"expected at most {MAX_RECORD_BYTES >> 20} MiB: fewer values or buckets, covariance = 'block' or "
            "'diagonal', or fewer features by [effects.user]"
        )
    return n_dense


def named(key: str, names: Sequence[str], features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Those of the features that an effect is on, in their order."""
    if unknown := [name for name in names if name != INTERCEPT_NAME and name not in features]:
        raise ModelError(f"{key}: {unknown[0]!r}: expected 'intercept' or some of {', '.join(features) or 'none'}")
    return {name: feature for name, feature in features.items() if name in names}


def in_order(features: Mapping[str, Feature], covariance: Form) -> dict[str, Feature]:
    """An effect's features in the order of its coefficients: in block form the wide ones last."""
    return dict(sorted(features.items(), key=lambda one: covariance == "block" and isinstance(one[1], WIDE)))


def wide(features: Mapping[str, Feature]) -> tuple[bool, ...]:
    """Which columns are of wide kinds; the intercept's, the first, is not."""
    return (False, *chain.from_iterable(repeat(isinstance(one, WIDE), one.width) for one in features.values()))


def columns(features: Mapping[str, Feature]) -> list[Column]:
    """The columns of rows of some features, the intercept's first."""
    return [Column(INTERCEPT_NAME), *chain.from_iterable(one.columns(name) for name, one in features.items())]
