"""What Redis says of itself, and whether it may forget users by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from learner.store import StoreUnavailable
from service.settings import Settings


class StoreEvicts(ValueError):
    """Redis forgets users when its memory is short: what was learnt of them would be lost, and nobody told."""


class Keeping(NamedTuple):
    """How well a store keeps what is written.

    Attributes
    ----------
    forgets
        Why it may forget users; None if it does not, or may not be asked.
    evicted
        How many keys its servers have evicted since they started.
    in_memory
        Which server has nothing left after a restart, having no append-only file; None if none.
    """

    forgets: str | None = None
    evicted: int = 0
    in_memory: str | None = None


def keeping(settings: Settings) -> Keeping:
    """Ask a store.

    Raises
    ------
    StoreUnavailable
        If it does not answer.
    """
    if settings.store.startswith("sqlite"):
        return Keeping()
    nodes = redis_info(settings)
    return Keeping(
        next((f"{at}{why}" for at, told in nodes if (why := forgets(told))), None),
        sum(int(told.get("evicted_keys", 0)) for _, told in nodes),
        next((at or "redis" for at, told in nodes if not told.get("aof_enabled", 1)), None),
    )


def forgets(told: Mapping[str, Any]) -> str | None:
    """Why a primary that says this of itself may forget users; None if it does not, or does not say."""
    policy = told.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    evicted = int(told.get("evicted_keys", 0))
    return (
        f"maxmemory-policy is {policy}, so users are forgotten when memory is short (keys evicted since Redis started: "
        f"{evicted:,}): expected noeviction"
    )


def redis_info(settings: Settings) -> list[tuple[str, Mapping[str, Any]]]:
    """What each primary of Redis says of itself, by what to put before it: ``host:port: ``, or nothing for one alone.

    Raises
    ------
    StoreUnavailable
        If Redis does not answer; nothing of a Redis that does not let us ask.
    """
    import redis

    from learner.store.redis_client import connect

    try:
        with closing(connect(settings.store_url, settings.store_timeout_s)) as client:
            client.ping()
            cluster = isinstance(client, redis.RedisCluster)
            where = {"target_nodes": redis.RedisCluster.PRIMARIES} if cluster else {}
            return list(_by_node(client.info("everything", **where)))
    except redis.exceptions.NoPermissionError:
        return []
    except redis.RedisError as exc:
        raise StoreUnavailable(f"Redis: {type(exc).__name__}: {exc}") from exc


def _by_node(told: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What each node says; a cluster of redis-py answers by node, and one of a single node does not."""
    if "redis_version" in told:
        yield "", told
        return
    for node, one in told.items():
        yield f"{node}: ", one
