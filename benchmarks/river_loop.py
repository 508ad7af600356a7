"""What one would write instead: a loop of kafka-python, `json.loads` and one River model a user."""

from __future__ import annotations

import json
import pickle
import time
from collections import deque
from typing import Any

from kafka import KafkaConsumer, TopicPartition


class RiverLoop:
    """Learns a logistic regression for each user by stochastic gradient, without uncertainty.

    A slate waits in memory for its clicks and is learnt once it is due: waiting slates are lost in a crash. With a
    `client` of Redis the models that changed are stored after each microbatch, as pickles; all are kept in memory too.
    """

    def __init__(self, bootstrap: str, topic: str, group: str, settle_age_ms: float, client: Any = None) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, max_partition_fetch_bytes=4 << 20,
            auto_offset_reset="earliest",
        )  # fmt: skip
        self._consumer.assign([TopicPartition(topic, 0)])
        self._settle_age_ms = settle_age_ms
        self._client = client
        self._models: dict[str, Any] = {}
        self._waiting: deque[dict[str, Any]] = deque()
        self._open: dict[str, dict[str, bool]] = {}

    def measure(self, warm: int, n: int, microbatch: int) -> dict[str, float]:
        """Seconds an event, of the processor and of the clock, of `n` events after `warm` others."""
        self._read(warm, 1_000)
        wall, cpu = time.perf_counter(), time.process_time()
        done = self._read(n, microbatch)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self._consumer.close()
        return {"cpu": cpu / done, "wall": wall / done}

    def _read(self, n: int, microbatch: int) -> int:
        seen = 0
        while seen < n:
            for records in self._consumer.poll(timeout_ms=200, max_records=microbatch).values():
                seen += len(records)
                changed: set[str] = set()
                for record in records:
                    changed |= self._event(json.loads(record.value))
                if self._client is not None and changed:
                    self._client.mset({user: pickle.dumps(self._models[user]) for user in changed})
                self._consumer.commit_async()
        return seen

    def _event(self, event: dict[str, Any]) -> set[str]:
        """Take an event in; returns the users who learnt."""
        if event["type"] == "click":
            if (clicked := self._open.get(event["request_id"])) is not None:
                clicked[event["item_id"]] = True
            return set()
        self._waiting.append(event)
        self._open[event["request_id"]] = {item["item_id"]: False for item in event["items"]}
        learnt = set()
        while self._waiting[0]["timestamp"] + self._settle_age_ms <= event["timestamp"]:
            learnt.add(self._learn(self._waiting.popleft()))
        return learnt

    def _learn(self, slate: dict[str, Any]) -> str:
        from river.linear_model import LogisticRegression

        user: str = slate["user_id"]
        model = self._models.get(user)
        if model is None:
            model = self._models[user] = LogisticRegression()
        clicked = self._open.pop(slate["request_id"])
        for item in slate["items"]:
            model.learn_one(item["features"], clicked[item["item_id"]])
        return user
