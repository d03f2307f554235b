"""The async shell of the storage: small writes on a quick disk at once, others on a thread.

Handing a write to a thread and its end back costs two wake-ups each way, more than a quick disk
needs for the write itself (docs/decisions.md). So what is submitted while the thread is idle waits
for `write_pending`, which writes on the event loop as long as the disk has lately been quick. A
disk that is slow, or a snapshot, goes to the thread and the event loop goes on.

Guarantees:

- what is submitted is written in that order; everything queued goes into one `Storage.write`;
- `on_persisted(seq)` runs on the event loop after the write up to `seq` is durable, with rising
  `seq`;
- while there is no room the batch is kept and tried again, and nothing behind it overtakes it;
  `on_disk_full` is told the error, and None once the batch is through;
- after a failure of the disk, or a bug, nothing more is written and `on_fatal` runs once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from distsync_node.errors import DiskFull
from distsync_node.raft.types import Persist
from distsync_node.storage.storage import Storage

_RETRY_AFTER_SECONDS = 0.5
_BATCH_LIMIT = 1024
# Above this the event loop does not wait: heartbeats are due every 100 ms, requests all the time.
_QUICK_SECONDS = 0.001
_SMOOTHING = 0.1
_STALL_FACTOR = 10  # one write this much slower than quick: the thread has it for a while
_SLOW_FOR_SECONDS = 1.0


class DiskThread:
    """Writes Persist effects on a thread of its own. Callbacks run on the given event loop."""

    def __init__(
        self,
        storage: Storage,
        *,
        loop: asyncio.AbstractEventLoop,
        on_persisted: Callable[[int], object],
        on_disk_full: Callable[[DiskFull | None], object],
        on_fatal: Callable[[BaseException], object],
        retry_after_seconds: float = _RETRY_AFTER_SECONDS,
        quick_seconds: float = _QUICK_SECONDS,
    ) -> None:
        self._storage = storage
        self._loop = loop
        self._on_persisted = on_persisted
        self._on_disk_full = on_disk_full
        self._on_fatal = on_fatal
        self._retry_after_seconds = retry_after_seconds
        self._quick_seconds = quick_seconds
        self._queue: SimpleQueue[Persist | None] = SimpleQueue()
        self._pending: list[Persist] = []
        self._on_thread = 0  # effects that the thread has and has not reported
        self._write_seconds = quick_seconds  # smoothed; the thread measures first
        self._slow_until = 0.0
        self._failed = False
        self._closing = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, persist: Persist) -> None:
        """Take an effect; never blocks. It is written by the thread or by `write_pending`."""
        if self._failed:
            return
        if self._on_thread == 0 and self._is_quick() and persist.snapshot is None:
            self._pending.append(persist)
        else:
            self._hand_over([persist])

    def write_pending(self) -> None:
        """Write what waits for the event loop, and report it.

        Call it when nothing else is to be sent first; what `on_persisted` submits is written too.
        """
        while self._pending and not self._failed:
            batch, self._pending = self._pending, []
            if self._on_thread:
                self._hand_over(batch)
                return
            started = time.perf_counter()
            try:
                self._storage.write(batch)
            except DiskFull:
                self._hand_over(batch)  # the thread tries again and reports
                return
            except BaseException as error:
                self._failed = True
                self._on_fatal(error)
                return
            self._measure(time.perf_counter() - started)
            self._on_persisted(batch[-1].seq)

    def _hand_over(self, batch: list[Persist]) -> None:
        waiting, self._pending = self._pending, []
        for persist in (*waiting, *batch):
            self._on_thread += 1
            self._queue.put(persist)

    def _is_quick(self) -> bool:
        return self._write_seconds < self._quick_seconds and time.monotonic() >= self._slow_until

    def _measure(self, seconds: float) -> None:
        self._write_seconds += _SMOOTHING * (seconds - self._write_seconds)
        if seconds > _STALL_FACTOR * self._quick_seconds:
            self._slow_until = time.monotonic() + _SLOW_FOR_SECONDS

    def _thread_persisted(self, count: int, seq: int, seconds: float) -> None:
        self._on_thread -= count
        self._measure(seconds)
        self._on_persisted(seq)

    async def close(self) -> None:
        """Write what is queued, report it, and end the thread. A full disk is not waited for."""
        self._hand_over([])
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
            started = time.perf_counter()
            try:
                self._storage.write(batch)
            except DiskFull as error:
                if not was_full:
                    was_full = True
                    self._tell(self._on_disk_full, error)
                if self._closing.wait(self._retry_after_seconds):
                    return False
            else:
                if was_full:
                    self._tell(self._on_disk_full, None)
                seconds = time.perf_counter() - started
                self._tell(self._thread_persisted, len(batch), batch[-1].seq, seconds)
                return True

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop was closed under the thread: there is nobody left to tell.
            self._closing.set()
