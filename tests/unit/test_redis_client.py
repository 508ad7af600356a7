"""How commands go to Redis."""

from __future__ import annotations

import pytest

from learner.store.redis_client import connect


class Socket:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.writes.append(data)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_all_commands_of_a_pipeline_are_one_write(scheme: str) -> None:
    connection = connect(f"{scheme}://localhost:1/0", 1.0).connection_pool.make_connection()
    connection._sock = socket = Socket()
    commands = [("SET", f"k{i}", b"v" * 5_000) for i in range(10)]
    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    assert socket.writes == [b"".join(connection.pack_command(*one)[0] for one in commands)]
    connection._sock = None
