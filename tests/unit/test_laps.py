"""Laps by a clock that the test turns."""

from __future__ import annotations

import pytest

from learner.laps import Laps


def test_each_moment_belongs_to_the_stage_that_ends_it_and_stages_that_come_again_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("learner.laps.time.perf_counter", lambda: now)
    laps = Laps()
    for seconds, stage in ((1, "read"), (2, "apply"), (4, "read")):
        now += seconds
        laps.lap(stage)
    now += 8
    assert laps.seconds == {"read": 5, "apply": 2}
    assert laps.total == 15
