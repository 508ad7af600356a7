"""The writing end of the log on Kafka, by kafka-python."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.net.compat import KafkaNetClient

from learner.log import Entry
from learner.log.in_time_order import times
from learner.log.kafka_client import CLIENT_OPTIONS, translated

DELIVERY_TIMEOUT_MS = 10_000
CONNECTING_MS = 100


class Client(KafkaNetClient):  # type: ignore[misc]
    """kafka-python's client, of which a producer waits for a broker that it is being connected to.

    As of 3.0.12 a producer polls for no time at all while its connection is under way, and takes the seconds of a
    backoff for ms (its issue 1907): with a broker that accepts and does not answer it took 77 % of the interpreter.
    """

    def connection_delay(self, node_id: int) -> float:
        """How many ms to wait for a broker at most; what happens to its connection ends the wait."""
        delay = 1000 * super().connection_delay(node_id)
        return delay if delay > 0 or self.is_ready(node_id) else CONNECTING_MS


class KafkaLog:
    """See `learner.log.EventLog`. Connects at the first append, so that its owner can start while Kafka is away."""

    def __init__(self, servers: str, options: Mapping[str, Any]) -> None:
        self._servers = servers
        self._options = options
        self._lock = threading.Lock()
        self._producer: Any = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Send all entries and wait until every in-sync replica has them."""
        with translated():
            producer = self._connected()
            sent = [
                producer.send(
                    entry.topic, key=entry.key, value=entry.value, headers=list(entry.headers), timestamp_ms=at
                )
                for entry, at in zip(entries, times(entries, time.time_ns() // 1_000_000), strict=True)
            ]
            for future in sent:
                future.get(timeout=DELIVERY_TIMEOUT_MS / 1000)

    def close(self) -> None:
        """Close the producer, if one was made."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=DELIVERY_TIMEOUT_MS / 1000)

    def _connected(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=self._servers.split(","),
                    kafka_client=Client,
                    acks="all",
                    # An idempotent producer of kafka-python is done for after any refusal, one event too large
                    # included. Repeats change nothing here; one request at a time keeps the order.
                    enable_idempotence=False,
                    max_in_flight_requests_per_connection=1,
                    linger_ms=0,
                    # A dead letter may be an event larger than any that is taken.
                    max_request_size=16 << 20,
                    max_block_ms=DELIVERY_TIMEOUT_MS // 2,
                    delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                    request_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    bootstrap_timeout_ms=DELIVERY_TIMEOUT_MS // 2,
                    **{**CLIENT_OPTIONS, **self._options},
                )
            return self._producer
