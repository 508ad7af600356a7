"""A client of Redis or Redis Cluster, as its URL says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import Connection, SSLConnection
from redis.retry import Retry


class _InOneWrite:
    """A connection that sends a pipeline in one write: redis-py writes every 6 kB, and each write wakes Redis."""

    def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None:
        """See `redis.Connection`."""
        super().send_packed_command([b"".join(command)], check_health)  # type: ignore[misc]


class _Plain(_InOneWrite, Connection):
    pass


class _Tls(_InOneWrite, SSLConnection):
    pass


def connect(url: str, timeout_s: float) -> Any:
    """A client; a cluster's URL may name several nodes, and its client asks them for their slots at once."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # One retry of a broken connection: pooled ones die when Redis restarts. It is safe because reads are reads and
        # the only write is a compare-and-set, which reports a conflict where its first try had been applied.
        "retry": Retry(NoBackoff(), 1, (redis.ConnectionError,)),
        "health_check_interval": 30,
        "protocol": 3,
    }
    if not is_cluster(url):
        by_tls = url.startswith("rediss://")
        return redis.Redis.from_url(url, connection_class=_Tls if by_tls else _Plain, **options)
    parts = urlsplit(url.replace("+cluster", "", 1))
    account, _, places = parts.netloc.rpartition("@")
    first, *others = places.split(",")
    # A few nodes may be named, in case one of them is away when we start.
    named = (one.rpartition(":") for one in others)
    nodes = [ClusterNode(host, int(port)) for host, _, port in named]  # type: ignore[no-untyped-call]
    one = urlunsplit(parts._replace(netloc=f"{account}@{first}" if account else first))
    return redis.RedisCluster.from_url(one, startup_nodes=nodes, **options)


def is_cluster(url: str) -> bool:
    """Whether a URL names a Redis Cluster."""
    return url.partition("://")[0] in {"redis+cluster", "rediss+cluster"}
