"""`freshet up` on a disk that fills up and is then freed: what was accepted is learnt, once."""

from __future__ import annotations

import json
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_embedded import ITEMS, Embedded
from tests.servers import eventually

USERS = 20


def events(batch: int) -> list[dict[str, Any]]:
    """One impression for each user."""
    now = time.time_ns() // 1_000_000
    return [
        {"type": "impression", "request_id": f"r{batch}", "user_id": f"u{i}", "timestamp": now, "items": ITEMS}
        for i in range(USERS)
    ]


def refused(up: Embedded, batch: int) -> tuple[int, str] | None:
    """The status and code with which a batch is refused; None if it is accepted."""
    try:
        assert up.call("/events", events(batch)) == {"accepted": USERS, "rejected": 0, "errors": []}
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.loads(exc.read())["error"]["code"]
    return None


@pytest.mark.parametrize("rush", [False, True])
def test_a_full_disk_is_told_clearly_and_once_it_is_freed_nothing_is_lost_or_doubled(
    tmp_path: Path, small_disk: Path, rush: bool
) -> None:
    up = Embedded(tmp_path)
    up.file = small_disk / "f.db"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    up.start()
    try:
        batch = 0
        while (error := refused(up, batch)) is None:
            batch += 1
            assert batch < 2_000, "the disk does not fill up"
            if not rush:
                # Learnt as it comes: then it may as well be the learner whose write is the first to fail.
                eventually(lambda batch=batch: through(up, batch) or is_full(up), 20, "the batch is learnt")
        assert error == (503, "log_unavailable")
        assert batch > 3
        # It goes on being refused, whole; and the process lives, answers and says why.
        for _ in range(20):
            if refused(up, batch) is None:
                batch += 1
        assert up.call("/health/live")["status"] == "ok"
        assert up.call("/score", {"user_id": "u0", "items": ITEMS})["user_known"] in (True, False)
        assert is_full(up)
        assert "Traceback" not in (tmp_path / "up.log").read_text()
        filler.unlink()
        eventually(lambda: through(up, batch), 40, "all that was accepted is learnt, once")
        assert refused(up, batch) is None
        eventually(lambda: through(up, batch + 1), 20, "and so is what was refused, once sent again")
        assert up.stop() == 0
        up.start()
        assert through(up, batch + 1)
    finally:
        if up.process is not None and up.process.poll() is None:
            up.stop()


def through(up: Embedded, batches: int) -> bool:
    """Whether each user has exactly the events of so many batches; none may have more."""
    counts = [up.call(f"/users/u{i}/posterior")["posterior"]["n_events"] for i in range(USERS)]
    assert max(counts) <= batches
    return min(counts) == batches


def is_full(up: Embedded) -> bool:
    return "database or disk is full" in (up.folder / "up.log").read_text()
