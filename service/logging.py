"""Logs on standard error: structured, readable on a terminal and JSON elsewhere.

What clients and users sent stays out of them: an exception is logged as its type and where it came from, since its
message or its variables may hold a feature or a body. At the level ``debug`` the message is logged too.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback

import structlog

MAX_CHAIN = 8


def configure_logging(fmt: str, level: str) -> None:
    """Set up structlog, and have the libraries' logs look the same.

    Parameters
    ----------
    fmt
        ``auto``, ``json`` or ``text``.
    level
        The least severe level that is logged.
    """
    stack = _Stack(with_messages=level == "debug")
    json = fmt == "json" or (fmt == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    final: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.ExceptionRenderer(stack),
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=final, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("freshet").setLevel(level.upper())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )

    def crashed(exc: BaseException | None, thread: str) -> None:
        structlog.get_logger("freshet").critical("bug", thread=thread, exc_info=exc)

    # Python's own hooks print the message.
    sys.excepthook = lambda kind, exc, trace: crashed(exc, "main")
    threading.excepthook = lambda failed: crashed(failed.exc_value, failed.thread.name if failed.thread else "?")


class _Stack:
    """Writes an exception, and those behind it, as types and lines of code."""

    def __init__(self, with_messages: bool) -> None:
        self._with_messages = with_messages

    def __call__(self, exc_info: structlog.typing.ExcInfo) -> str:
        if self._with_messages:
            return "".join(traceback.format_exception(*exc_info)).rstrip()
        exc: BaseException | None = exc_info[1]
        parts: list[str] = []
        while exc is not None and len(parts) < MAX_CHAIN:
            lines = "".join(traceback.format_tb(exc.__traceback__))
            parts.append(f"{lines}{type(exc).__module__}.{type(exc).__qualname__}")
            exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        return "\nraised from\n".join(parts)
