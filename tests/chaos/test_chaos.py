"""The short form of `make chaos`: every kind of fault at least once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import chaos


@pytest.mark.usefixtures("kafka_server", "redis_server")  # skips where the servers are missing
def test_under_fire_nothing_is_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    report = chaos(tmp_path, n_events=6_000, n_faults=19, seed=3)
    print(report.table())
    assert report.wrong == {}
    assert report.faults.total() == 19
    assert report.counts["store_rewound"] > 0, "no learner has noticed that the store stepped back"
    assert report.counts["replayed"] + report.counts["conflicts"] > 0, "no fault met an event on its way"


@pytest.mark.usefixtures("kafka_server", "redis_server")
def test_nodes_of_a_cluster_step_back_alone_and_nothing_is_lost(tmp_path: Path) -> None:
    report = chaos(tmp_path, n_events=3_000, n_faults=6, seed=5, learners=2, cluster=True)
    print(report.table())
    assert report.wrong == {}
    assert report.faults.total() == 6
    assert report.counts["store_rewound"] > 0
