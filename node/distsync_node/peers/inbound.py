"""The receiving side of messages between nodes, below ASGI: `POST /raft/messages` and its like.

An append and its acknowledgement are on the path of every command. Through ASGI and a task each
they cost several times what the consensus core does with them (docs/decisions.md), so a
connection whose first request is a POST of messages leaves uvicorn for the protocol here and stays
with it. It is plain HTTP/1.1 with keep-alive, parsed by httptools. What a path takes and answers
is its receiver's business. One request at a time is answered on a connection, as its sender
expects; a wrong one is answered and the connection closed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distsync_node.descriptors import has_room_for_call
from distsync_node.errors import DistSyncError
from distsync_node.peers.wire import MAX_BODY_BYTES, MESSAGES_PATH, decode_envelope, encode
from distsync_node.replica.types import Answer, Envelope

logger = logging.getLogger(__name__)

Respond = Callable[[Answer], bool]  # False: the connection is gone, and with it the answer
RespondBytes = Callable[[bytes], bool]
Receiver = Callable[[bytes, RespondBytes], None]
"""Takes a body and answers it, then or later. May raise MsgspecError and DistSyncError."""

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/msgpack\r\ncontent-length: "


def receive_envelopes(receive: Callable[[Envelope, Respond], None]) -> Mapping[str, Receiver]:
    """Return the receiver of consensus' messages, by path."""

    def receiver(body: bytes, respond: RespondBytes) -> None:
        receive(decode_envelope(body), lambda answer: respond(encode(answer)))

    return {MESSAGES_PATH: receiver}


def message_protocol(
    base: type[HttpToolsProtocol], receivers: Mapping[str, Receiver], secret: str
) -> type[HttpToolsProtocol]:
    """Return the protocol `base`, but for connections that carry messages."""
    by_path = {path.encode(): receiver for path, receiver in receivers.items()}
    request_lines = tuple(b"POST %b HTTP/1.1\r\n" % path for path in by_path)

    class PeerProtocol(base):  # type: ignore[misc, valid-type]
        _is_fresh = True

        def data_received(self, data: bytes) -> None:
            if self._is_fresh:
                self._is_fresh = False
                if data.startswith(request_lines):
                    self._hand_over(data)
                    return
                if not has_room_for_call(self.transport):
                    self.transport.write(_refusal(429, "too many connections to this node"))
                    self.transport.close()
                    return
            super().data_received(data)

        def _hand_over(self, data: bytes) -> None:
            protocol = MessageProtocol(by_path, secret, self.connections)
            self.connections.discard(self)
            self._unset_keepalive_if_required()  # its timer would close the connection
            protocol.connection_made(self.transport)
            self.transport.set_protocol(protocol)
            protocol.data_received(data)

    return PeerProtocol


class MessageProtocol(asyncio.Protocol):
    """One connection of another node."""

    def __init__(
        self, receivers: Mapping[bytes, Receiver], secret: str, connections: set[Any]
    ) -> None:
        self._receivers = receivers
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
        elif (receiver := self._receivers.get(self._path)) is None:
            self._refuse(404, "this connection carries messages")
        elif self._size > MAX_BODY_BYTES:
            self._refuse(413, f"more than {MAX_BODY_BYTES} bytes")
        else:
            self._take(receiver, b"".join(self._body))

    # --- Requests -----------------------------------------------------------------------------

    def _take(self, receiver: Receiver, body: bytes) -> None:
        try:
            receiver(body, self._respond)
        except msgspec.MsgspecError as error:
            logger.warning("messages of another node cannot be read: %s", error)
            self._refuse(400, str(error))
        except DistSyncError as error:
            self._refuse(503, str(error))

    def _respond(self, body: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(b"%b%d\r\n\r\n%b" % (_OK, len(body), body))
        return True

    def _refuse(self, status: int, reason: str) -> None:
        if self._transport is not None:
            self._transport.write(_refusal(status, reason))
            self._transport.close()


def _refusal(status: int, reason: str) -> bytes:
    body = reason.encode("utf-8", "replace")
    return (
        b"HTTP/1.1 %d Refused\r\ncontent-type: text/plain\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%b" % (status, len(body), body)
    )
