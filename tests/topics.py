"""Topics of a real Kafka, and what a reader finds in them."""

from __future__ import annotations

from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import Message, Reader
from tests.servers import KafkaServer, eventually

WAIT_MS = 200


def make_topic(server: KafkaServer, name: str, partitions: int = 1, **configs: str) -> None:
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
