"""Requests answered without the ASGI cycle: POST of a small body to a fixed path, GET of a hit.

uvicorn begins an ASGI cycle at the headers: a scope, an event, two messages in and two out, each
with checks, and two writes. That was a third of what a lock command costs its node
(docs/decisions.md). A request that can be told to be small and plain from its headers is read
whole, answered by the same `Gateway` under the same limits, metrics and errors, and written at
once. Anything else goes uvicorn's way; so do requests that arrive before the one in front of them
is answered.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from distsync_node.api.call import Answered, Call
from distsync_node.api.crowd import ProbeOnly
from distsync_node.api.gateway import Gateway
from distsync_node.api.hot_reads import PREFIXES
from distsync_node.api.routes import Endpoint, Handler
from distsync_node.api.server import HttpProtocol
from distsync_node.asgi import Message
from distsync_node.descriptors import has_room_for_client, has_room_for_probe
from distsync_node.errors import LimitReached, RequestTimeout

MAX_BODY_BYTES = 64 << 10
MAX_UNREAD_BYTES = 64 << 10

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class _AnsweredAtOnce:
    """A request that was answered when its headers were complete."""

    response_complete = True

    @property
    def message_event(self) -> _AnsweredAtOnce:
        """What uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
        """Nobody waits."""


_ANSWERED_AT_ONCE = _AnsweredAtOnce()


class _Direct:
    """A request on its way; to uvicorn it looks like a cycle that is not complete yet."""

    def __init__(self, handler: Handler, endpoint: Endpoint) -> None:
        self.handler = handler
        self.endpoint = endpoint
        self.body: list[bytes] = []
        self.is_arriving = True
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.task: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly
        self._gone: asyncio.Event | None = None

    @property
    def message_event(self) -> _Direct:
        """What uvicorn sets when the connection is lost."""
        return self

    def set(self) -> None:
        """The connection is lost."""
        if self._gone is not None:
            self._gone.set()

    async def receive(self) -> Message:
        """The ASGI callable: the body is here, so all that can still come is a disconnect."""
        if not self.disconnected:
            self._gone = asyncio.Event()
            await self._gone.wait()
        return {"type": "http.disconnect"}


def _start(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
    """Start a task; where Python can, with its first step at once instead of a turn later."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


def direct_protocol(gateway: Gateway) -> type[HttpProtocol]:
    """Return the protocol of the public port."""
    endpoints = gateway.direct_endpoints()
    hot_get = gateway.hot_get
    body_timeout_s = gateway.options.body_timeout_ms / 1_000

    class DirectProtocol(HttpProtocol):
        cycle: Any
        _body_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if has_room_for_client(transport):
                return
            if has_room_for_probe(transport):
                ProbeOnly(transport, self, self._refuse_crowd)
            else:
                self._refuse_crowd()

        def _refuse_crowd(self) -> None:
            self._refuse(LimitReached("too many connections to this node", limit="connections"))

        def connection_lost(self, exc: Exception | None) -> None:
            self._body_is_over()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            direct = self.cycle
            if isinstance(direct, _Direct) and direct.is_arriving and self._body_timer is None:
                self._body_timer = self.loop.call_later(body_timeout_s, self._give_up, direct)

        def on_headers_complete(self) -> None:
            found = endpoints.get(self.url)
            if found is None or not self._is_plain():
                if not self._answered_at_once():
                    super().on_headers_complete()
                return
            self._headers_are_over()
            self.cycle = _Direct(*found)

        def on_body(self, body: bytes) -> None:
            if isinstance(self.cycle, _Direct):
                self.cycle.body.append(body)
            else:
                super().on_body(body)

        def on_message_complete(self) -> None:
            direct = self.cycle
            if not isinstance(direct, _Direct):
                super().on_message_complete()
                return
            # A body shorter or longer than announced never gets here: httptools sees to that.
            self._body_is_over()
            direct.is_arriving = False
            call = Call(self._scope(), direct.receive, b"".join(direct.body))
            direct.task = _start(self._run(direct, call), self.loop)
            if direct.response_complete:
                direct.task = None

        def _body_is_over(self) -> None:
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None

        def _give_up(self, direct: _Direct) -> None:
            direct.response_complete = True
            self._refuse(RequestTimeout("the body did not arrive in time"))

        def _answered_at_once(self) -> bool:
            """Answer a GET of what is here, unless another request or answer is in the way."""
            if hot_get is None or not self.url.startswith(PREFIXES):
                return False
            if self.cycle is not None and not self.cycle.response_complete:
                return False
            if self.parser.get_method() != b"GET" or self.parser.get_http_version() != "1.1":
                return False
            if not self.parser.should_keep_alive() or self.parser.should_upgrade():
                return False
            if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                return False  # the long way waits until the client reads
            answer = hot_get(self.url, self.headers)
            if answer is None:
                return False
            self._headers_are_over()
            self.cycle = _ANSWERED_AT_ONCE
            self.transport.write(answer)
            self.on_response_complete()
            return True

        def _is_plain(self) -> bool:
            """Whether the request in hand is one to be read whole and answered in turn."""
            if self.cycle is not None and not self.cycle.response_complete:
                return False
            if self.flow.write_paused:  # its client does not read: uvicorn waits until it does
                return False
            if self.expect_100_continue or self.parser.get_method() != b"POST":
                return False
            if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive():
                return False
            lengths = [value for name, value in self.headers if name == b"content-length"]
            return (
                len(lengths) == 1
                and lengths[0].isdigit()
                and len(lengths[0]) < 6
                and int(lengths[0]) <= MAX_BODY_BYTES
            )

        def _scope(self) -> dict[str, Any]:
            """Complete the scope that uvicorn began, as far as the gateway reads it."""
            scope: dict[str, Any] = self.scope  # type: ignore[assignment]
            scope["method"] = "POST"
            scope["path"] = self.url.decode("ascii")
            scope["raw_path"] = self.url
            scope["query_string"] = b""
            return scope

        async def _run(self, direct: _Direct, call: Call) -> None:
            try:
                answer = await gateway.direct(call, direct.handler, direct.endpoint)
            except BaseException:
                self.transport.close()
                raise
            finally:
                direct.response_complete = True
                direct.task = None
            if answer is None or direct.disconnected or self.transport.is_closing():
                if call.undelivered is not None:
                    call.undelivered()
                self.transport.close()
                return
            self._write(answer, keep_alive=direct.keep_alive)
            self.on_response_complete()

        def _write(self, answer: Answered, *, keep_alive: bool) -> None:
            status, headers, body = answer
            lines = [_STATUS_LINES[status]]
            for name, value in headers:
                lines += (name, b": ", value, b"\r\n")
            if not keep_alive:
                lines.append(b"connection: close\r\n")
            lines.append(b"content-length: %d\r\n\r\n" % len(body))
            lines.append(body)
            self.transport.write(b"".join(lines))
            if not keep_alive:
                self.transport.close()

    return DirectProtocol
