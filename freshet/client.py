"""Freshet over HTTP: a client for synchronous code, and one for asynchronous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from freshet import answers, calls
from freshet.calls import Call, Item, ScoreOptions, TryAgain
from freshet.errors import FreshetError
from freshet.quality_answers import QualityResponse

MAX_WAIT_S = 10.0

T = TypeVar("T")

_BACKOFF = wait_random_exponential(multiplier=0.1, max=MAX_WAIT_S)


class Client:
    """A client of a service; connections stay open, and threads may share it. Use it with ``with``, or close it.

    Every method may raise `FreshetError`. What is asked is idempotent, so where no answer comes (a connection that
    fails, a timeout) or one says that it may later (503, and 502 or 504 of a proxy) it is asked again: after what
    ``Retry-After`` says, 10 s at most, or else after a random, growing pause.

    Parameters
    ----------
    url
        Of the service, such as ``http://127.0.0.1:8000``; a proxy's may have a path.
    api_key
        What the service has as ``FRESHET_API_KEY``; posteriors, erasure and the model may take ``FRESHET_ADMIN_KEY``.
    timeout_s
        How long to wait for a connection, and for each part of an answer, every time it is asked.
    retries
        How often at most to ask again.
    transport
        How requests travel; by default over the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str = "",
        *,
        timeout_s: float = 10.0,
        retries: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        options = _options(url, api_key, timeout_s)
        self._http = httpx2.Client(transport=transport, **options)
        self._retrying = Retrying(**_retrying(retries))

    def score(self, user_id: str, items: Iterable[Item], **options: Unpack[ScoreOptions]) -> answers.ScoreResponse:
        """Rank items for a user, best first. With ``log_impression`` the service logs what is shown."""
        return self._ask(calls.score(user_id, items, options))

    def events(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> answers.EventsResponse:
        """Put one event, or several, into the log: impressions and clicks. Raises if none of them is good."""
        return self._ask(calls.events(events))

    def put_items(self, items: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> answers.EventsResponse:
        """Have the catalog know an item, or several, by ``item_id`` and ``features``; None as features removes one."""
        return self._ask(calls.put_items(items))

    def posterior(self, user_id: str) -> answers.PosteriorResponse:
        """What is believed of a user now; of an unknown one the prior."""
        return self._ask(calls.of_user(user_id))

    def item_posterior(self, item_id: str) -> answers.ItemPosteriorResponse:
        """What is believed of an item now; of an unknown one the prior. An error if the model learns no items."""
        return self._ask(calls.of_item(item_id))

    def item(self, item_id: str) -> answers.ItemResponse:
        """What the catalog has of an item; an error if it has nothing."""
        return self._ask(calls.item(item_id))

    def erase(self, user_id: str) -> answers.Erasure:
        """Erase a user; asked again, it says that nothing was there."""
        return self._ask(calls.erase_user(user_id))

    def erase_item(self, item_id: str) -> answers.ItemErasure:
        """Have an item begin again from its prior."""
        return self._ask(calls.erase_item(item_id))

    def model(self) -> answers.ModelResponse:
        """The model that scores."""
        return self._ask(calls.MODEL)

    def learners(self) -> answers.LearnersResponse:
        """What learners tell of themselves."""
        return self._ask(calls.LEARNERS)

    def quality(self) -> QualityResponse:
        """How good scores are."""
        return self._ask(calls.QUALITY)

    def metrics(self) -> str:
        """What Prometheus scrapes, as text."""
        return self._ask(calls.METRICS)

    def health(self) -> answers.Health:
        """Whether the service can score: status ``ok``, or what is wrong; raises only if it does not answer."""
        return self._ask(calls.HEALTH)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _ask(self, call: Call[T]) -> T:
        def once() -> T:
            try:
                answer = self._http.request(call.method, call.path, content=call.body)
            except httpx2.RequestError as exc:
                raise _lost(exc, self._http.base_url) from exc
            return call.read(answer.status_code, answer.content, answer.headers.get("Retry-After"))

        # A copy for each: it keeps count of its tries.
        return self._retrying.copy()(once)


class AsyncClient:
    """`Client` for asynchronous code: the same methods, to be awaited. Use it with ``async with``, or close it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str = "",
        *,
        timeout_s: float = 10.0,
        retries: int = 4,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        options = _options(url, api_key, timeout_s)
        self._http = httpx2.AsyncClient(transport=transport, **options)
        self._retrying = AsyncRetrying(**_retrying(retries))

    async def score(
        self, user_id: str, items: Iterable[Item], **options: Unpack[ScoreOptions]
    ) -> answers.ScoreResponse:
        """As `Client.score`."""
        return await self._ask(calls.score(user_id, items, options))

    async def events(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> answers.EventsResponse:
        """As `Client.events`."""
        return await self._ask(calls.events(events))

    async def put_items(self, items: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> answers.EventsResponse:
        """As `Client.put_items`."""
        return await self._ask(calls.put_items(items))

    async def posterior(self, user_id: str) -> answers.PosteriorResponse:
        """As `Client.posterior`."""
        return await self._ask(calls.of_user(user_id))

    async def item_posterior(self, item_id: str) -> answers.ItemPosteriorResponse:
        """As `Client.item_posterior`."""
        return await self._ask(calls.of_item(item_id))

    async def item(self, item_id: str) -> answers.ItemResponse:
        """As `Client.item`."""
        return await self._ask(calls.item(item_id))

    async def erase(self, user_id: str) -> answers.Erasure:
        """As `Client.erase`."""
        return await self._ask(calls.erase_user(user_id))

    async def erase_item(self, item_id: str) -> answers.ItemErasure:
        """As `Client.erase_item`."""
        return await self._ask(calls.erase_item(item_id))

    async def model(self) -> answers.ModelResponse:
        """As `Client.model`."""
        return await self._ask(calls.MODEL)

    async def learners(self) -> answers.LearnersResponse:
        """As `Client.learners`."""
        return await self._ask(calls.LEARNERS)

    async def quality(self) -> QualityResponse:
        """As `Client.quality`."""
        return await self._ask(calls.QUALITY)

    async def metrics(self) -> str:
        """As `Client.metrics`."""
        return await self._ask(calls.METRICS)

    async def health(self) -> answers.Health:
        """As `Client.health`."""
        return await self._ask(calls.HEALTH)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _ask(self, call: Call[T]) -> T:
        async def once() -> T:
            try:
                answer = await self._http.request(call.method, call.path, content=call.body)
            except httpx2.RequestError as exc:
                raise _lost(exc, self._http.base_url) from exc
            return call.read(answer.status_code, answer.content, answer.headers.get("Retry-After"))

        return await self._retrying.copy()(once)


def _options(url: str, api_key: str, timeout_s: float) -> dict[str, Any]:
    parts = httpx2.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"service URL {url!r}: expected http://host:port, or https")
    # As bytes: a key may have any characters.
    headers = {b"Content-Type": b"application/json"} | ({b"X-API-Key": api_key.encode()} if api_key else {})
    return {"base_url": parts, "headers": headers, "timeout": timeout_s}


def _retrying(retries: int) -> dict[str, Any]:
    return {
        "retry": retry_if_exception_type(TryAgain), "wait": _wait, "stop": stop_after_attempt(1 + retries),
        "reraise": True,
    }  # fmt: skip


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, TryAgain) else 0.0
    # Not all who were told the same second come back in the same moment.
    return min(MAX_WAIT_S, asked + _BACKOFF(state))


def _lost(exc: httpx2.RequestError, url: httpx2.URL) -> TryAgain:
    what = str(exc) or type(exc).__name__
    return TryAgain(FreshetError(None, "no_answer", f"{url.copy_with(userinfo=b'')} does not answer: {what}"))
