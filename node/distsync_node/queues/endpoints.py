"""The receiving side of calls about queues: raw ASGI handlers of the peer port.

The shared secret was checked before. A caller that goes away cancels what waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import msgspec

from distsync_node.peers.endpoints import (
    Handler,
    Receive,
    Send,
    disconnected,
    read_body,
    refuse,
    respond,
)
from distsync_node.queues.calls import (
    POP_PATH,
    PUSH_PATH,
    SIGNAL_PATH,
    decode_request,
    encode,
)
from distsync_node.queues.service import QueueService

OK = 200


class InternalEndpoints:
    """POST /queue/internal_..."""

    def __init__(self, queues: QueueService) -> None:
        self._queues = queues

    def handlers(self) -> dict[str, Handler]:
        """Return path -> ASGI handler."""
        return {PUSH_PATH: self.call, SIGNAL_PATH: self.call, POP_PATH: self.call}

    async def call(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one call."""
        body = await read_body(receive)
        if body is None:
            return
        try:
            request = decode_request(body)
        except msgspec.MsgspecError as error:
            await refuse(scope, send, error)
            return
        work = asyncio.ensure_future(self._queues.answer(request))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                await respond(send, OK, encode(work.result()))
            elif work.done():
                self._queues.unanswered(request.call, work.result().reply)
        finally:
            gone.cancel()
            work.cancel()
