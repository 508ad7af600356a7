"""What Redis says of itself, and whether it may forget users by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from learner.store import StoreUnavailable
from service.settings import Settings


class StoreEvicts(ValueError):
    """Redis forgets users when its memory is short: what was learnt of them would be lost, and nobody told."""


def evicts(settings: Settings) -> str | None:
    """Why Redis may forget users; None if it does not, or may not be asked.

    Raises
    ------
    StoreUnavailable
        If it does not answer.
    """
    if settings.store.startswith("sqlite"):
        return None
    return next((f"{at}{why}" for at, told in redis_info(settings) if (why := forgets(told))), None)


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
