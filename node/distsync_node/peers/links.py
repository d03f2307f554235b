"""Messages to other members: in the answer to their envelope where one waits, else in a POST.

An append and its acknowledgement are one HTTP exchange: the envelope's answer is held back until
the acknowledgement is durable. Messages gather while requests are in flight, so that many share
one. The network may lose messages, so a link that cannot keep up drops the oldest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from distsync_node.peers.client import PeerClient, PeerUnreachable
from distsync_node.peers.wire import MESSAGES_PATH, decode_answer, encode
from distsync_node.raft.types import MemberId
from distsync_node.replica.types import Answer, Envelope, PeerMessage

MAX_REQUESTS_IN_FLIGHT = 8
MAX_WAITING_MESSAGES = 256
REQUEST_SECONDS = 3.0
HOLD_ANSWER_SECONDS = 2.0


class Link:
    """The way to one member."""

    def __init__(
        self,
        to: MemberId,
        url: str,
        client: PeerClient,
        wrap: Callable[[MemberId, tuple[PeerMessage, ...]], Envelope],
        on_answer: Callable[[Answer], None],
    ) -> None:
        self.to = to
        self.url = url
        self.pending = 0  # messages that wait for the disk
        self._client = client
        self._wrap = wrap
        self._on_answer = on_answer
        self._waiting: list[PeerMessage] = []
        self._held: list[asyncio.Future[None]] = []
        self._requests: set[asyncio.Task[None]] = set()

    def push(self, message: PeerMessage) -> None:
        """Take a message; it leaves with the next `kick`."""
        self._waiting.append(message)
        if len(self._waiting) > MAX_WAITING_MESSAGES:
            del self._waiting[0]

    def take(self) -> tuple[PeerMessage, ...]:
        """Return and forget what waits."""
        messages, self._waiting = tuple(self._waiting), []
        return messages

    def kick(self) -> None:
        """Let what waits leave: through a held answer, else in a request if one is free."""
        if not self._waiting:
            return
        while self._held:
            held = self._held.pop(0)
            if not held.done():
                held.set_result(None)
                return
        if len(self._requests) < MAX_REQUESTS_IN_FLIGHT and self.url:
            body = encode(self._wrap(self.to, self.take()))
            task = asyncio.create_task(self._post(body))
            self._requests.add(task)
            task.add_done_callback(self._posted)

    async def hold(self) -> None:
        """Wait until something is to be sent, or for a bounded time."""
        loop = asyncio.get_running_loop()
        held = loop.create_future()
        self._held.append(held)
        timer = loop.call_later(HOLD_ANSWER_SECONDS, _release, held)
        try:
            await held
        finally:
            timer.cancel()
            if held in self._held:
                self._held.remove(held)

    async def _post(self, body: bytes) -> None:
        try:
            content = await self._client.post(
                self.url + MESSAGES_PATH, body, timeout_seconds=REQUEST_SECONDS
            )
            answer = decode_answer(content)
        except (PeerUnreachable, msgspec.MsgspecError):
            return  # lost, as messages may be: the core sends again
        self._on_answer(answer)

    def _posted(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.result()
            self.kick()

    async def close(self) -> None:
        """End what is in flight."""
        for held in self._held:
            held.cancel()
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)


def _release(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)
