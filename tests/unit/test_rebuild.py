"""A store rebuilt from a log at rest is what a learner makes of that log, and learners go on from it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from learner.batch.filling import fill
from learner.batch.histories import Histories
from learner.batch.loading import Loading, NotEmpty
from learner.batch.reading import read_with_raws
from learner.log.position import Mark, Partition
from learner.model.spec import Model, load_model
from learner.record.sums import HourSums
from learner.store import Store, StoreUnavailable, Transaction, open_store
from learner.store.rebuild import UnfinishedRebuild
from tests.rig import Around, Rig, once, without_revision
from tests.unit.test_side_by_side import SPEC, stream

PLAIN = load_model(SPEC.format(name="m", half_life="7d", variance=1.0, more="[quality]\nusers = 1.0"))
WITH_ITEMS = load_model(SPEC.format(name="m", half_life="7d", variance=1.0, more="[effects.item]"))
ORIGIN = 7


def rebuilt(rig: Rig, store: object, origin: int = ORIGIN, rate: float = 0.0) -> dict[Partition, Mark]:
    """A store rebuilt from the rig's log, and where that ends."""
    model, width = rig.model, 0 if rig.model.item is None else rig.model.item.d
    with Histories(model.width, width) as log:
        with closing(read_with_raws([rig.log_url], model, rig.topics)) as pieces:
            log.read(pieces)
        loading = Loading(store, origin, rate)  # type: ignore[arg-type]
        ends = loading.begin(log.ends)
        log.cut(ends)
        if not loading.is_whole:
            fill(loading, store, model, log, ends)  # type: ignore[arg-type]
        return ends


def records(store: Store, model: Model) -> dict[str, dict[str, bytes]]:
    effects = [model, *([] if model.item is None else [model.item])]
    return {
        one.key: without_revision(store, sorted(id for part in store.scan(one.key) for id, _ in part), one)
        for one in effects
    }


def sums(store: Store) -> list[tuple[int, int, list[int]]]:
    return sorted((one.group, one.hour, one.cells.tolist()) for one in store.sums())


def learn_all(rig: Rig, turns: int = 40) -> None:
    learner = rig.new_learner()
    for _ in range(turns):
        rig.clock += 2.0
        learner.turn()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'other.db'}", 10**9)) as store:
        yield store


@pytest.mark.parametrize("model", [PLAIN, WITH_ITEMS], ids=["users", "items too"])
def test_a_rebuilt_store_has_the_bytes_of_a_learner_that_read_the_same_log(
    tmp_path: Path, other: Store, model: Model
) -> None:
    rig = Rig(tmp_path, model, max_messages=17)
    rig.send(*stream(400))
    learn_all(rig)
    ends = rebuilt(rig, other)
    expected = records(rig.store, model)
    assert len(expected["user"]) == 9
    assert records(other, model) == expected
    assert sums(other) == sums(rig.store)
    assert other.positions(list(ends)) == rig.store.positions(list(ends))
    rig.close()
