"""The short form of `make chaos`: every kind of fault at least once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import CUT, EMPTIED, TOPICS, Chaos, chaos
from tests.chaos.stream import BOT


def codecs(log: bytes) -> set[int]:
    """Of the batches of a segment, by their attributes."""
    found, at = set(), 0
    while length := int.from_bytes(log[at + 8 : at + 12], "big"):
        found.add(int.from_bytes(log[at + 21 : at + 23], "big") & 7)
        at += 12 + length
    return found


@pytest.mark.usefixtures("kafka_server", "redis_server")  # skips where the servers are missing
def test_under_fire_nothing_is_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    report = chaos(tmp_path, n_events=6_000, n_faults=19, seed=3)
    print(report.table())
    assert report.wrong == {}
    assert report.faults.total() == 19
    assert report.rewinds > 0, "no learner has noticed that the store stepped back"
    assert report.counts["replayed"] + report.counts["conflicts"] > 0, "no fault met an event on its way"
    assert 0 < report.scored_by_log < report.scored, "no predictions of one of the two kinds of users were scored"
    assert report.entries > 8, "no event about an item was in the log"
    assert report.models == 2


@pytest.mark.usefixtures("kafka_server", "redis_server")
@pytest.mark.parametrize("together", [False, True], ids=["users in several partitions", "users in one, items too"])
def test_nodes_of_a_cluster_step_back_alone_and_nothing_is_lost(tmp_path: Path, together: bool) -> None:
    report = chaos(tmp_path, n_events=3_000, n_faults=6, seed=5, learners=2, cluster=True, together=together)
    print(report.table())
    assert report.wrong == {}
    assert report.faults.total() == 6
    assert report.rewinds > 0
    assert report.scored > 0
    if together:
        # Each user's order is one that the log determines, and so are all sums.
        assert report.scored_by_log == report.scored


@pytest.mark.usefixtures("kafka_server", "redis_server")
def test_a_learner_under_a_bot_a_rewound_store_and_an_lz4_topic_at_once_loses_nothing(tmp_path: Path) -> None:
    one = Chaos(tmp_path, seed=17, learners=1, users=60, bot=True, compression="lz4")
    try:
        report = one.inject(1_800, [CUT, EMPTIED])
        print(report.table())
        assert report.wrong == {}
        assert report.rewinds > 0
        # Each of the three was there.
        assert sum(BOT.encode() in logged.value for logged in one.log) > 150
        # A batch that does not get smaller is sent as it is; 3 is lz4.
        segments = [path.read_bytes() for path in tmp_path.glob(f"kafka/kafka-data/{TOPICS[0]}-*/*.log")]
        assert [3 in codecs(one) for one in segments] == [True] * 4
    finally:
        one.close()
