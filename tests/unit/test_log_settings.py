"""The settings of what a learner does with its log."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.environment import read_settings
from service.settings import SettingsError


def test_a_partition_that_cannot_be_read_waits_unless_told_to_skip() -> None:
    assert read_settings({}).reader_options["skip_unreadable"] is False
    assert read_settings({"FRESHET_UNREADABLE": "skip"}).reader_options["skip_unreadable"] is True
    with pytest.raises(SettingsError, match="FRESHET_UNREADABLE = 'ignore'"):
        read_settings({"FRESHET_UNREADABLE": "ignore"})


def test_a_loss_is_acknowledged_up_to_a_time_with_a_zone() -> None:
    found = read_settings({"FRESHET_LOSS_ACKNOWLEDGED": "2026-11-26T03:00:00Z"}).loss_acknowledged
    assert found == datetime(2026, 11, 26, 3, tzinfo=UTC)
    for wrong in ("yes", "2026-11-26T03:00:00"):
        with pytest.raises(SettingsError, match=f"FRESHET_LOSS_ACKNOWLEDGED = '{wrong}'"):
            read_settings({"FRESHET_LOSS_ACKNOWLEDGED": wrong})


def test_one_topic_for_both_types_is_read_once() -> None:
    both = read_settings({"FRESHET_IMPRESSIONS_TOPIC": "events", "FRESHET_CLICKS_TOPIC": "events"})
    assert both.topics == ["events"]
