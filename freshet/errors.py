"""What a client raises."""

from __future__ import annotations

from typing import Any


class FreshetError(Exception):
    """The service refused a request, or did not answer it, however often it was asked.

    Attributes
    ----------
    status
        The HTTP status; None if there was no answer.
    code
        For programs: the service's own (``invalid_field``, ``overloaded``, …), ``no_answer``, or ``not_freshet`` where
        what answers is no Freshet.
    message
        For people.
    details
        What belongs to the code, such as ``field`` and ``limit``.
    """

    def __init__(self, status: int | None, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(status, code, message, details)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.status is None else f"{self.status} {self.code}: {self.message}"
