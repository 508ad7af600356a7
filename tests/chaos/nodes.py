"""Redis as the chaos suite runs it: with a file that can be cut, and replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from tests.servers import RedisServer, cluster_options, eventually


class Redis(RedisServer):
    """With every write on disk before it is answered, and the command that sends it to sleep."""

    def __init__(self, folder: Path, cluster: bool = False) -> None:
        super().__init__(folder)
        self._options = [
            "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--enable-debug-command", "local",
        ]  # fmt: skip
        if cluster:
            self._options += cluster_options(self.port)

    def command(self) -> list[str]:
        return [*super().command(), *self._options]

    def command_once(self, *words: str) -> Any:
        client = redis.Redis(port=self.port, socket_timeout=5)
        try:
            return client.execute_command(*words)
        finally:
            client.close()

    def follow(self, other: Redis) -> None:
        """Become a replica, with all that the other has and a file of it."""
        self.command_once("REPLICAOF", "127.0.0.1", str(other.port))

        def synchronised() -> bool:
            client = redis.Redis(port=self.port, socket_timeout=5)
            info = client.info()
            client.close()
            return info.get("master_link_status") == "up" and not info["aof_rewrite_in_progress"]

        eventually(synchronised, 30, "the replica has it all")

    def end_of_file(self) -> tuple[Path, int]:
        """Where the append-only file ends."""
        last = max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)
        return last, last.stat().st_size
