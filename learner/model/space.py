"""What the columns of a model's rows mean, so that what is known in one feature space can be told in another."""

from __future__ import annotations

import msgspec
import numpy as np

from learner.belief.gaussian import Array, Rows


class Column(msgspec.Struct, frozen=True, array_like=True):
    """A column, the value of which is (v - loc) / scale.

    Attributes
    ----------
    name
        The coefficient's.
    meaning
        JSON of what v is, but for what the column does not depend on: the other values of a category, its scale.
    was
        The name that it had before it was renamed, if the model says so.
    """

    name: str
    meaning: str = ""
    loc: float = 0.0
    scale: float = 1.0
    was: str | None = None


class Space(msgspec.Struct, frozen=True, array_like=True):
    """A feature space: the columns of a row, of which a belief is on the first d."""

    columns: tuple[Column, ...]
    d: int


def encoder_of(space: Space) -> str | None:
    """The hash of the encoder whose numbers are among the columns; None where there are none.

    >>> encoder_of(Space((Column("deep[0]", '{"encoder":"5f0c","kind":"encoded","size":1}'),), 1))
    '5f0c'
    """
    meanings = dict.fromkeys(column.meaning for column in space.columns if column.meaning)
    said = (msgspec.json.decode(one, type=_Meaning) for one in meanings)
    return next((one.encoder for one in said if one.encoder is not None), None)


class _Meaning(msgspec.Struct, frozen=True):
    encoder: str | None = None


def bridge(source: Space, target: Space) -> Array:
    """How coefficients of one feature space become those of another: theta' = B theta, shape (width', width).

    Columns of the same name and meaning are the same one, and those of a name that either model says it was renamed
    from. Rows of new columns are zero. Where a scale differs, what the intercept has to take over stands in its row,
    so that x'theta stays the same for every item.
    """
    places = {column.name: i for i, column in enumerate(source.columns)}
    renamed = {column.was: i for i, column in enumerate(source.columns) if column.was is not None}
    B = np.zeros((len(target.columns), len(source.columns)))
    for j, mine in enumerate(target.columns):
        for i in (places.get(mine.name), places.get(mine.was or ""), renamed.get(mine.name)):
            if i is None or source.columns[i].meaning != mine.meaning:
                continue
            theirs = source.columns[i]
            B[j, i] = mine.scale / theirs.scale
            # The intercept's own column comes first.
            B[0, i] += (mine.loc - theirs.loc) / theirs.scale if j else 0.0
            break
    return B


def rows_over(B: Array, rows: Rows) -> Rows:
    """The rows of outcomes in the other feature space, shape (N, width'); 0 where a column is new.

    Of rows X of the first, so that X'(B theta) is X theta for all that both have.
    """
    scaled = B.copy()
    scaled[0, 1:] = 0.0
    has = scaled.any(axis=1)
    over = np.zeros((len(rows), len(B)))
    source = scaled.argmax(axis=1)
    ratio = scaled[np.arange(len(B)), source]
    moved = B[0, source]
    moved[0] = 0.0
    over[:, has] = (rows[:, source[has]] - moved[has]) / ratio[has]
    return over.astype(np.float32)
