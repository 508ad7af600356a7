"""A client of the HTTP service, over one connection that stays open."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import msgspec


class Refused(ConnectionError):
    """The service did not answer as it should; the message says what it said."""


class Client:
    """One connection to a service."""

    def __init__(self, url: str, api_key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"service URL {url!r}: expected http://host:port")
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=10)
        self._headers = {"Content-Type": "application/json"} | ({"X-API-Key": api_key} if api_key else {})

    def post(self, path: str, body: object) -> Any:
        """POST JSON; returns the answer.

        Raises
        ------
        Refused
            If there is none, or it is an error.
        """
        return self._answer("POST", path, body if isinstance(body, bytes) else msgspec.json.encode(body))

    def get(self, path: str) -> Any:
        """GET; returns the answer, and raises as `post`."""
        return self._answer("GET", path, None)

    def _answer(self, method: str, path: str, raw: bytes | None) -> Any:
        try:
            self._connection.request(method, path, raw, self._headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Refused(f"no service answers: {exc}") from exc
        if response.status >= 300:
            raise Refused(f"{path} answered {response.status}: {answer.decode('utf-8', 'replace')[:500]}")
        return msgspec.json.decode(answer)
