"""Shares of the last hour, by a clock that the test turns."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.shares import HOUR_S, Shares


def unmatched(shares: Shares) -> tuple[float, bool]:
    return shares.above()["unmatched_clicks"]


def test_more_than_five_percent_of_an_hours_clicks_unmatched_is_a_warning_told_once() -> None:
    shares = Shares()
    with capture_logs() as logs:
        shares.add({"clicks": 960, "waiting_clicks": 40, "unmatched_clicks": 50}, 0.0)
        assert unmatched(shares) == (0.05, False)
        shares.add({"unmatched_clicks": 1}, 10.0)
        assert unmatched(shares) == (0.051, True)
        assert unmatched(shares) == (0.051, True)
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["unmatched_clicks"]


def test_what_was_an_hour_ago_no_longer_counts() -> None:
    shares = Shares()
    shares.add({"waiting_clicks": 500, "unmatched_clicks": 500}, 0.0)
    for minute in range(1, 60):
        shares.add({"clicks": 1}, minute * 60.0)
        assert unmatched(shares)[1]
    with capture_logs() as logs:
        shares.add({"clicks": 1}, HOUR_S)
        assert unmatched(shares) == (0.0, False)
    assert [one["event"] for one in logs] == ["no longer above its bound"]


@pytest.mark.parametrize(("kind", "of"), [("settled_early", "outcomes"), ("forgotten_early", "outcomes")])
def test_a_share_of_few_says_nothing(kind: str, of: str) -> None:
    shares = Shares()
    shares.add({of: 99, kind: 99}, 0.0)
    assert shares.above()[kind] == (1.0, False)
    shares.add({of: 1}, 0.0)
    assert shares.above()[kind] == (0.99, True)
