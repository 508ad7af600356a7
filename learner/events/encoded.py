"""The encoded rows of impressions: those that were logged with them, else what the model's encoder makes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import not_
from typing import Any, NamedTuple

import numpy as np

from learner.belief.gaussian import Rows
from learner.events.microbatch import Encodings
from learner.events.wire import BadEvent, Reason, WireEncoded, WireImpression
from learner.model.design import Shown
from learner.model.encoded_rows import encoder_of, unsound
from learner.model.encoding import Encoder
from learner.model.spec import Model


class Encoded(NamedTuple):
    """The rows of the items of impressions, shape (N, width), and, by place, why some are refused, whose rows are 0."""

    rows: Rows
    refused: dict[int, BadEvent]
    how: Encodings


def encoded_of(
    model: Model, wires: Sequence[WireImpression], ids: Sequence[str], features: Sequence[Any], requests: Shown | None
) -> Encoded | None:
    """The encoded rows of some impressions, in one run of the encoder; None for a model without one.

    Parameters
    ----------
    ids, features
        Of all their items, in order, as `learner.model.design.Design.rows` takes them.

    Raises
    ------
    FeatureError
        If the encoder cannot read an item.
    """
    if (encoder := encoder_of(model)) is None:
        return None
    n_items = [len(wire.items) for wire in wires]
    owner, first = np.repeat(np.arange(len(wires)), n_items), np.cumsum([0, *n_items])
    rows = np.zeros((len(owner), encoder.width), np.float32)
    refused: dict[int, BadEvent] = {}
    is_logged = [one.encoded is not None and one.encoded.encoder == encoder.hash for one in wires]
    for k in np.flatnonzero(is_logged).tolist():
        try:
            rows[first[k] : first[k + 1]] = logged_rows(wires[k], encoder)
        except BadEvent as exc:
            refused[k] = exc
    is_made = ~np.repeat(is_logged, n_items)
    if is_made.any():
        shown = None
        if requests is not None:
            shown = Shown(*(list(compress(of_each, map(not_, is_logged))) for of_each in requests))
        values = model.design.values(encoder.names, list(compress(features, is_made)), shown)
        rows[is_made] = made = encoder.rows(list(compress(ids, is_made)), values)
        places = np.flatnonzero(is_made)
        for i in places[encoder.flawed(made)].tolist():
            k = int(owner[i])
            refused[k] = BadEvent(Reason.NON_FINITE_NUMBER, f"items[{i - first[k]}]: {unsound(encoder)}")
        for i, said in zip(places.tolist(), zip(*values, strict=True), strict=False):
            theirs = wires[k := int(owner[i])].encoded
            if theirs is not None and all(one is None for one in said):
                refused[k] = _of_another(theirs.encoder, encoder, int(i - first[k]))
    rows[np.isin(owner, list(refused))] = 0.0
    good = [(one, wire.encoded) for k, (one, wire) in enumerate(zip(is_logged, wires, strict=True)) if k not in refused]
    logged, remade = sum(one for one, _ in good), sum(said is not None and not one for one, said in good)
    return Encoded(rows, refused, Encodings(logged, len(good) - logged - remade, remade))


def logged_rows(wire: WireImpression, encoder: Encoder) -> Rows:
    """The rows that were logged with an impression, by this encoder, shape (n, width).

    Raises
    ------
    BadEvent
        If they are not as many as its items want, or not finite.
    """
    assert wire.encoded is not None
    data, n = wire.encoded.rows, len(wire.items)
    if len(data) != 4 * n * encoder.width:
        expected = f"expected {4 * n * encoder.width}, {n} items of {encoder.width} float32"
        raise BadEvent(Reason.BAD_FIELD, f"encoded.rows: {len(data)} bytes: {expected}")
    rows = np.frombuffer(data, "<f4").reshape(n, encoder.width)
    if encoder.flawed(rows).any():
        raise BadEvent(
            Reason.NON_FINITE_NUMBER, f"encoded.rows: item {int(encoder.flawed(rows).argmax())} is not finite"
        )
    return rows


def logged_with(model: Model, rows: Rows | None, places: Sequence[int]) -> WireEncoded | None:
    """What an impression says of the rows that items at some places were scored by; None without an encoder."""
    if rows is None or model.encoder is None:
        return None
    return WireEncoded(model.encoder.hash, rows[list(places)].astype("<f4").tobytes())


def _of_another(hash: str, encoder: Encoder, index: int) -> BadEvent:
    return BadEvent(
        Reason.OTHER_ENCODER,
        f"encoded.encoder: {hash}: expected {encoder.hash}, the model's, or items with what that one reads, "
        f"of which items[{index}] has nothing",
    )
