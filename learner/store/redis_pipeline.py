"""Reads of records on an event loop: all requests share one connection to Redis, and no thread waits for it.

It is the short way for when all is well. Whatever is not (a connection that is not there or breaks, an answer that is
an error) is left to `RedisStore.load`, which tries again and says what is wrong.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hiredis

from learner.store import NotNow, StoreUnavailable

AGAIN_AFTER_S = 1.0
"""How long after the last try to connect there is another."""
# Idle connections are asked so often whether they are still there: firewalls forget those that say nothing.
_KEEP_ALIVE_S = 30


class RedisPipeline:
    """See the module, and `learner.store.Pipeline`. It belongs to one event loop.

    Parameters
    ----------
    connect
        Makes a connected socket to Redis that is let in and in its database; it blocks, and is called in a thread.
    keys_of
        The keys of records, by their ids and effect.
    timeout_s
        How long an answer may take.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        keys_of: Callable[[Sequence[str], str], list[str]],
        timeout_s: float,
    ) -> None:
        self._connect = connect
        self._keys_of = keys_of
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(1, "pipeline")
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tried_at = -AGAIN_AFTER_S

    def load(self, ids: Sequence[str], effect: str = "user") -> Awaitable[list[bytes | None]]:
        """Read records; see `learner.store.Pipeline`."""
        link = self._link
        if link is None or link.is_lost:
            self._connect_soon()
            raise NotNow
        keys = self._keys_of(ids, effect)
        # GET, unlike MGET, does not call a key absent that holds something else.
        return link.ask("GET" if len(keys) == 1 else "MGET", keys)

    def _connect_soon(self) -> None:
        if self._connecting is not None and not self._connecting.done():
            return
        if (now := time.monotonic()) >= self._tried_at + AGAIN_AFTER_S:
            self._tried_at = now
            self._connecting = asyncio.get_running_loop().create_task(self._connect_now())

    async def _connect_now(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connected = await loop.run_in_executor(self._pool, self._connect)
        except StoreUnavailable:
            return  # Requests ask the store meanwhile, and are told.
        link = _Link(loop, self._timeout_s)
        await loop.create_connection(lambda: link, sock=connected)
        self._link = link

    def close(self) -> None:
        """Give up the connection."""
        self._pool.shutdown(wait=False)
        if self._link is not None:
            self._link.lose()


class _Link(asyncio.Protocol):
    """One connection; answers come in the order in which they were asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._answers = hiredis.Reader()
        # Of each its answer, whether that is of one key alone, and when it was asked.
        self._asked: deque[tuple[asyncio.Future[Any], bool, float]] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._transport: Any = None
        self._to_send: list[bytes] = []
        self.is_lost = False

    def ask(self, command: str, keys: Sequence[str]) -> asyncio.Future[Any]:
        """Send a command, with all others that come in this turn of the loop; the values of its keys come later."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self._to_send:
            self._loop.call_soon(self._send)
        # Its stub has tuples of one.
        self._to_send.append(hiredis.pack_command((command, *keys)))  # type: ignore[arg-type]
        self._asked.append((answer, command == "GET", self._loop.time()))
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._timeout_s, self._look_for_late)
        return answer

    def _send(self) -> None:
        # One write: each wakes Redis, which on a busy machine runs in our place.
        self._transport.write(b"".join(self._to_send))
        self._to_send.clear()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        # A push is none that we asked for.
        while (found := self._answers.gets()) is not False:
            if isinstance(found, hiredis.PushNotification):
                continue
            answer, is_one, _ = self._asked.popleft()
            if isinstance(found, Exception):
                _refuse(answer, NotNow())
            elif not answer.done():
                answer.set_result([found] if is_one else found)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose()

    def lose(self, why: Callable[[], Exception] = NotNow) -> None:
        """Ask nothing more; whoever waits is told why."""
        self.is_lost = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._transport.abort()
        while self._asked:
            answer, *_ = self._asked.popleft()
            _refuse(answer, why())

    def _look_for_late(self) -> None:
        """One timer for all: when the first of them was due."""
        self._alarm = None
        if not self._asked:
            return
        due = self._asked[0][-1] + self._timeout_s
        if due <= self._loop.time():
            self.lose(lambda: StoreUnavailable(f"Redis: TimeoutError: no answer within {self._timeout_s:g} s"))
        else:
            self._alarm = self._loop.call_at(due, self._look_for_late)


def _refuse(answer: asyncio.Future[Any], why: Exception) -> None:
    if not answer.done():  # Else the request was given up.
        answer.set_exception(why)
        # Who has several and is refused by the first asks for no other: asyncio need not log that.
        answer.exception()


def kept_alive(connected: socket.socket) -> socket.socket:
    """The socket, with TCP's own question after `_KEEP_ALIVE_S` of silence."""
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_S)
    return connected
