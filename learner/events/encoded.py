"""The encoded rows of impressions: those that were logged with them, else what the model's encoder makes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
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
    lengths = [len(wire.items) for wire in wires]
    of_item = np.repeat(np.arange(len(wires)), lengths)
    rows = np.zeros((len(of_item), encoder.width), np.float32)
    refused: dict[int, BadEvent] = {}
    logged = {k for k, one in enumerate(wires) if one.encoded is not None and one.encoded.encoder == encoder.hash}
    for k in logged:
        try:
            rows[of_item == k] = logged_rows(wires[k], encoder)
        except BadEvent as exc:
            refused[k] = exc
    to_make = [k not in logged for k in of_item]
    if any(to_make):
        some = [k not in logged for k in range(len(wires))]
        shown = None if requests is None else Shown(*(list(compress(one, some)) for one in requests))
        values = model.design.values(encoder.names, list(compress(features, to_make)), shown)
        made = encoder.rows(list(compress(ids, to_make)), values)
        places = np.flatnonzero(to_make)
        for i in np.flatnonzero(encoder.flawed(made)).tolist():
            k = int(of_item[places[i]])
            index = int(places[i]) - sum(lengths[:k])
            refused[k] = BadEvent(Reason.NON_FINITE_NUMBER, f"items[{index}]: {unsound(encoder)}")
        if encoder.names:
            lacks = np.array([all(one is None for one in said) for said in zip(*values, strict=True)], np.bool_)
            for i in np.flatnonzero(lacks).tolist():
                k = int(of_item[places[i]])
                if (theirs := wires[k].encoded) is not None:
                    index = int(places[i]) - sum(lengths[:k])
                    refused[k] = _of_another(theirs.encoder, encoder, index)
        rows[places] = made
    rows[np.isin(of_item, list(refused))] = 0.0
    remade = sum(one.encoded is not None for k, one in enumerate(wires) if k not in logged)
    return Encoded(rows, refused, Encodings(len(logged), len(wires) - len(logged) - remade, remade))


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
