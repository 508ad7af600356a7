from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from learner.busy import BusyUsers
from learner.dead_letter import LARGE_BYTES, LARGE_BYTES_A_MINUTE, DeadLetters
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import Entry, Message
from learner.log.position import Partition, Position
from learner.model.spec import load_model
from learner.record import decode_record
from tests.rig import SteppingBack, without_revision

MODEL = load_model('name = "t"\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000


def event(user: str, i: int, kind: str = "impression") -> bytes:
    ids = {"type": kind, "request_id": f"r{i}", "user_id": user, "timestamp": AT}
    more: dict[str, object] = {"items": [{"item_id": "a"}]} if kind == "impression" else {"item_id": "a"}
    return json.dumps({**ids, **more}).encode()


def test_of_a_busy_user_so_many_slates_a_minute_of_the_log_are_taken_and_all_of_everyone_elses() -> None:
    busy = BusyUsers(2)
    raws = [event("bot", i) for i in range(4)] + [event("bot", 9, "click"), event("ann", 1)]
    parsed = parse_events(raws, MODEL)
    busy.refuse(parsed, np.full(6, 60_000 * 5))
    assert {place: why.reason for place, why in parsed.bad.items()} == {2: Reason.TOO_BUSY, 3: Reason.TOO_BUSY}
    assert [len(places) for _, places in by_user(parsed.batch)] == [3, 1]
    # The same minute in a later microbatch counts on; the next one begins anew.
    for came_at, refused in ((60_000 * 6 - 1, 1), (60_000 * 6, 0)):
        again = parse_events([event("bot", 20)], MODEL)
        busy.refuse(again, np.full(1, came_at))
        assert len(again.bad) == refused


def test_what_a_busy_user_had_learnt_is_learnt_again_once_the_store_has_stepped_back(tmp_path: Path) -> None:
    rig, other = (SteppingBack(tmp_path, MODEL, group, max_slates_per_minute=2) for group in "ab")
    rig.send(*(event(user, i) for i in range(4) for user in ("bot", "ann")))
    rig.turns(3)
    rig.put_back(None)
    rig.send(event("cid", 1))
    assert sum(turn.counts["store_rewound"] for turn in rig.turns()) == 1
    other.turns()
    users = ["bot", "ann", "cid"]
    learnt = without_revision(rig.store, users, MODEL)
    assert learnt == without_revision(other.store, users, MODEL)
    assert decode_record(learnt["bot"], MODEL, "bot").n_events >= 2
    for one in (rig, other):
        one.close()


def test_without_a_bound_nobody_is_too_busy() -> None:
    parsed = parse_events([event("bot", i) for i in range(500)], MODEL)
    BusyUsers(0).refuse(parsed, np.full(500, AT))
    assert not parsed.bad


class Log:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def append(self, entries: list[Entry]) -> None:
        self.entries += entries

    def close(self) -> None: ...


def test_of_a_flood_of_large_bad_events_so_many_bytes_a_minute_are_written_and_the_rest_is_told_by_its_place() -> None:
    """334 records of 900 kB, as a compressed batch of a few kilobytes may hold them."""
    log, seconds = Log(), [0.0]
    letters = DeadLetters(log, clock=lambda: seconds[0])  # type: ignore[arg-type]
    place = Partition(bytes(16), 0)
    large = [Message("t", Position(place, i), None, bytes(900_000), 1) for i in range(334)]
    small = Message("t", Position(place, 500), None, bytes(LARGE_BYTES), 1)
    why = BadEvent(Reason.NOT_JSON, "no")
    letters.bury(letters.of([*large, small], dict.fromkeys(range(len(large) + 1), why)))
    assert len(log.entries) == 335
    written = sum(len(entry.value) for entry in log.entries[:-1])
    assert LARGE_BYTES_A_MINUTE - 900_000 < written <= LARGE_BYTES_A_MINUTE
    assert log.entries[-1].value == small.value
    without = log.entries[-2]
    assert not without.value
    assert dict(without.headers)["body"].startswith(b"900000 bytes, more than")
    assert dict(without.headers)["offset"] == b"333"
    seconds[0] = 60.0
    assert letters.of(large[:1], {0: why})[0].value
