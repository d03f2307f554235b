"""Serves the schedules of a node's queues: once a second, whatever is due.

What is late is served whosever it is: its owner may be gone or cut off from Redis, and without a
quorum it stays the owner. That two nodes may serve the same then changes nothing, see `schedules`.

One that cannot be served (kept in a format of another version, in a time zone that this node does
not know) holds up no other, and is told in the log once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from distsync_node.errors import DistSyncError, QueueFull
from distsync_node.queues.complaints import Complaints
from distsync_node.queues.schedules import Due
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import Pushed

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
LATE_MS: Final = 3_000  # from then on it is for every node to do
QUEUES_PER_PAGE: Final = 1_000


class ScheduleServer:
    """Pushes what is due. `is_ours` says of a queue whether it is for this node to do;
    `signal` is told of a queue how many messages became ready."""

    def __init__(
        self,
        store: QueueStore,
        is_ours: Callable[[str], bool],
        signal: Callable[[str, int], None],
    ) -> None:
        self._store = store
        self._is_ours = is_ours
        self._signal = signal
        self._complaints = Complaints()

    async def run(self, over: asyncio.Event) -> None:
        """Serve until it is over."""
        while not over.is_set():
            try:
                await self._look(over)
            except Exception as error:
                self._complaints.tell("schedules are not served", error)
            self._complaints.next_round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await over.wait()

    async def _look(self, over: asyncio.Event) -> None:
        passed, is_last_page = 0, False  # passed: how many stay due for now
        while not is_last_page:
            page = await self._store.schedules.to_look_at(after=passed, limit=QUEUES_PER_PAGE)
            is_last_page = len(page) < QUEUES_PER_PAGE
            for queue, late_ms in page:
                if over.is_set():
                    return
                is_for_us = late_ms > LATE_MS or self._is_ours(queue)
                if not is_for_us or not await self._try_to_serve(queue):
                    passed += 1

    async def _try_to_serve(self, queue: str) -> bool:
        try:
            await self._serve_queue(queue)
        except Exception as error:
            if isinstance(error, DistSyncError) and error.retriable:
                raise  # Redis is away or full: the next queue would fare no better
            self._complaints.tell(f"schedules of {queue} are not served", error)
            return False
        return True

    async def _serve_queue(self, queue: str) -> None:
        for due in await self._store.schedules.due(queue):
            try:
                await self._serve(due)
            except DistSyncError as error:
                if error.retriable:
                    raise
                self._complaints.tell(f"schedule {due.schedule_id} of {queue} is not served", error)
        await self._store.schedules.looked_at(queue)

    async def _serve(self, due: Due) -> None:
        due.after()  # if it has none that can be told, it is not pushed either, again and again
        try:
            pushed = await self._store.push(
                due.queue, [due.message], request_id=due.push_id, push_id=due.push_id
            )
        except QueueFull as error:
            logger.warning("schedule %s: a time is left out: %s", due.schedule_id, error)
        else:
            if isinstance(pushed, Pushed):
                self._signal(due.queue, pushed.ready)
        await self._store.schedules.served(due)
