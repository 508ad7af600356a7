"""Reading partitions side by side, on queues that are filled by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import merge

from hypothesis import given
from hypothesis import strategies as st

from learner.log import Entry
from learner.log.in_time_order import MAX_SKEW_MS, NEVER, take_in_time_order, times


class Pile:
    """A partition: what is at hand, and what is still in the log."""

    def __init__(self, at_hand: list[float], still: int = 0) -> None:
        self.at_hand, self.still = deque(at_hand), still
        self.last = NEVER

    def head(self) -> float | None:
        return self.at_hand[0] if self.at_hand else None

    def take(self, until: float, limit: int) -> list[float]:
        run = [self.at_hand.popleft()]
        while self.at_hand and len(run) < limit and self.at_hand[0] <= until:
            run.append(self.at_hand.popleft())
        self.last = run[-1]
        return run

    def is_behind(self) -> bool:
        return self.still > 0

    def reached(self) -> float:
        return self.last


def one_by_one(piles: Sequence[Pile], limit: int = 1_000) -> list[tuple[Pile, float]]:
    return [(pile, time) for pile, run in take_in_time_order(piles, limit) for time in run]


def taken(*piles: Pile) -> list[float]:
    return [time for _, time in one_by_one(piles)]


TIMES = st.lists(st.lists(st.integers(1, 50)), max_size=5)


@given(TIMES, st.integers(0, 100))
def test_all_at_hand_is_merged_by_the_heads_and_no_partition_changes_its_order(
    partitions: list[list[int]], limit: int
) -> None:
    expected = list(merge(*partitions))[:limit] if all(part == sorted(part) for part in partitions) else None
    piles = [Pile(list(part)) for part in partitions]
    found = one_by_one(piles, limit)
    assert len(found) == min(limit, sum(map(len, partitions)))
    for pile, part in zip(piles, partitions, strict=True):
        mine = [time for queue, time in found if queue is pile]
        assert mine == part[: len(mine)]
    if expected is not None:
        assert [time for _, time in found] == expected


@given(st.lists(st.lists(st.integers(1, 10_000)).map(sorted), min_size=2, max_size=5), st.data())
def test_none_is_read_further_ahead_of_one_that_is_behind_than_the_skew(
    partitions: list[list[int]], data: st.DataObject
) -> None:
    piles = [Pile(part, still=data.draw(st.integers(0, 1))) for part in partitions]
    behind = {}
    for queue, run in take_in_time_order(piles, 10_000):
        assert all(time <= reached + MAX_SKEW_MS for time in run for reached in behind.values())
        if queue.head() is None and queue.is_behind():
            behind[id(queue)] = run[-1]
    left = [pile for pile in piles if pile.at_hand]
    waited_for = [pile for pile in piles if pile.is_behind() and not pile.at_hand]
    assert not left or waited_for


def test_a_partition_that_was_never_read_and_is_behind_holds_all_others() -> None:
    assert taken(Pile([5.0, 6.0]), Pile([], still=1)) == []


def test_a_partition_at_its_end_holds_nobody() -> None:
    assert taken(Pile([5.0, 9e12]), Pile([1.0])) == [1.0, 5.0, 9e12]


def test_of_equally_old_records_the_earlier_partitions_comes_first() -> None:
    one, two = Pile([5.0, 5.0]), Pile([5.0])
    assert [queue for queue, _ in one_by_one([one, two])] == [one, one, two]


def test_records_without_a_time_wait_for_nothing() -> None:
    assert taken(Pile([7.0, NEVER, 8.0]), Pile([NEVER])) == [NEVER, 7.0, NEVER, 8.0]


def test_entries_of_several_topics_are_stamped_in_the_order_they_were_given() -> None:
    entries = [Entry(topic, None, b"") for topic in "aabba"]
    assert times(entries, 100) == [100, 100, 101, 101, 102]
    assert times([], 100) == []
