"""What one member of the group has done with its partitions: committed once every model's store has it.

The log is read once for all models that learn from it. So the reader stands, in each partition, no further than the
model whose store has the least of it; the others skip what they have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from learner.log import Message, Reader
from learner.log.position import NOTHING, Partition
from learner.positions import Positions, last_of

log = structlog.get_logger("freshet.learner")


@dataclass
class Commits:
    """The offsets of one member.

    Attributes
    ----------
    reader
        Whose they are.
    interval_s
        How often positions are compared, and offsets committed.
    clock
        Seconds that never step back.
    """

    reader: Reader
    interval_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    _in_hand: Sequence[Message] = field(default=(), init=False)
    # The last message dealt with of each partition, until its offset is committed.
    _done: dict[Partition, Message] = field(default_factory=dict, init=False)
    _committed_at: float = field(default=-float("inf"), init=False)
    _committing: bool = field(default=True, init=False)

    def begin(self, messages: Sequence[Message], models: Collection[Positions]) -> None:
        """Take a microbatch in hand, and tell all models which partitions have become ours."""
        self._in_hand = messages
        gained = self.reader.assigned()
        for partition in gained:
            # Dealt with before it was another's: what shards hold of it now is not what they held then.
            self._done.pop(partition, None)
        for one in models:
            one.gain(gained)

    def finish(self, models: Collection[Positions]) -> bool:
        """The microbatch is dealt with. When it is time, bring all positions up to here, and commit.

        False if the log is known not to have taken what was committed.

        Raises
        ------
        StoreRewound
            If a shard holds less than it held. Nothing is committed.
        """
        self._done |= {message.position.partition: message for message in self._in_hand}
        self._in_hand = ()
        if self.clock() - self._committed_at >= self.interval_s:
            self.finish_now(models)
        return self._committing

    def finish_now(self, models: Collection[Positions]) -> None:
        """As `finish`, without waiting for the time."""
        goals, held = last_of(self._done.values()), self.reader.held()
        # Of all models, also behind one that is not there yet.
        there = [one.bring_up(goals, held) for one in models]
        if all(there):
            self._committing = self.reader.commit(list(self._done.values()))
            self._done = {}
            self._committed_at = self.clock()

    def rewind(self, rewound: Mapping[str, Collection[Partition]], models: Mapping[str, Positions]) -> None:
        """Go back in the partitions in which models' stores have stepped back, and in what is in hand.

        To what all shards of all models have; `rewound` and `models` are by the model's name.
        """
        for one in models.values():
            one.drop()
        for name, partitions in rewound.items():
            for partition in partitions:
                least = models[name].least(partition)
                log.error(
                    "store_rewound",
                    model=name,
                    topic_id=partition.topic_id.hex(),
                    partition=partition.number,
                    reading_from="the log's beginning" if least == NOTHING else least.offset + 1,
                    **({"means": "all models of this learner wait for it"} if len(models) > 1 else {}),
                )
        back = {partition for partitions in rewound.values() for partition in partitions}
        for partition in back | last_of(self._in_hand).keys():
            self.reader.seek(partition, min(one.least(partition) for one in models.values()))
            self._done.pop(partition, None)
        self._in_hand = ()
