"""Raw events to microbatches: here, or of a long log in processes beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from learner.batch.raw import Raw, Ready
from learner.events.catalog import LogEntries
from learner.events.future import refuse_from_the_future, times_in_log
from learner.events.parse import parse_events
from learner.events.parsed import Parsed
from learner.events.wire import BadEvent
from learner.model.spec import Model

CORES = 2
# Of a log that is read sooner, processes would be started in vain.
_HERE = 16


class Parsers:
    """Reads raw events as a learner does; a context.

    What a catalog says depends on all that the log has said before, so with one events are read here, one after
    another. So they are with a schema registry, whose schemas are fetched once, with an encoder that counts, and
    without `processes`.
    """

    def __init__(self, model: Model, processes: bool = True) -> None:
        self._model = model
        self._entries = None if model.catalog is None else LogEntries(model.catalog)
        stateless = model.catalog is None and (model.encoder is None or model.encoder.is_stateless)
        self._left = _HERE if processes and stateless and model.unframed is None else None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Parsers:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, raws: Sequence[Raw]) -> Future[Parsed]:
        """Give some away to be read."""
        done: Future[Parsed] = Future()
        if isinstance(raws, Ready):
            done.set_result(Parsed(raws.batch, {}))
            return done
        if self._left == 0:
            if self._pool is None:
                # Threads and connections of this process are no business of theirs.
                self._pool = ProcessPoolExecutor(CORES, get_context("spawn"), _begin, (self._model,))
            return self._pool.submit(_parse_there, raws)
        self._left = None if self._left is None else self._left - 1
        done.set_result(parse(raws, self._model, self._entries))
        return done


def parse(raws: Sequence[Raw], model: Model, entries: LogEntries | None = None) -> Parsed:
    """The events, and why others are none: as a learner has it."""
    came_at = times_in_log([raw.came_at for raw in raws])
    if entries is not None:
        entries.until = int(came_at.max(initial=0)) + model.max_ahead_ms
    # Of a row that is no event there is nothing to read.
    values = [raw.value if isinstance(raw.value, bytes) else b"" for raw in raws]
    parsed = parse_events(values, model, [raw.record for raw in raws] if model.record else (), entries)
    for at, raw in enumerate(raws):
        if isinstance(raw.value, BadEvent):
            parsed.refuse(at, raw.value)
    refuse_from_the_future(parsed, came_at, model)
    return parsed


_model: Model


def _begin(model: Model) -> None:
    global _model
    _model = model


def _parse_there(raws: Sequence[Raw]) -> Parsed:
    return parse(raws, _model)
