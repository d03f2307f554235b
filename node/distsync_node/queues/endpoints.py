"""The receiving side of calls about queues: raw ASGI handlers of the peer port.

The shared secret was checked before. A caller that goes away cancels what waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from distsync_node.asgi import ASGIApp, Receive, Scope, Send, disconnected
from distsync_node.peers.endpoints import read_body, refuse, respond
from distsync_node.peers.inbound import Receiver, RespondBytes
from distsync_node.queues.calls import (
    CALLS_PATH,
    POP_PATH,
    PUSH_PATH,
    SIGNAL_PATH,
    Request,
    Response,
    decode_request,
    decode_requests,
    encode,
)
from distsync_node.queues.service import QueueService

logger = logging.getLogger(__name__)

OK = 200


class InternalEndpoints:
    """POST /queue/internal_..."""

    def __init__(self, queues: QueueService) -> None:
        self._queues = queues
        self._tasks: set[asyncio.Task[None]] = set()

    def receivers(self) -> dict[str, Receiver]:
        """Return what takes requests below ASGI, by path."""
        return {CALLS_PATH: self._receive}

    def _receive(self, body: bytes, respond: RespondBytes) -> None:
        task = asyncio.create_task(self._answer_all(decode_requests(body), respond))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_all(self, requests: Sequence[Request], respond: RespondBytes) -> None:
        """Answer calls of one caller when the last of them is done."""
        answers = await asyncio.gather(*map(self._queues.answer, requests), return_exceptions=True)
        responses: list[Response] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                logger.error("a call of another node failed", exc_info=answer)
                respond(encode(()))  # which says nothing of any of them
                return
            responses.append(answer)
        if not respond(encode(responses)):
            for request, response in zip(requests, responses, strict=True):
                self._queues.unanswered(request.call, response.reply)

    def handlers(self) -> dict[str, ASGIApp]:
        """Return path -> ASGI handler."""
        return {PUSH_PATH: self.call, SIGNAL_PATH: self.call, POP_PATH: self.call}

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
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
