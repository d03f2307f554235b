"""The receiving side of `POST /raft/messages`, below ASGI.

An append and its acknowledgement are on the path of every command. Through ASGI and a task each
they cost several times what the consensus core does with them (docs/decisions.md), so a
connection whose first request is a POST of messages leaves uvicorn for the protocol here and stays
with it. It is plain HTTP/1.1 with keep-alive, parsed by httptools. One request at a time is
answered on a connection, as its sender expects; a wrong one is answered and the connection closed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distsync_node.errors import DistSyncError
from distsync_node.peers.wire import MAX_BODY_BYTES, MESSAGES_PATH, decode_envelope, encode
from distsync_node.replica.types import Answer, Envelope

logger = logging.getLogger(__name__)

Respond = Callable[[Answer], bool]  # False: the connection is gone, and with it the answer
Receiver = Callable[[Envelope, Respond], None]

REQUEST_LINE = b"POST " + MESSAGES_PATH.encode() + b" HTTP/1.1\r\n"
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/msgpack\r\ncontent-length: "


def message_protocol(
    base: type[HttpToolsProtocol], receiver: Receiver, secret: str
) -> type[HttpToolsProtocol]:
    """Return the protocol `base`, but for connections that carry messages."""

    class PeerProtocol(base):  # type: ignore[misc, valid-type]
        _is_fresh = True

        def data_received(self, data: bytes) -> None:
            if self._is_fresh:
                self._is_fresh = False
                if data.startswith(REQUEST_LINE):
                    self._hand_over(data)
                    return
            super().data_received(data)

        def _hand_over(self, data: bytes) -> None:
            protocol = MessageProtocol(receiver, secret, self.connections)
            self.connections.discard(self)
            self._unset_keepalive_if_required()  # its timer would close the connection
            protocol.connection_made(self.transport)
            self.transport.set_protocol(protocol)
            protocol.data_received(data)

    return PeerProtocol


class MessageProtocol(asyncio.Protocol):
    """One connection of another node."""

    def __init__(self, receiver: Receiver, secret: str, connections: set[Any]) -> None:
        self._receiver = receiver
        self._authorization = f"Bearer {secret}".encode()
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""
        self._admitted = False
        self._body: list[bytes] = []
        self._size = 0

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by type
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio.Protocol."""
        self._connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(400, str(error))

    def shutdown(self) -> None:
        """The server stops (uvicorn calls this on every connection)."""
        if self._transport is not None:
            self._transport.close()

    # --- httptools ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._path = b""
        self._admitted = False
        self._body = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        """The path of the request, or a part of it."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the request."""
        if name.lower() == b"authorization":
            self._admitted = hmac.compare_digest(value, self._authorization)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size <= MAX_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if not self._admitted:
            self._refuse(401, "the shared secret is missing or wrong")
        elif self._path != MESSAGES_PATH.encode():
            self._refuse(404, "this connection carries messages")
        elif self._size > MAX_BODY_BYTES:
            self._refuse(413, f"more than {MAX_BODY_BYTES} bytes")
        else:
            self._take(b"".join(self._body))

    # --- Requests -----------------------------------------------------------------------------

    def _take(self, body: bytes) -> None:
        try:
            envelope = decode_envelope(body)
        except msgspec.MsgspecError as error:
            logger.warning("messages of another node cannot be read: %s", error)
            self._refuse(400, str(error))
            return
        try:
            self._receiver(envelope, self._respond)
        except DistSyncError as error:
            self._refuse(503, str(error))

    def _respond(self, answer: Answer) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False
        body = encode(answer)
        self._transport.write(b"%b%d\r\n\r\n%b" % (_OK, len(body), body))
        return True

    def _refuse(self, status: int, reason: str) -> None:
        if self._transport is not None:
            body = reason.encode("utf-8", "replace")
            self._transport.write(
                b"HTTP/1.1 %d Refused\r\ncontent-type: text/plain\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (status, len(body), body)
            )
            self._transport.close()
