"""The short form of `make chaos`: every kind of fault at least once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import chaos


@pytest.mark.usefixtures("kafka_server", "redis_server")  # skips where the servers are missing
def test_under_fire_nothing_is_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    report = chaos(tmp_path, n_events=6_000, n_faults=16, seed=3)
    print(report.table())
    assert report.wrong == {}
    assert report.faults.total() == 16
    assert report.counts["replayed"] + report.counts["conflicts"] > 0, "no fault met an event on its way"
