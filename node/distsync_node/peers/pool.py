"""A few kept connections to one process, made when something waits for one.

What is sent, and what becomes of it when nobody listens, is for whoever owns the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from distsync_node.peers.outbound import Connection, Target, connect
from distsync_node.peers.wire import MESSAGES_PATH

RECONNECT_SECONDS: Final = 0.05


class Pool:
    """Connections to one address, each with one request at a time.

    `on_reply` takes the body of an answer and says whether it could be read: the connection of one
    that could not is given up. `on_refused` is called when nobody listens. `on_change` is called
    whenever a request may be possible that was not before.
    """

    def __init__(
        self,
        make_target: Callable[[str], Target],
        most: int,
        *,
        on_reply: Callable[[bytes], bool],
        on_refused: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._make_target = make_target
        self._most = most
        self._on_reply = on_reply
        self._on_refused = on_refused
        self._on_change = on_change
        self._url = ""
        self._target: Target | None = None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    def address(self, url: str) -> None:
        """Send to that URL from now on; nowhere if it is empty."""
        if url == self._url:
            return
        self._url = url
        self._target = self._make_target(url) if url else None
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle = []

    @property
    def is_free(self) -> bool:
        """Whether a connection waits for a request."""
        return bool(self._idle)

    def post(self, body: bytes, path: str = MESSAGES_PATH) -> None:
        """Send a request. Only while `is_free`."""
        connection = self._idle.pop()
        self._busy.add(connection)
        connection.post(body, path)

    def grow(self) -> None:
        """Have one more connection made, if there may be one and none is being made."""
        if (
            self._target is not None
            and self._connecting is None
            and len(self._busy) < self._most
            and not self._closed
        ):
            self._connecting = asyncio.create_task(self._connect(self._target))

    async def _connect(self, target: Target) -> None:
        try:
            connection = await connect(target, self._done)
        except OSError:
            # The pause keeps a dead address from being asked without end.
            self._on_refused()
            await asyncio.sleep(RECONNECT_SECONDS)
        else:
            if self._closed or target is not self._target:
                connection.abort()
            else:
                self._idle.append(connection)
        finally:
            self._connecting = None
        self._on_change()

    def _done(self, connection: Connection, body: bytes | None) -> None:
        self._busy.discard(connection)
        if not connection.is_open:
            if connection in self._idle:
                self._idle.remove(connection)
        elif connection not in self._idle:
            self._idle.append(connection)  # before the answer is read: it may lead to a request
        if body is not None and not self._on_reply(body):
            if connection in self._idle:
                self._idle.remove(connection)
            connection.abort()
            return
        self._on_change()

    async def close(self) -> None:
        """End what is in flight."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
