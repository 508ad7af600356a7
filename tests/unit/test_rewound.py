"""A store that steps back is made good from the log: a file that is put back stands for every way to step back."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from learner.log import open_reader
from learner.log.position import Mark
from learner.loop import Learner
from learner.model.spec import load_model
from learner.progress import Progress
from learner.record import Record, decode_record
from learner.store.recent import RecentStore
from tests.rig import Around, SteppingBack, once, without_revision

MODEL = load_model('name = "t"\nhalf_life = "1d"\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000


class Rewound(SteppingBack):
    """Slates of three users."""

    def __init__(self, folder: Path, group: str = "g") -> None:
        super().__init__(folder, MODEL, group, max_messages=4)

    def send_slates(self, n: int) -> None:
        """Slates, each with a click on it, of three users in turn."""
        for _ in range(n):
            i = self.sent
            about = {"request_id": f"r{i}", "user_id": "abc"[i % 3], "timestamp": AT + i * 1_000}
            shown = {"type": "impression", **about, "items": [{"item_id": "a", "features": {"x": i / 10}}]}
            self.send(shown, {"type": "click", **about, "item_id": "a"})
            self.sent += 1

    def records(self) -> dict[str, bytes]:
        return without_revision(self.store, list("abc"), MODEL)

    def by_the_log_alone(self) -> dict[str, bytes]:
        """What another group comes to, whose store never stepped back."""
        other = Rewound(self.folder, f"other-{self.clock}-{self.sent}")
        other.turns(60)
        records = other.records()
        other.close()
        return records


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rewound]:
    one = Rewound(tmp_path)
    yield one
    one.close()


def rewound(turns: list[Progress]) -> int:
    return sum(turn.counts["store_rewound"] for turn in turns)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_store_that_steps_back_under_a_learner_is_noticed_before_anything_is_learnt_on_it(
    rig: Rewound, emptied: bool
) -> None:
    rig.send_slates(10)
    rig.turns(3)
    copy = None if emptied else rig.keep()
    rig.turns(5)
    rig.put_back(copy)
    before = rig.records()
    rig.send_slates(1)
    # The next microbatch is refused, though the time to compare positions has not come.
    (turn,) = rig.turns(1)
    assert rewound([turn]) == 1
    assert rig.records() == before
    after = rig.turns()
    # Nor does it learn on records that it remembers from before.
    assert sum(turn.counts["store_rewound"] + turn.counts["conflicts"] for turn in after) == 0
    assert rig.records() == rig.by_the_log_alone()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_store_that_steps_back_while_nothing_comes_is_noticed_when_positions_are_compared(
    rig: Rewound, emptied: bool
) -> None:
    rig.send_slates(6)
    rig.turns(1)
    copy = None if emptied else rig.keep()
    rig.turns(8)
    rig.put_back(copy)
    assert rewound(rig.turns(3)) == 0
    assert rewound(rig.turns(1, seconds=1.0)) == 1
    rig.turns()
    assert rig.records() == rig.by_the_log_alone()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_store_that_stepped_back_while_nobody_learnt_is_noticed_at_the_start(rig: Rewound, emptied: bool) -> None:
    rig.send_slates(6)
    rig.turns(1)
    copy = None if emptied else rig.keep()
    rig.turns(8, seconds=1.0)
    rig.learner.reader.close()
    rig.put_back(copy)
    rig.send_slates(2)
    rig.learner = rig.new_learner()
    turns = rig.turns()
    assert rewound(turns[:1]) == rewound(turns) == 1
    assert rig.records() == rig.by_the_log_alone()


def test_a_new_store_for_a_new_log_is_nothing_to_shout_about(rig: Rewound) -> None:
    rig.send_slates(3)
    assert rewound(rig.turns(seconds=1.0)) == 0
    assert rig.records() == rig.by_the_log_alone()


def test_a_store_that_steps_back_between_reading_records_and_writing_them_stores_nothing(rig: Rewound) -> None:
    rig.send_slates(8)
    rig.turns(2)
    copy = rig.keep()
    rig.turns(1)
    # Users are read anew, and are those from before the store stepped back: nothing in them is missing.
    rig.restart(RecentStore(Around(rig.store, "load", after=once(lambda: rig.put_back(copy)))))  # type: ignore[arg-type]
    assert rewound(rig.turns()) >= 1
    assert rig.records() == rig.by_the_log_alone()


def test_that_another_has_learnt_something_counts_only_if_it_is_so_when_the_position_moves(rig: Rewound) -> None:
    """A zombie writes, its work is read and found to be done, and then is lost."""
    armed: list[sqlite3.Connection] = []
    rig.restart(
        RecentStore(Around(rig.store, "positions", after=lambda: rig.put_back(armed.pop()) if armed else None))  # type: ignore[arg-type]
    )
    rig.send_slates(2)
    rig.turns(1)
    copy = rig.keep()
    rig.send_slates(2)
    zombie = Rewound(rig.folder, "zombie")
    zombie.learner = Learner(MODEL, rig.store, zombie.learner.reader, rig.log, poll_timeout_ms=0)
    zombie.turns(2)
    zombie.close()
    assert rig.records() == rig.by_the_log_alone()
    rig.learner.store.forget()
    armed.append(copy)
    (turn,) = rig.turns(1)
    assert not armed
    assert turn.counts["replayed"] > 0
    assert rewound(rig.turns(seconds=1.0)) == 1
    assert rig.records() == rig.by_the_log_alone()


def test_no_offset_is_committed_that_a_shard_has_not_reached(rig: Rewound) -> None:
    rig.send_slates(6)
    rig.turns(2, seconds=1.0)
    # Another bad event follows: no shard has anything of it.
    rig.send(b"not JSON")
    rig.turns(8, seconds=1.0)
    partition = next(iter(rig.learner.reader.held()))
    assert rig.store.positions([partition]) == [[b"0/12"]]
    other = open_reader(rig.log_url, ["events"], "g")
    assert other.assigned() == {partition: Mark(0, 12)}
    other.close()


def test_a_partition_that_was_anothers_meanwhile_is_not_moved_by_what_was_learnt_before(rig: Rewound) -> None:
    rig.send_slates(6)
    rig.turns(1, seconds=1.0)
    (partition,) = rig.learner.reader.held()
    copy = rig.keep()
    rig.turns(2)
    # It is ours again, from where it was committed; the store has stepped back to there, too.
    rig.put_back(copy)
    rig.learner.reader._ours.clear()  # type: ignore[attr-defined]
    rig.learner.reader.assigned()
    rig.learner.reader.seek(partition, Mark(0, 3))
    rig.learner.reader._ours.clear()  # type: ignore[attr-defined]
    rig.learner._begin([], Counter())
    rig.learner._commits.finish_now(rig.learner._positions.values())
    assert rig.store.positions([partition]) == [[b"0/3"]]
    rig.turns(seconds=1.0)
    assert rig.records() == rig.by_the_log_alone()


def test_a_learner_that_was_killed_leaves_no_position_beyond_what_is_applied(rig: Rewound) -> None:
    rig.send_slates(2)

    def die() -> None:
        raise KeyboardInterrupt

    rig.restart(Around(rig.store, "commit", after=die))
    with pytest.raises(KeyboardInterrupt):
        rig.turns()
    partition = next(iter(rig.learner.reader.held()))
    assert rig.store.positions([partition]) == [[b"0/3"]]
    assert rig.records() == rig.by_the_log_alone()
    rig.restart()
    rig.send_slates(2)
    turns = rig.turns()
    assert sum(turn.counts["replayed"] for turn in turns) == 4
    assert rig.records() == rig.by_the_log_alone()


def test_a_store_without_positions_for_a_log_says_nothing_of_it(rig: Rewound) -> None:
    rig.send_slates(1)
    rig.turns(1)
    (partition,) = rig.learner.reader.held()
    assert rig.store.positions([partition._replace(number=1)]) == [[b""]]


def test_an_erasure_in_the_log_survives_the_store(rig: Rewound) -> None:
    rig.send_slates(6)
    erasure = {"type": "erase", "user_id": "a", "timestamp": AT + 60_000}
    rig.send(erasure)
    rig.turns(seconds=1.0)
    erased = _record(rig, "a")
    assert (erased.erased_at, erased.n_events, len(erased.outcomes)) == (AT + 60_000, 0, 0)
    rig.put_back(None)
    assert rewound(rig.turns(seconds=1.0)) == 1
    assert _record(rig, "a")._replace(revision=0).erased_at == AT + 60_000
    assert _record(rig, "a").n_events == 0
    assert _record(rig, "b").n_events > 0
    # Repeated, it does not take what came after.
    rig.sent = 66
    rig.send_slates(1)
    rig.send(erasure)
    rig.turns()
    assert _record(rig, "a").n_events == 2


def _record(rig: Rewound, user: str) -> Record:
    (value,) = rig.store.load([user])
    assert value is not None
    return decode_record(value, MODEL, user)
