"""Messages to other members: in the answer to their envelope where one waits, else in a POST.

An append and its acknowledgement are one HTTP exchange: the envelope's answer is held back until
the acknowledgement is durable. Messages gather while requests are in flight, so that many share
one. The network may lose messages, so a link that cannot keep up drops the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from distsync_node.peers.outbound import Target
from distsync_node.peers.pool import Pool
from distsync_node.peers.wire import decode_answer, encode
from distsync_node.raft.types import MemberId
from distsync_node.replica.types import Answer, Envelope, PeerMessage

MAX_CONNECTIONS = 8
MAX_WAITING_MESSAGES = 256
HOLD_ANSWER_SECONDS = 2.0


class Link:
    """The way to one member. Without an address, only answers can carry messages to it."""

    def __init__(
        self,
        to: MemberId,
        make_target: Callable[[str], Target],
        wrap: Callable[[MemberId, tuple[PeerMessage, ...]], Envelope],
        on_answer: Callable[[Answer], None],
    ) -> None:
        self.to = to
        self.pending = 0  # messages that wait for the disk
        self._wrap = wrap
        self._on_answer = on_answer
        self._waiting: list[PeerMessage] = []
        self._held: deque[_Held] = deque()
        self._closed = False
        self._pool = Pool(
            make_target,
            MAX_CONNECTIONS,
            on_reply=self._read,
            on_refused=self._forget_waiting,
            on_change=self.kick,
        )

    def address(self, url: str) -> None:
        """Send to that URL from now on."""
        self._pool.address(url)

    @property
    def has_waiting(self) -> bool:
        """Something waits to be sent."""
        return bool(self._waiting)

    def push(self, message: PeerMessage) -> None:
        """Take a message; it leaves with the next `kick`."""
        self._waiting.append(message)
        if len(self._waiting) > MAX_WAITING_MESSAGES:
            del self._waiting[0]

    def take(self) -> tuple[PeerMessage, ...]:
        """Return and forget what waits."""
        messages, self._waiting = tuple(self._waiting), []
        return messages

    def put_back(self, messages: tuple[PeerMessage, ...]) -> None:
        """What was taken could not be sent: the connection of its answer is gone."""
        self._waiting[:0] = messages

    def kick(self) -> None:
        """Let what waits leave: through a held answer, else in a request if one is free."""
        if not self._waiting or self._closed:
            return
        while self._held and self._waiting:
            self._held.popleft().release()
        if not self._waiting:
            return
        if self._pool.is_free:
            self._pool.post(encode(self._wrap(self.to, self.take())))
        else:
            self._pool.grow()

    def hold(self, respond: Callable[[], None]) -> None:
        """Have `respond` called once there is something to send, or after a bounded time.

        It takes what waits, and puts it back when nobody is there any more to be answered.
        """
        self._held.append(_Held(self, respond))

    def forget(self, held: _Held) -> None:
        """It was answered empty: there was nothing to send in time."""
        self._held.remove(held)

    def _forget_waiting(self) -> None:
        """Nobody listens there. What waited is lost, as messages may be; the core sends anew."""
        self._waiting = []

    def _read(self, body: bytes) -> bool:
        try:
            answer = decode_answer(body)
        except msgspec.MsgspecError:
            return False
        self._on_answer(answer)
        return True

    async def close(self) -> None:
        """End what is in flight."""
        self._closed = True
        for held in self._held:
            held.cancel()
        await self._pool.close()


class _Held:
    """An answer that is held back."""

    __slots__ = ("_link", "_respond", "_timer")

    def __init__(self, link: Link, respond: Callable[[], None]) -> None:
        self._link = link
        self._respond = respond
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HOLD_ANSWER_SECONDS, self._expire)

    def release(self) -> None:
        self._timer.cancel()
        self._respond()

    def cancel(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self._link.forget(self)
        self._respond()
