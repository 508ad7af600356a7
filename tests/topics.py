"""Topics of a real Kafka, and what a reader finds in them."""

from __future__ import annotations

from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import Message, Reader, open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model
from learner.store import open_store
from tests.servers import KafkaServer, OldKafkaServer, eventually

WAIT_MS = 200


def make_topic(server: KafkaServer | OldKafkaServer, name: str, partitions: int = 1, **configs: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
    admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
    admin.close()


def read(reader: Reader, count: int, max_messages: int = 500) -> list[Message]:
    """Poll until `count` messages came."""
    messages: list[Message] = []

    def poll() -> bool:
        messages.extend(reader.poll(WAIT_MS, max_messages))
        return len(messages) >= count

    eventually(poll, 30, f"{count} messages")
    return messages


class learning:
    """A learner on a topic and a SQLite store; called, it learns until so many messages came and returns the bad."""

    def __init__(
        self, model: Model, server: KafkaServer | OldKafkaServer, topic: str, folder: Path, skip: bool = False
    ) -> None:
        self.store = open_store(f"sqlite:///{folder / 'store.db'}", 1_000)
        self._log = open_log(server.url)
        self.reader = open_reader(server.url, [topic], "learning", skip_unreadable=skip)
        self._learner = Learner(model, self.store, self.reader, self._log, poll_timeout_ms=100)

    def __call__(self, messages: int) -> dict[str, int]:
        bad: dict[str, int] = {}
        seen = 0

        def turned() -> bool:
            nonlocal seen
            progress = self._learner.turn()
            seen += progress.messages
            for reason, count in progress.bad.items():
                bad[reason] = bad.get(reason, 0) + count
            return seen >= messages

        eventually(turned, 30, lambda: f"{messages} messages; {seen} came")
        return bad

    def __enter__(self) -> learning:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self._log.close()
        self.store.close()
