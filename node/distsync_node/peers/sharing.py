"""Calls to another node that are answered at once, on their way there: many share a request.

A request for each would cost both nodes more than most calls do (docs/decisions.md). So calls
gather while requests are in flight, and one request carries all that have gathered, below ASGI on
kept connections, as messages between members do. Its body is an array of calls, and its answer an
array of their replies, in the same order.

Guarantees: each call is answered once, with its reply or with why there is none;
`PeerUnreachable.sent` is false only if no byte of the call has left. Nothing is sent twice from
here. The order of calls is not kept. A call that waits for something does not belong here: the
others would wait with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from distsync_node.peers.outbound import Connection, OnDone, PeerUnreachable, Target, connect

MAX_CONNECTIONS: Final = 2  # and so many requests at a time: the more, the fewer share one
MAX_CALLS: Final = 256  # in one request,
MAX_BYTES: Final = 4 << 20  # and so much, but for a call that is larger
PAUSE_SECONDS: Final = 0.05  # before an address is tried again at which nobody listened

Connect: TypeAlias = Callable[[Target, OnDone], Awaitable[Connection]]
ReplyT = TypeVar("ReplyT")

_encode = msgspec.msgpack.Encoder().encode


class _Waiting(Generic[ReplyT]):
    __slots__ = ("call", "future", "sent")

    def __init__(self, call: bytes, future: asyncio.Future[ReplyT]) -> None:
        self.call = call
        self.future = future
        self.sent = False

    def fail(self, why: str) -> None:
        if not self.future.done():
            self.future.set_exception(PeerUnreachable(why, sent=self.sent))


class SharedRequests(Generic[ReplyT]):
    """The way of calls of one kind to one node; `address` it before use."""

    def __init__(
        self,
        make_target: Callable[[str], Target],
        path: str,
        decode: Callable[[bytes], Sequence[ReplyT]],
        *,
        connect: Connect = connect,
    ) -> None:
        """`decode` reads the body of an answer, or raises MsgspecError."""
        self._make_target = make_target
        self._path = path
        self._decode = decode
        self._connect = connect
        self._url = ""
        self._target: Target | None = None
        self._waiting: deque[_Waiting[ReplyT]] = deque()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, list[_Waiting[ReplyT]]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._is_due = False

    def address(self, url: str) -> None:
        """Call the node at that URL from now on; nobody if it is empty."""
        if url != self._url:
            self.give_up("it has another address")
            self._url = url
            self._target = self._make_target(url) if url else None

    async def call(self, call: bytes, timeout_seconds: float) -> ReplyT:
        """Make an encoded call and return its reply.

        Raises:
            PeerUnreachable: no connection, no answer in time, or one that cannot be read.
        """
        if self._target is None:
            raise PeerUnreachable("it has no address", sent=False)
        loop = asyncio.get_running_loop()
        one: _Waiting[ReplyT] = _Waiting(call, loop.create_future())
        self._waiting.append(one)
        if not self._is_due:
            # What else this turn of the loop brings shares the request.
            self._is_due = True
            loop.call_soon(self._kick)
        late = loop.call_later(max(0.0, timeout_seconds), one.fail, "no answer in time")
        try:
            return await one.future
        finally:
            late.cancel()

    def give_up(self, why: str) -> None:
        """Answer everything now, as it stands, and begin again with new connections."""
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.fail(why)
        for batch in self._busy.values():
            for one in batch:
                one.fail(why)
        idle, self._idle = self._idle, []
        for connection in (*idle, *self._busy):
            connection.abort()

    async def close(self) -> None:
        """End what is in flight."""
        self.address("")
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)

    def _kick(self) -> None:
        """Let what waits leave, as far as connections are free."""
        self._is_due = False
        while self._waiting and self._idle:
            batch = self._take()
            if batch:
                connection = self._idle.pop()
                self._busy[connection] = batch
                connection.post(_encode([msgspec.Raw(one.call) for one in batch]), self._path)
        if self._waiting and self._target is not None:
            self._grow(self._target)

    def _take(self) -> list[_Waiting[ReplyT]]:
        """Return what leaves next; who gave up meanwhile is left out."""
        batch: list[_Waiting[ReplyT]] = []
        size = 0
        while self._waiting and len(batch) < MAX_CALLS:
            one = self._waiting[0]
            size += len(one.call)
            if batch and size > MAX_BYTES:
                break
            self._waiting.popleft()
            if not one.future.done():
                one.sent = True
                batch.append(one)
        return batch

    def _grow(self, target: Target) -> None:
        if self._connecting is None and len(self._busy) < MAX_CONNECTIONS:
            self._connecting = asyncio.create_task(self._make_connection(target))

    async def _make_connection(self, target: Target) -> None:
        try:
            connection = await self._connect(target, self._done)
        except OSError as error:
            if target is self._target:
                waiting, self._waiting = self._waiting, deque()
                for one in waiting:
                    one.fail(f"{self._url}: {error}")
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            if target is self._target:
                self._idle.append(connection)
            else:
                connection.abort()
        finally:
            self._connecting = None
        self._kick()

    def _done(self, connection: Connection, body: bytes | None) -> None:
        """A request has ended, or a connection without one."""
        batch = self._busy.pop(connection, [])
        if connection in self._idle:
            self._idle.remove(connection)
        if body is None:
            for one in batch:
                one.fail(f"{self._url}: the connection broke")
        else:
            self._answered(connection, batch, body)
        if connection.is_open:
            self._idle.append(connection)
        self._kick()

    def _answered(self, connection: Connection, batch: list[_Waiting[ReplyT]], body: bytes) -> None:
        try:
            replies = self._decode(body)
        except msgspec.MsgspecError:
            replies = ()
        if len(replies) != len(batch):
            connection.abort()
            for one in batch:
                one.fail(f"{self._url}: it answered in another format")
            return
        for one, reply in zip(batch, replies, strict=True):
            if not one.future.done():
                one.future.set_result(reply)
