"""What uvicorn leaves open before a request reaches an ASGI app: headers without end.

The gateway limits complete requests; a client that sends headers slowly or for ever never completes
one. This protocol bounds their bytes and their time, gives up connections that never send anything,
and answers what is not HTTP as problem+json. A request whose headers arrive in one piece, which is
nearly every request, costs one comparison more.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from distsync_node.api.problems import encode_problem, problem_headers, problem_of
from distsync_node.errors import DistSyncError, HeadersTooLarge, MalformedRequest, RequestTimeout


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the headers; pass it as `http=` to its `Config`."""

    max_header_bytes: ClassVar[int] = 64 << 10
    header_timeout_s: ClassVar[float] = 10.0

    _is_in_headers = False
    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection has as long as an idle one to begin its first request."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._headers_are_over()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._is_in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """From here on the gateway watches."""
        self._headers_are_over()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what is not a complete set of headers yet."""
        super().data_received(data)
        if not self._is_in_headers or self.transport.is_closing():
            return
        self._header_bytes += len(data)
        if self._header_bytes > self.max_header_bytes:
            self._refuse(HeadersTooLarge(f"more than {self.max_header_bytes} bytes of headers"))
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self.header_timeout_s,
                self._refuse,
                RequestTimeout("the headers did not arrive in time"),
            )

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser does not take for HTTP."""
        self._refuse(MalformedRequest(msg))

    def _headers_are_over(self) -> None:
        self._is_in_headers = False
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, error: DistSyncError) -> None:
        self._headers_are_over()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            body = encode_problem(problem_of(error, request_id=None, leader=None))
            lines = [STATUS_LINE[error.status]]
            for name, value in problem_headers(error):
                if name != b"connection":
                    lines += [name, b": ", value, b"\r\n"]
            lines += [b"content-length: ", str(len(body)).encode(), b"\r\n"]
            lines += [b"connection: close\r\n\r\n", body]
            self.transport.write(b"".join(lines))
        self.transport.close()
