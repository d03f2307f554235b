"""The sending side of messages: POSTs on keep-alive connections, one at a time on each.

The counterpart of `inbound`, and below aiohttp for the same reason. A request that has no answer in
time takes its connection with it, so that a late answer cannot be taken for that of a later one.
The address is resolved at each new connection: pods change theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

from distsync_node.peers.wire import MESSAGES_PATH, SENDER_HEADER

CONNECT_SECONDS = 1.0
REQUEST_SECONDS = 3.0
DEFAULT_PORT = 80


class PeerUnreachable(Exception):
    """No answer. `sent` tells whether the peer may have acted on the request."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


OnDone = Callable[["Connection", bytes | None], None]


class Target:
    """Where a member listens, and the heads of requests to it."""

    def __init__(self, url: str, secret: str, sender: str) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or DEFAULT_PORT
        self._headers = (
            f" HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"{SENDER_HEADER}: {sender}\r\nauthorization: Bearer {secret}\r\n"
            "content-type: application/msgpack\r\ncontent-length: "
        )
        self._heads: dict[str, bytes] = {}

    def head(self, path: str) -> bytes:
        """Return what every request to that path begins with, up to the length of its body."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = f"POST {path}{self._headers}".encode()
        return head


async def connect(target: Target, on_done: OnDone) -> Connection:
    """Open a connection; `on_done` is called after each request with its body or None.

    Raises:
        OSError: no connection in time (TimeoutError is one).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await loop.create_connection(
                lambda: Connection(target, on_done), target.host, target.port
            )
    except UnicodeError as error:
        raise OSError(f"{target.host!r} is no name of a host") from error
    return connection


class Connection(asyncio.Protocol):
    """One connection: `post` while it is idle, then `on_done`."""

    def __init__(self, target: Target, on_done: OnDone) -> None:
        self._target = target
        self._on_done = on_done
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []
        self.is_open = False

    def post(self, body: bytes, path: str = MESSAGES_PATH) -> None:
        """Send a request. Only on an open connection without one."""
        if self._transport is None or self._timer is not None:
            raise RuntimeError("the connection is closed or busy")
        self._body = []
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_SECONDS, self.abort)
        head = self._target.head(path)
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    def abort(self) -> None:
        """Give the connection up, and with it the request that it carries."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by type
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio.Protocol."""
        self._transport = None
        self.is_open = False
        self._finish(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()

    # --- httptools ----------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        """A part of the answer."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self._parser.get_status_code() == 200:
            self._finish(b"".join(self._body))
        else:
            self.abort()

    def _finish(self, body: bytes | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._on_done(self, body)
        elif body is None:
            self._on_done(self, None)
