"""How far items are in feeds: what a store keeps of it, and its order."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from learner.feed import joined
from learner.feed_marks import is_before, least, pack, unpack
from learner.log.position import NOTHING, Mark
from learner.step.feed import TRANSITION, Transitions

MARKS = [NOTHING, *(Mark(*one) for one in product((0, 1, 7), (0, 3, 2**60)))]


def test_what_a_store_keeps_of_marks_is_these_marks_and_nothing_where_there_are_none() -> None:
    marks = np.array([[NOTHING, Mark(3, 2**60)], [NOTHING, NOTHING], [Mark(0, 0), Mark(1, 5)]], np.int64)
    held = pack(marks)
    assert [len(one) for one in held] == [32, 0, 32]
    assert np.array_equal(unpack(held, 2), marks)


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_in_the_order_of_epochs_and_then_of_offsets(mark: Mark) -> None:
    assert is_before(np.array(MARKS, np.int64), mark).tolist() == [one < mark for one in MARKS]


def test_feeds_are_read_behind_the_block_that_the_last_of_the_shards_has() -> None:
    cursors = [[Mark(0, 7), Mark(0, 2), NOTHING], [Mark(0, 5), Mark(0, 9), Mark(0, 1)]]
    assert least(np.array(cursors, np.int64)) == {0: 5, 1: 2, 2: 0}


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (2, 0, 5)])
def test_rows_of_blocks_are_joined_one_after_another(sizes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    some = []
    for n in sizes:
        row = np.zeros(n, TRANSITION)
        row["item"], row["event"] = generator.integers(1 << 60, size=(2, n))
        row["offset"] = generator.random(n)
        some.append(Transitions(row, generator.random((n, 2), np.float32)))
    found = joined(some, 2)
    assert found.row.tolist() == [one for block in some for one in block.row.tolist()]
    assert found.x.tolist() == [one for block in some for one in block.x.tolist()]
    assert found.x.shape == (sum(sizes), 2)
