"""The process of one side of a comparison: requests and answers are lines of JSON.

Run in the environment of a `benchmarks.against.tree.Tree`; the argument is the file of its adapter.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis


class Side:
    """What can be asked; `adapter` has the names of `benchmarks.adapter`."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        # Of each case: model, events, the records of their users.
        self._cases: dict[str, tuple[Any, list[bytes], list[bytes | None]]] = {}

    def about(self) -> dict[str, str]:
        """How this revision's processes are started."""
        return {"command": self._adapter.COMMAND, "service": self._adapter.SERVICE}

    def prepare(self, case: str, model: str, history: str, events: str) -> dict[str, float]:
        """Learn a history, so that `apply` and `whole` have returning users; the paths are of JSON lists of events."""
        spec = self._adapter.load_model(model)
        stored: dict[str, bytes | None] = {}
        before, timed = _raws(history), _raws(events)
        for start in range(0, len(before), 1_000):
            self._learn(spec, stored, before[start : start + 1_000], start)
        user_ids = self._adapter.parsed(spec, timed)[0]
        records = [stored.get(user_id) for user_id in user_ids]
        self._cases[case] = spec, timed, records
        return {"events": len(timed), "users": len(records), "bytes": sum(len(one or b"") for one in records)}

    def apply(self, case: str) -> dict[str, float]:
        """From the bytes of records and events that were read to the bytes of records."""
        spec, events, records = self._cases[case]
        batch = self._adapter.parsed(spec, events, 1 << 20)
        return _timed(lambda: self._adapter.step(spec, records, batch))

    def whole(self, case: str) -> dict[str, float]:
        """From the bytes of records and of events to the bytes of records."""
        spec, events, records = self._cases[case]
        return _timed(lambda: self._adapter.step(spec, records, self._adapter.parsed(spec, events, 1 << 20)))

    def store(self, model: str, events: str, store: str, pending: bool) -> int:
        """Learn these events and store the records; returns the bytes of the last one."""
        spec = self._adapter.load_model(model)
        stored: dict[str, bytes | None] = {}
        self._learn(spec, stored, _raws(events), 0)
        if not pending:
            stored = {user_id: self._adapter.nothing_pending(spec, value) for user_id, value in stored.items()}
        opened = self._adapter.open_store(store, 86_400)
        self._adapter.write(opened, dict(stored))
        opened.close()
        return len(stored.popitem()[1] or b"")

    def _learn(self, spec: Any, stored: dict[str, bytes | None], raws: list[bytes], start: int) -> None:
        batch = self._adapter.parsed(spec, raws, start)
        after = self._adapter.step(spec, [stored.get(user_id) for user_id in batch[0]], batch)
        stored |= {user_id: value for user_id, value in zip(batch[0], after, strict=True) if value is not None}

    def learn(
        self, model: str, log: str, topic: str, store: str, group: str, warm: int, n: int, microbatch: int
    ) -> dict[str, float]:
        """Read `warm` events of a topic in large microbatches, then measure while it reads `n` more in small ones."""
        server = redis.Redis.from_url(store)
        server.flushdb()
        loop = self._adapter.learner(self._adapter.load_model(model), store, log, topic, group)
        _read(loop, warm)
        loop.max_messages = microbatch
        gc.collect()
        used, wall, cpu = redis_cpu_s(server), time.perf_counter(), time.process_time()
        done = _read(loop, n)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        used = redis_cpu_s(server) - used
        loop.reader.close()
        server.close()
        return {"cpu": cpu / done, "wall": wall / done, "redis": used / done}


def _read(loop: Any, n: int) -> int:
    seen = 0
    while seen < n:
        seen += loop.turn().messages
    return seen


def redis_cpu_s(client: Any) -> float:
    """Processor time that a Redis has used so far."""
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _raws(path: str) -> list[bytes]:
    return [one.encode() for one in json.loads(Path(path).read_text())]


def _timed(call: Callable[[], object], at_least_s: float = 0.05) -> dict[str, float]:
    """Seconds of a call, of the processor and of the clock; the first is not counted."""
    call()
    gc.collect()
    gc.disable()
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.process_time() - cpu < at_least_s:
        call()
        calls += 1
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gc.enable()
    return {"cpu": cpu / calls, "wall": wall / calls}


def main() -> None:
    """Answer until the input ends."""
    found = importlib.util.spec_from_file_location("adapter_of_this_side", sys.argv[1])
    assert found is not None
    assert found.loader is not None
    adapter = importlib.util.module_from_spec(found)
    found.loader.exec_module(adapter)
    side = Side(adapter)
    # What a library may print is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(side, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
