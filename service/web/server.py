"""The HTTP server: uvicorn, but for clients that take too long, or too many bytes, to say what they want."""

from __future__ import annotations

import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.settings import Settings
from service.web.api import ApiError
from service.web.http import error_response

GRACE_S = 13
"""How long open requests may take to be answered once a signal has come: longer than a log that is away takes to say so
(10 s), with which the last of them are answered."""
DRAIN_S = 25
"""A process ends this long after a signal, whatever is away or hangs: below the 30 s after which Kubernetes kills."""
MAX_HEAD_BYTES = 32 * 1024


class HeadTooLarge(ValueError):
    """A request line and headers of more than `MAX_HEAD_BYTES`."""


class ImpatientProtocol(HttpToolsProtocol):
    """One connection. It is closed unless every request, once begun, arrives whole within `request_timeout_s`.

    uvicorn by itself only closes connections that stay idle after an answer. A route that reads a body gives it up by
    itself, with an answer (`service.web.http.read_body`); left for here are the clients that no route waits for: those
    that never finish a head, go on with a body that is answered already, or do not read what they asked for.
    """

    def __init__(self, *args: Any, request_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_timeout_s = request_timeout_s
        self._refusal = ApiError(400, "invalid_http", "the request is not HTTP/1.1")
        self._in_head = False
        # Bytes since the last whole request.
        self._received = 0
        self._request_deadline: TimerHandle | None = None
        self._read_deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Expect a request at once."""
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        for deadline in (self._request_deadline, self._read_deadline):
            if deadline is not None:
                deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; the parser by itself would take a head of any length, and no body behind an offer to upgrade."""
        self._received += len(data)
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":
                    self.send_400_response("")
                    return
                # The head is taken for a whole message: read it again without the offer, and then its body. By a parser
                # of its own, since this one reads nothing behind a message with `Connection: close`.
                data = self._head_without_upgrade() + data[offer.args[0] :]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn has it.
            except HttpParserError:
                self.send_400_response("")
                return
        if self._in_head and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_HEAD_TOO_LARGE)

    def _head_without_upgrade(self) -> bytes:
        kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        return b"".join([line, *kept, b"\r\n"])

    def on_message_begin(self) -> None:
        """Expect the rest of the request."""
        super().on_message_begin()
        self._in_head = True
        self._expect_request()

    def on_headers_complete(self) -> None:
        """Give the request to the app, unless too large a head came in one piece, or one to be read again."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = _HEAD_TOO_LARGE
            raise HeadTooLarge  # The parser stops, and `send_400_response` is called.
        if self.parser.should_upgrade():
            return
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is here."""
        if self.parser.should_upgrade():
            return
        self._received = 0
        if self._request_deadline is not None:
            self._request_deadline.cancel()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the envelope of all errors."""
        self._refuse(self._refusal)

    def pause_writing(self) -> None:
        """Give a client who does not read its answer so long, and then up."""
        super().pause_writing()
        self._read_deadline = self.loop.call_later(self._request_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        if self._read_deadline is not None:
            self._read_deadline.cancel()
        super().resume_writing()

    def _expect_request(self) -> None:
        if self._request_deadline is not None:
            self._request_deadline.cancel()
        self._request_deadline = self.loop.call_later(self._request_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # A route has it, and waits no longer than this for its body. Look again when it has answered.
            self._expect_request()
        elif self._in_head:
            self._refuse(ApiError(408, "request_timeout", f"no whole request within {self._request_timeout_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close."""
        response = error_response(error)
        response.headers["Connection"] = "close"
        head = [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in response.raw_headers), b"\r\n"]
        self.transport.write(b"".join([*head, bytes(response.body)]))
        self.transport.close()


_HEAD_TOO_LARGE = ApiError(
    431,
    "head_too_large",
    f"request line and headers: expected at most {MAX_HEAD_BYTES} bytes",
    {"limit": MAX_HEAD_BYTES},
)


class _Server(uvicorn.Server):
    """Ends in time.

    Parameters
    ----------
    end
        Called when it is to end, before it waits for what is open: it ends what would go on by itself.
    """

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is open, and close."""
        self._end()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        end_in_time()
        super().handle_exit(sig, frame)


def end_in_time() -> None:
    """Have the operating system end this process if it has not ended by itself: at any moment a crash is harmless."""
    signal.alarm(DRAIN_S)


def make_server(app: FastAPI, settings: Settings, port: int) -> uvicorn.Server:
    """A server for an app, whose `state.end`, if there is one, ends what never ends by itself; it runs when told to."""
    protocol: Any = partial(ImpatientProtocol, request_timeout_s=settings.request_timeout_s)
    return _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=port,
            loop="uvloop",
            http=protocol,
            ws="none",
            log_config=None,
            access_log=False,
            # Nothing here asks who the client is, or by which scheme it came.
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=GRACE_S,
        ),
        getattr(app.state, "end", lambda: None),
    )


def run_until_signal(server: uvicorn.Server, listeners: list[socket.socket] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what is open is answered first. `listeners` are in the place of its port."""

    def end(*_: object) -> None:
        # Before uvicorn has handlers of its own, and once it has shut down: then it raises the signal again for this
        # one, where the default would end the process before the learner has finished its microbatch.
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.run(listeners)
