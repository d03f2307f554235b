"""The receiving side of calls between nodes: raw ASGI handlers of the peer port.

The shared secret was checked before. A body is read within a limit and a deadline; a wrong one is
answered with 400 and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from distsync_node.asgi import ASGIApp, Receive, Scope, Send, disconnected
from distsync_node.errors import DistSyncError
from distsync_node.peers.wire import (
    ATTEMPT_HEADER,
    CALL_PATH,
    COMMAND_PATH,
    MAX_BODY_BYTES,
    CallReply,
    CallRequest,
    RejectedReply,
    decode_call,
    encode,
)
from distsync_node.replica.types import RejectReason

logger = logging.getLogger(__name__)

_CONTENT_TYPE = (b"content-type", b"application/msgpack")


class Serving(Protocol):
    """What the endpoints need of a node."""

    async def answer_call(
        self, request: CallRequest, on_parked: Callable[[int], object] | None = None
    ) -> CallReply:
        """Answer a call."""
        ...


class PeerEndpoints:
    """The raw handlers, by path."""

    def __init__(self, node: Serving) -> None:
        self._node = node

    def handlers(self) -> dict[str, ASGIApp]:
        """Return path -> ASGI handler."""
        return {
            CALL_PATH: self.call,
            COMMAND_PATH: self.call,
        }

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST a call; the body of the answer is a CallReply.

        When the command has to wait, the headers are sent at once with its attempt number.
        """
        body = await read_body(receive)
        if body is None:
            return
        try:
            request = decode_call(body)
        except msgspec.MsgspecError as error:
            await refuse(scope, send, error)
            return
        parked: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_parked(attempt: int) -> None:
            if not parked.done():
                parked.set_result(attempt)

        work = asyncio.ensure_future(self._answer(request, on_parked))
        try:
            await asyncio.wait((work, parked), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await respond(send, 200, encode(work.result()))
            else:
                await _wait_parked(work, parked.result(), receive, send)
        finally:
            work.cancel()

    async def _answer(self, request: CallRequest, on_parked: Callable[[int], object]) -> CallReply:
        try:
            return await self._node.answer_call(request, on_parked)
        except DistSyncError:
            return RejectedReply(RejectReason.NOT_LEADER, None)


async def _wait_parked(
    work: asyncio.Future[CallReply], attempt: int, receive: Receive, send: Send
) -> None:
    """Send the headers, then wait for the outcome or for the caller to go away."""
    headers = [_CONTENT_TYPE, (ATTEMPT_HEADER.encode(), str(attempt).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await send({"type": "http.response.body", "body": encode(work.result())})
    finally:
        gone.cancel()


async def read_body(receive: Receive) -> bytes | None:
    """Return the body, or None if the caller went away or sent too much."""
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    chunks = [body]
    size = len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def refuse(scope: Scope, send: Send, error: Exception) -> None:
    """Answer what cannot be read."""
    logger.warning("a message to %s cannot be read: %s", scope.get("path"), error)
    await respond(send, 400, str(error).encode())


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send a whole answer."""
    headers = [_CONTENT_TYPE, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
