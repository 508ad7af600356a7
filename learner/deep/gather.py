"""From a log's tables to what an encoder is trained on: vocabularies, scales, and outcomes in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.batch import sql
from learner.batch.collect import Engine
from learner.batch.columns import column, rows_of
from learner.batch.outcomes import Outcomes, fitted_rows
from learner.belief.gaussian import Array
from learner.deep.examples import Examples, length_for, mapped, record, windows
from learner.deep.network import Input, Network
from learner.deep.reading import declared, inputs_of
from learner.deep.state import Trained, Vocabulary
from learner.model.duration import ModelError
from learner.model.encoder import EncoderInput
from learner.model.spec import Model


class Gathered(NamedTuple):
    """What a log has to be trained on.

    Attributes
    ----------
    network
        Whose vocabularies have the values of this log, behind those that were known before.
    learnt, held_out
        The outcomes of most users, and those of the others.
    outcomes
        What is known of all of them together.
    """

    network: Network
    vocabulary: Vocabulary
    learnt: Examples
    held_out: Examples
    outcomes: Outcomes


class _Seen(NamedTuple):
    """By column which places of a vocabulary occur; of numbers how many are known, their sum and squares; users."""

    places: dict[int, Any]
    sums: Array
    users: NDArray[np.int64]

    def and_of(self, other: _Seen) -> _Seen:
        places = {at: np.union1d(its, other.places[at]) for at, its in self.places.items()}
        return _Seen(places, self.sums + other.sums, np.concatenate([self.users, other.users]))


def gather(
    engine: Engine,
    view: Model,
    hidden: tuple[int, ...],
    held_out: float,
    window: int | None = None,
    before: Trained | None = None,
) -> Gathered:
    """Join clicks to impressions, as `learner.batch.collect` does, and keep each outcome as it is trained on.

    Parameters
    ----------
    view
        What the tables were read with.
    held_out
        The share of users that is held out.
    window
        Outcomes of a user that are seen together; with 1 users have no effects. None for what suits the log.
    before
        What earlier logs have taught: its scales stay, and its values keep their places.

    Raises
    ------
    ModelError
        If that is of other inputs.
    ValueError
        If temporary files do not fit on the disk.
    """
    last = engine.query(sql.LAST).column("at_ms").to_pylist()[0] or 0
    table = engine.outcomes(sql.outcomes(0, last, view.window_ms, view.by_item))
    outcomes = Outcomes(table, view, last)
    # As `fit` has it: of a log with offsets an outcome without has their mean.
    stand_in = np.zeros(view.width)
    stand_in[0] = outcomes.mean_offset or 0.0
    read, met = inputs_of(view), inputs_of(view).met
    places = {at: one for one, at in read.places}
    nothing = _Seen(
        {at: np.empty(0) for at, one in places.items() if one.name in met}, np.zeros((view.width, 3)),
        np.empty(0, np.int64),
    )  # fmt: skip
    seen = reduce(_Seen.and_of, table.map(partial(_seen, view.width, places)), nothing)
    inputs, vocabulary, moved = [], Vocabulary(), dict[int, Array]()
    for at, one in places.items():
        known = before.vocabulary.get(one.name, ()) if before is not None else ()
        if one.name in met:
            vocabulary[one.name], moved[at] = _vocabulary(met[one.name], seen.places[at], one, known)
        elif one.kind == "multi":
            vocabulary[one.name] = tuple(one.values or ())
        inputs.append(_input(one, len(vocabulary.get(one.name, ())), seen.sums[at], before))
    network = Network(tuple(inputs), hidden, declared(view).embedding)
    dtype = record(view.width)
    parts = table.map(partial(_records, dtype, view, stand_in, moved, seen.users))
    records = mapped(parts, len(outcomes), dtype)
    user = np.array(records["user"])
    of_users = windows(user, length_for(user) if window is None else window)
    is_chosen = np.random.default_rng(0).random(1 + outcomes.n_users) < held_out
    is_held_out = is_chosen[user[of_users[:, 0]]]
    learnt, others = (Examples(records, of_users[some], network) for some in (~is_held_out, is_held_out))
    return Gathered(network, vocabulary, learnt, others, outcomes)


def check_same(view: Model, trained: Trained, source: str) -> None:
    """Raise `ModelError` unless an encoder was trained for these inputs and this embedding."""
    encoder = declared(view)
    had = [(one.name, one.kind, 0 if one.is_embedded else one.size) for one in trained.network.inputs]
    wanted = [(one.name, one.kind, 0 if one.kind in ("category", "id") else one.columns) for one in encoder.inputs]
    if had != wanted or trained.network.embedding != encoder.embedding:
        raise ModelError(
            f"encoder {source!r}: was trained for {_said(had)} and embedding = {trained.network.embedding}: expected "
            f"{_said(wanted)} and {encoder.embedding}, as the model has them, or no --previous: a cold start"
        )
    for one in encoder.inputs:
        known = trained.vocabulary.get(one.name, ())
        if one.values is not None and known != tuple(one.values[: len(known)]):
            raise ModelError(
                f"encoder {source!r}: encoder.inputs {one.name!r}: values were {', '.join(known)}: expected the same, "
                "and new ones behind them"
            )


def _said(inputs: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(f"{name} ({kind}{f' of {width}' if width > 1 else ''})" for name, kind, width in inputs)


def _seen(width: int, places: Mapping[int, EncoderInput], piece: Any) -> _Seen:
    rows, sums, found = rows_of(piece, width), np.zeros((width, 3)), {}
    for at, one in places.items():
        if one.kind in ("category", "id"):
            found[at] = np.unique(rows[:, at])
        elif one.kind == "vector":
            its = rows[:, at : at + one.columns].astype(np.float64)
            sums[at] = its.size, 0.0, (its**2).sum()
        elif one.kind == "numeric":
            known = rows[rows[:, at + 1] == 0, at].astype(np.float64)
            sums[at] = len(known), known.sum(), (known**2).sum()
    # A piece is of whole users, in order.
    return _Seen(found, sums, np.unique(column(piece, "whose")))


def _vocabulary(
    met: Mapping[str, int], seen: Any, one: EncoderInput, known: tuple[str, ...]
) -> tuple[tuple[str, ...], Array]:
    """The values in their places for the network, and by place of those that were met the number for the network.

    What is new comes behind what is known, in alphabetical order: it does not matter how the log was ordered.
    """
    values = list(met)
    if one.values is None:
        wanted = {values[place - 1] for place in seen.astype(int).tolist() if place}
        kept = (*known, *sorted(wanted - {*known}))
    else:
        kept = tuple(one.values)
    number = {value: i for i, value in enumerate(kept, start=1)}
    return kept, np.array([0, *(number.get(value, 0) for value in values)], np.float32)


def _input(one: EncoderInput, n_values: int, sums: Array, before: Trained | None) -> Input:
    if one.kind in ("category", "id"):
        return Input(one.name, one.kind, n_values)
    if one.kind == "multi":
        return Input(one.name, one.kind, one.columns)
    if before is not None:
        return next(its for its in before.network.inputs if its.name == one.name)
    n, total, squares = sums.tolist()
    mean = total / n if n else 0.0
    std = float(np.sqrt(max(squares / n - mean**2, 0.0))) if n else 0.0
    # Of one value alone there is no scale.
    return Input(one.name, one.kind, one.columns, mean, std if std > 1e-6 * abs(mean) else 1.0)


def _records(
    dtype: Any, view: Model, stand_in: Array, moved: Mapping[int, Array], users: NDArray[np.int64], piece: Any
) -> Any:
    e = None if view.examination is None else np.array(view.examination)
    rows = fitted_rows(piece, view.width, view.window_ms, stand_in, None, None, e, None)
    found = np.zeros(len(rows.y), dtype)
    found["x"] = rows_of(piece, view.width)
    for at, number in moved.items():
        found["x"][:, at] = number[found["x"][:, at].astype(int)]
    found["y"], found["offset"], found["weight"] = rows.y, rows.offset, rows.weight
    found["examination"] = 1.0 if rows.examination is None else rows.examination
    found["at_ms"] = column(piece, "at_ms")
    found["user"] = 1 + np.searchsorted(users, column(piece, "whose"))
    return found
