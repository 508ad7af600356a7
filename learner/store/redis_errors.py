"""What Redis says instead of yes, in our words: what may pass, and what whoever runs it has to set right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from learner.store import StoreUnavailable

# Redis is away, or there but cannot serve yet, or not any more: it may later.
_TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
    # Somebody flushed the scripts between a script and its hash; the next try sends the script again.
    redis.exceptions.NoScriptError,
    redis.exceptions.RedisClusterException,
)
# The same, of errors that redis-py has no class for: the append-only file cannot be written, a script or a failover is
# in the way, replicas are missing.
_TRANSIENT_CODES = re.compile(r"(MISCONF|BUSY|NOREPLICAS|UNBLOCKED)\b")
# Redis answers, and will answer the same until its setup or ours is another one. Patterns, since most of them come
# under the code ERR, and redis-py takes codes away.
_CAUSES = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"unknown command '?HELLO", "the server does not know HELLO: expected Redis 6 or newer (RESP3)"),
        (r"unknown command '?EVAL", "the server does not know EVAL, by which records are written: expected it enabled"),
        (r"unknown command '?(\w+)", r"the server does not know the command \1: expected Redis 6 or newer"),
        (
            r"no permissions to run the '([\w|]+)' command",
            r"NOPERM: the account may not run the command \1: expected an account with +@read +@write +@scripting "
            "+@connection",
        ),
        (
            r"executing the script can't run this command|ACL failure in script",
            "NOPERM: the account may not write by scripts: expected an account with +@read +@write +@scripting "
            "+@connection",
        ),
        (
            r"no permissions to access|can't access at least one of the keys",
            "NOPERM: the account may not use our keys: expected those that begin with the key prefix",
        ),
        (r"DB index is out of range|invalid DB index", "the server has no database of the number that the URL names"),
        (r"SELECT is not allowed in cluster mode", "a Redis Cluster: expected redis+cluster:// and database 0"),
    )
)


@contextmanager
def translated() -> Iterator[None]:
    """Raise what Redis or the way to it is the cause of as `StoreUnavailable`; whatever else is a bug."""
    try:
        yield
    except redis.exceptions.MovedError as exc:
        raise StoreUnavailable("Redis: a node of a Redis Cluster: expected redis+cluster:// in the URL") from exc
    except _TRANSIENT as exc:
        raise StoreUnavailable(f"Redis: {type(exc).__name__}: {_said(exc)}") from exc
    except redis.ResponseError as exc:
        if (why := _why(exc)) is None:
            raise
        raise StoreUnavailable(f"Redis: {why}") from exc


def _why(exc: redis.ResponseError) -> str | None:
    said = _said(exc)
    if _TRANSIENT_CODES.match(said):
        return said
    for pattern, cause in _CAUSES:
        if found := pattern.search(said):
            return found.expand(cause)
    return None


def _said(exc: Exception) -> str:
    """What Redis said. Of a command in a pipeline redis-py puts the command before it: scripts, and users' ids."""
    return str(exc).rpartition("caused error: ")[2]
