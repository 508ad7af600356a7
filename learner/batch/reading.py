"""Logs at rest to events, as a learner reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from itertools import chain, islice
from typing import Any, NamedTuple

import msgspec

from learner.batch.in_turn import in_turn
from learner.batch.items import raw_items
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.parsing import Parsers
from learner.batch.raw import LogError, Raw, Reached, Ready, Skipped
from learner.batch.sources import files_of, is_a_file, raw_events, together
from learner.batch.users import chosen
from learner.events.microbatch import Microbatch
from learner.events.wire import BadEvent, Reason
from learner.model.spec import Model

__all__ = ["LogAtRest", "LogError", "Piece", "Skipped", "raw_events", "read_events", "read_with_raws"]


class LogAtRest(NamedTuple):
    """Which logs, and which users of them.

    Attributes
    ----------
    sources
        Files (``.jsonl``, ``.json``, ``.ndjson``, ``.parquet``, the first three also with ``.gz`` or ``.zst``, an event
        a line or one array), folders of such files and folders, patterns such as ``day=*/*.parquet``, files and
        folders of a store such as ``s3://bucket/day=1``, or
        ``kafka://host:port`` and ``sqlite:///path``, which are read from the beginning to now.
    topics
        What to read of a Kafka or SQLite log.
    kafka
        Options of kafka-python, for example for its security.
    items_topic
        That of the catalog, if it has one of its own: there a record without a value removes an item. What items leave
        to the catalog is what the logs have said of them before.
    table
        A table of items, which is read before all logs, and is older than what they say.
    share, seed
        Of the users; see `chosen`.
    with_told
        Whether to keep what events say to an evaluation of policies alone, as of `Microbatch.told`.
    """

    sources: tuple[str, ...]
    model: Model
    topics: tuple[str, ...] = ()
    kafka: Mapping[str, Any] = {}
    items_topic: str = ""
    table: str | None = None
    share: float = 1.0
    seed: int = 0
    with_told: bool = False

    def events(
        self,
        advance: Callable[[int, float | None], object] = lambda n, of: None,
        skipped: Skipped | None = None,
        processes: bool = True,
    ) -> Generator[Microbatch]:
        """Every event of the logs, source by source, whoever's; see `read_with_raws`."""
        with closing(read_with_raws(self, advance, skipped, processes)) as pieces:
            for piece in pieces:
                batch = piece.batch.without_catalog()
                yield batch if self.with_told else batch._replace(told=())

    def chosen(self, user_id: str) -> bool:
        """Whether a user is one of those."""
        return self.share >= 1.0 or chosen(user_id, self.share, self.seed)

    def pieces(self) -> list[LogAtRest]:
        """What may be read side by side, in the order of the log: each file; with a catalog all of it as one."""
        if self.model.catalog is not None:
            return [self]
        sources = [map(str, files_of(one)) if is_a_file(one) else [one] for one in self.sources]
        return [self._replace(sources=(one,)) for one in chain(*sources)]


# Behind the first event with a foreign feature, to name all of them at once.
_EVENTS_LOOKED_AT = 10_000


def read_events(
    sources: Sequence[str],
    model: Model,
    topics: Sequence[str] = (),
    advance: Callable[[int, float | None], object] = lambda n, of: None,
    skipped: Skipped | None = None,
) -> Generator[Microbatch]:
    """Every event of some logs, with all that it says; see `LogAtRest`."""
    return LogAtRest(tuple(sources), model, tuple(topics), with_told=True).events(advance, skipped)


class Piece(NamedTuple):
    """Some events: of which source, None of a table of items; as they stand there; and as they are read."""

    source: str | None
    raws: Sequence[Raw]
    batch: Microbatch


def read_with_raws(
    log: LogAtRest,
    advance: Callable[[int, float | None], object] = lambda n, of: None,
    skipped: Skipped | None = None,
    processes: bool = True,
    offsets: OffsetColumns | None = None,
) -> Generator[Piece]:
    """Every event of the logs, with what these say of each beside it, and with what events say of the catalog.

    Close it, if it is not read to its end.

    Parameters
    ----------
    advance
        Called with the number of events read, and about how many there are in all, None while nobody knows.
    skipped
        Where to count the events that a learner would dead-letter, and files and row groups that cannot be read, which
        are then passed over. None: the first of them is an error.
    processes
        Whether a long log may be read in processes beside this one.
    offsets
        Columns of Parquet files that say where events stand in Kafka; every source has to say that then.

    Raises
    ------
    LogError
        At the first event that does not fit the model: a prior fitted on the rest would be of another population. Of
        unknown features the message names those of many events, and what the model has and they have not. Also if a
        source cannot be read.
    """
    model = log.model
    n = 0

    def opened(source: str | None, reached: Reached) -> Generator[Raw] | Generator[Raw | Ready]:
        if source is None:
            return raw_items(log.table or "", model, reached)
        return raw_events(source, model, log.topics, log.kafka, reached, log.items_topic, skipped, offsets)

    parts = [*([] if log.table is None or model.catalog is None else [None]), *log.sources]
    with Parsers(model, processes) as parsers:
        for i, source in enumerate(parts):
            here = Reached()
            # A generator that holds a connection must be closed here and now: when Python ends, kafka-python's own
            # thread is gone, and closing its consumer would wait for it without end.
            with closing(opened(source, here)) as raws:
                chunks = together(raws)
                for some, parsed, following in in_turn(parsers.submit, chunks):
                    for at, why in sorted(parsed.bad.items()):
                        if skipped is None:
                            rest = chain(some[at:], *following, *chunks)
                            raise LogError(f"{some[at].place}: {why.reason.value}: {why}{_misfit(why, rest, model)}")
                        skipped.note(some[at].place, why)
                    yield Piece(source, some, parsed.batch)
                    n += len(some)
                    share = (i + here.share) / len(parts)
                    advance(len(some), n / share if share else None)


class _Item(msgspec.Struct):
    """What tells which features a log has, whatever else is wrong with it."""

    features: dict[str, msgspec.Raw] = {}


class _Slate(msgspec.Struct):
    items: list[_Item] = []


def _misfit(why: BadEvent, raws: Iterable[Raw], model: Model) -> str:
    """How the features of these events differ from the model's, if one of them is unknown."""
    if why.reason is not Reason.UNKNOWN_FEATURE or str(why).startswith("context"):
        return ""
    items: Counter[str] = Counter()
    for raw in islice(raws, _EVENTS_LOOKED_AT):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            sent = raw.value if isinstance(raw.value, bytes) else b""
            items.update(name for item in msgspec.json.decode(sent, type=_Slate).items for name in item.features)
    unknown = [f"{name} ({n:,} items)" for name, n in sorted(items.items()) if name not in model.item_features]
    absent = [name for name in model.item_features if name not in items]
    return f"; from there on the log has {', '.join(unknown)}, which model {model.name!r} has not" + (
        f", and lacks {', '.join(absent)}" if absent else ""
    )
