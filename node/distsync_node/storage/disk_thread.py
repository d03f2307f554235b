"""The async shell of the storage: one thread that writes while the event loop goes on.

Guarantees:

- what is submitted is written in that order; everything queued goes into one `Storage.write`;
- `on_persisted(seq)` runs on the event loop after the write up to `seq` is durable, with rising
  `seq`;
- while the disk is full the batch is kept and tried again, and nothing behind it overtakes it;
- after a failure of the disk, or a bug, nothing more is written and `on_fatal` runs once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from distsync_node.errors import DiskFull
from distsync_node.raft.types import Persist
from distsync_node.storage.storage import Storage

_RETRY_AFTER_SECONDS = 0.5
_BATCH_LIMIT = 1024


class DiskThread:
    """Writes Persist effects on a thread of its own. Callbacks run on the given event loop."""

    def __init__(
        self,
        storage: Storage,
        *,
        loop: asyncio.AbstractEventLoop,
        on_persisted: Callable[[int], object],
        on_disk_full: Callable[[bool], object],
        on_fatal: Callable[[BaseException], object],
        retry_after_seconds: float = _RETRY_AFTER_SECONDS,
    ) -> None:
        self._storage = storage
        self._loop = loop
        self._on_persisted = on_persisted
        self._on_disk_full = on_disk_full
        self._on_fatal = on_fatal
        self._retry_after_seconds = retry_after_seconds
        self._queue: SimpleQueue[Persist | None] = SimpleQueue()
        self._closing = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, persist: Persist) -> None:
        """Queue an effect; never blocks."""
        self._queue.put(persist)

    async def close(self) -> None:
        """Write what is queued, report it, and end the thread. A full disk is not waited for."""
        self._closing.set()
        if self._thread.ident is None:
            return  # was never started
        self._queue.put(None)
        await self._stopped.wait()
        self._thread.join()

    # --- On the thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                if not self._write(batch):
                    break
        except BaseException as error:
            self._tell(self._on_fatal, error)
        finally:
            self._tell(self._stopped.set)

    def _next_batch(self) -> list[Persist]:
        """Wait for effects and take all there are; an empty list when closing."""
        batch: list[Persist] = []
        effect = self._queue.get()
        try:
            while effect is not None:
                batch.append(effect)
                if len(batch) == _BATCH_LIMIT:
                    return batch
                effect = self._queue.get_nowait()
        except Empty:
            return batch
        if batch:
            self._queue.put(None)
        return batch

    def _write(self, batch: list[Persist]) -> bool:
        """Write until it goes through; False if the disk was still full when closing."""
        was_full = False
        while True:
            try:
                self._storage.write(batch)
            except DiskFull:
                if not was_full:
                    was_full = True
                    self._tell(self._on_disk_full, True)
                if self._closing.wait(self._retry_after_seconds):
                    return False
            else:
                if was_full:
                    self._tell(self._on_disk_full, False)
                self._tell(self._on_persisted, batch[-1].seq)
                return True

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop was closed under the thread: there is nobody left to tell.
            self._closing.set()
