"""The way to the cache of another process: a bounded queue in front of a few connections.

Messages gather while requests are in flight, so that many share one. All of a request have one
path. The network may lose messages, and who waits for an answer sends again; so what cannot be
sent is dropped, the oldest first, and nothing is ever sent again from here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from distsync_node.peers.outbound import Target
from distsync_node.peers.pool import Pool

MAX_CONNECTIONS: Final = 3  # requests are answered at once, so few are enough; order is kept better
MAX_WAITING_BYTES: Final = 16 << 20
MAX_PARCEL_BYTES: Final = 4 << 20


class PeerLink:
    """The way to one process. Without an address, only answers can carry messages to it."""

    def __init__(
        self,
        make_target: Callable[[str], Target],
        wrap: Callable[[Sequence[bytes]], bytes],
        on_reply: Callable[[bytes], bool],
    ) -> None:
        self._wrap = wrap
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._pool = Pool(
            make_target,
            MAX_CONNECTIONS,
            on_reply=on_reply,
            on_refused=self._forget_waiting,
            on_change=self.kick,
        )
        self.held = False  # what waits leaves in an answer

    def address(self, url: str) -> None:
        """Send to that URL from now on."""
        self._pool.address(url)

    def push(self, path: str, message: bytes) -> None:
        """Take a message; it leaves with the next `kick`."""
        self._waiting.append((path, message))
        self._waiting_bytes += len(message)
        while self._waiting_bytes > MAX_WAITING_BYTES and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft()[1])

    def take(self) -> list[bytes]:
        """Return and forget what waits, as much as an answer may carry."""
        return self._take(None)

    def _take(self, path: str | None) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        while self._waiting:
            one_path, message = self._waiting[0]
            if taken and (size + len(message) > MAX_PARCEL_BYTES or path not in (None, one_path)):
                break
            self._waiting.popleft()
            taken.append(message)
            size += len(message)
        self._waiting_bytes -= size
        return taken

    def kick(self) -> None:
        """Let what waits leave, as far as connections are free."""
        if self.held:
            return
        while self._waiting and self._pool.is_free:
            path = self._waiting[0][0]
            self._pool.post(self._wrap(self._take(path)), path)
        if self._waiting:
            self._pool.grow()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0

    async def close(self) -> None:
        """End what is in flight."""
        self._forget_waiting()
        await self._pool.close()
