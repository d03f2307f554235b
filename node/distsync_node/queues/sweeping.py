"""Does what time has made due in a node's queues when nobody else comes by.

Pops do most of it on their way. In a queue that nobody pops they would leave messages whose time to
live is over, last claims that ended and are to make dead letters, and remembered requests. So each
node goes through the register of queues, a page a second, over and over, and sweeps its own.
However many queues there are, that is so many small scripts a second.

A queue that cannot be swept holds up no other, and is told in the log once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from distsync_node.errors import DistSyncError
from distsync_node.queues import limits
from distsync_node.queues.complaints import Complaints
from distsync_node.queues.store import QueueStore

PAGE_SECONDS: Final = 1.0
MAX_SWEEPS: Final = 100  # of one queue before it is the turn of the next


class Sweeper:
    """Sweeps queues. `is_ours` says of a queue whether it is for this node to do."""

    def __init__(self, store: QueueStore, is_ours: Callable[[str], bool]) -> None:
        self._store = store
        self._is_ours = is_ours
        self._after = ""  # the queue that was looked at last in this round
        self._complaints = Complaints()

    async def run(self, over: asyncio.Event) -> None:
        """Sweep until it is over."""
        while not over.is_set():
            try:
                await self._sweep_page(over)
            except Exception as error:
                self._complaints.tell("queues are not swept", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAGE_SECONDS):
                    await over.wait()

    async def _sweep_page(self, over: asyncio.Event) -> None:
        names = await self._store.queue_names(after=self._after, limit=limits.MAX_BATCH)
        for queue in names:
            if over.is_set():
                return
            if self._is_ours(queue):
                await self._sweep(queue)
            self._after = queue
        if len(names) < limits.MAX_BATCH:
            self._after = ""
            self._complaints.next_round()

    async def _sweep(self, queue: str) -> None:
        try:
            for _ in range(MAX_SWEEPS):
                if not (await self._store.sweep(queue)).more:
                    return
        except Exception as error:
            if isinstance(error, DistSyncError) and error.retriable:
                raise  # Redis is away: the next queue would fare no better
            self._complaints.tell(f"queue {queue} is not swept", error)
