"""The thread between the event loop and the disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distsync_node.errors import DiskFull, StorageFailed
from distsync_node.raft.types import Persist
from distsync_node.storage import DiskThread, Storage
from unit.storage.samples import GENESIS, GENESIS_HARD_STATE, append, entries, snapshot


class GatedStorage(Storage):
    """A real storage whose writes wait at a gate and fail on request."""

    gate: threading.Event
    arrived: threading.Event
    failure: Exception | None
    batches: list[list[int]]

    def write(self, batch: Sequence[Persist]) -> None:
        self.arrived.set()
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append([persist.seq for persist in batch])
        super().write(batch)


class Rig:
    """A disk thread, and a record of what it reported."""

    def __init__(self, path: Path, **options: float) -> None:
        storage = GatedStorage.open(path)
        assert isinstance(storage, GatedStorage)
        self.storage = storage
        self.storage.initialise(GENESIS, GENESIS_HARD_STATE)
        self.storage.gate = threading.Event()
        self.storage.gate.set()
        self.storage.arrived = threading.Event()
        self.storage.failure = None
        self.storage.batches = []
        self.persisted: list[int] = []
        self.full: list[DiskFull | None] = []
        self.fatal: list[BaseException] = []
        self.threads: set[int] = set()
        self._changed = asyncio.Event()
        self.thread = DiskThread(
            self.storage,
            loop=asyncio.get_running_loop(),
            on_persisted=self._note(self.persisted),
            on_disk_full=self._note(self.full),
            on_fatal=self._note(self.fatal),
            retry_after_seconds=0.01,
            **options,
        )
        self.thread.start()

    def _note(self, into: list) -> Callable[[object], None]:  # type: ignore[type-arg]
        def note(value: object) -> None:
            self.threads.add(threading.get_ident())
            into.append(value)
            self._changed.set()

        return note

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def blocked(self) -> None:
        """Wait until the thread stands at the gate."""
        await asyncio.to_thread(self.storage.arrived.wait, 20)


@asynccontextmanager
async def running(path: Path, *, quick_seconds: float) -> AsyncIterator[Rig]:
    rig = Rig(path, quick_seconds=quick_seconds)
    yield rig
    rig.storage.gate.set()
    await rig.thread.close()
    rig.storage.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Every disk counts as slow: the thread writes."""
    async with running(tmp_path, quick_seconds=0) as rig:
        yield rig


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Rig]:
    """Every disk counts as quick once the thread has measured it, which was on entry 2."""
    async with running(tmp_path, quick_seconds=30) as rig:
        rig.thread.submit(append(2, 2))
        rig.thread.write_pending()
        assert rig.persisted == []
        await rig.until(lambda: rig.persisted == [2])
        rig.persisted.clear()
        rig.storage.batches.clear()
        rig.storage.arrived.clear()
        yield rig


def on_disk(path: Path) -> Sequence[object]:
    storage = Storage.open(path)
    storage.close()
    assert storage.recovered is not None
    return storage.recovered.entries


async def test_an_effect_is_on_disk_when_it_is_reported_on_the_loop(
    rig: Rig, tmp_path: Path
) -> None:
    rig.thread.submit(append(2, 3))
    await rig.until(lambda: rig.persisted == [3])
    assert rig.threads == {threading.get_ident()}
    rig.storage.close()
    assert on_disk(tmp_path) == entries(2, 3)


async def test_what_queues_up_behind_a_write_becomes_one_write(rig: Rig) -> None:
    rig.storage.gate.clear()
    rig.thread.submit(append(2, 2))
    await rig.blocked()
    for index in range(3, 50):
        rig.thread.submit(append(index, index))
    assert rig.persisted == []
    rig.storage.gate.set()
    await rig.until(lambda: rig.persisted == [2, 49])
    assert rig.storage.batches == [[2], list(range(3, 50))]


async def test_the_loop_goes_on_while_the_disk_is_stuck(rig: Rig) -> None:
    rig.storage.gate.clear()
    rig.thread.submit(append(2, 2))
    await rig.blocked()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert rig.persisted == []


async def test_a_full_disk_is_reported_and_the_batch_kept_until_it_goes_through(
    rig: Rig, tmp_path: Path
) -> None:
    rig.storage.failure = DiskFull("full")
    rig.thread.submit(append(2, 2))
    await rig.until(lambda: rig.full)
    rig.thread.submit(append(3, 3))
    rig.storage.arrived.clear()
    await rig.blocked()  # it tries again by itself
    assert rig.full == [rig.storage.failure]
    assert rig.persisted == []
    full, rig.storage.failure = rig.storage.failure, None
    await rig.until(lambda: rig.persisted == [2, 3])
    assert rig.full == [full, None]
    rig.storage.close()
    assert on_disk(tmp_path) == entries(2, 3)


@pytest.mark.parametrize("error", [StorageFailed("failed"), ValueError("a bug")])
async def test_after_a_failure_nothing_more_is_written(rig: Rig, error: Exception) -> None:
    rig.storage.failure = error
    rig.thread.submit(append(2, 2))
    await rig.until(lambda: rig.fatal)
    rig.storage.failure = None
    rig.thread.submit(append(2, 3))
    await rig.thread.close()
    assert rig.fatal == [error]
    assert rig.persisted == []
    assert rig.storage.batches == []


async def test_close_writes_and_reports_what_is_queued(rig: Rig, tmp_path: Path) -> None:
    rig.storage.gate.clear()
    for index in range(2, 10):
        rig.thread.submit(append(index, index))
    closing = asyncio.create_task(rig.thread.close())
    await asyncio.sleep(0)
    assert not closing.done()
    rig.storage.gate.set()
    await closing
    assert rig.persisted[-1] == 9
    rig.storage.close()
    assert on_disk(tmp_path) == entries(2, 9)


async def test_close_does_not_wait_for_a_full_disk(rig: Rig) -> None:
    rig.storage.failure = DiskFull("full")
    rig.thread.submit(append(2, 2))
    await rig.until(lambda: rig.full)
    async with asyncio.timeout(20):
        await rig.thread.close()
    assert rig.persisted == []


async def test_close_before_start_and_twice_is_fine(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    thread = DiskThread(
        storage,
        loop=asyncio.get_running_loop(),
        on_persisted=print,
        on_disk_full=print,
        on_fatal=print,
    )
    await thread.close()
    await thread.close()
    storage.close()


async def test_sequence_numbers_are_reported_in_order_under_load(rig: Rig) -> None:
    for index in range(2, 2002):
        rig.thread.submit(append(index, index))
        if index % 100 == 0:
            await asyncio.sleep(0)
    await rig.until(lambda: rig.persisted and rig.persisted[-1] == 2001)
    assert rig.persisted == sorted(set(rig.persisted))
    assert sum(map(len, rig.storage.batches)) == 2000


# --- Writing on the event loop while the disk is quick ------------------------------------------


async def test_on_a_quick_disk_an_effect_is_on_disk_when_write_pending_returns(
    quick: Rig, tmp_path: Path
) -> None:
    quick.thread.submit(append(3, 3))
    quick.thread.submit(append(4, 5))
    assert quick.storage.batches == []
    quick.thread.write_pending()
    assert quick.persisted == [5]
    assert quick.storage.batches == [[3, 5]]
    quick.storage.close()
    assert on_disk(tmp_path) == entries(2, 5)


async def test_nothing_overtakes_what_the_thread_has(quick: Rig) -> None:
    quick.thread.submit(append(3, 3))
    quick.storage.gate.clear()
    quick.thread.submit(Persist(seq=4, snapshot=snapshot(2)))  # both go to the thread
    await quick.blocked()
    quick.thread.submit(append(4, 5))
    quick.thread.write_pending()
    assert quick.storage.batches == []
    quick.storage.gate.set()
    await quick.until(lambda: quick.persisted and quick.persisted[-1] == 5)
    assert [seq for batch in quick.storage.batches for seq in batch] == [3, 4, 5]


async def test_a_disk_found_full_on_the_event_loop_is_tried_again_on_the_thread(
    quick: Rig,
) -> None:
    full = quick.storage.failure = DiskFull("full")
    quick.thread.submit(append(3, 3))
    quick.thread.write_pending()
    quick.thread.submit(append(4, 4))
    quick.thread.write_pending()
    await quick.until(lambda: quick.full == [full])
    quick.storage.failure = None
    await quick.until(lambda: quick.persisted and quick.persisted[-1] == 4)
    assert quick.full == [full, None]
    assert [seq for batch in quick.storage.batches for seq in batch] == [3, 4]


async def test_after_a_failure_on_the_event_loop_nothing_more_is_written(quick: Rig) -> None:
    error = ValueError("a bug")
    quick.storage.failure = error
    quick.thread.submit(append(3, 3))
    quick.thread.write_pending()
    quick.storage.failure = None
    quick.thread.submit(append(3, 4))
    quick.thread.write_pending()
    await quick.thread.close()
    assert quick.fatal == [error]
    assert quick.storage.batches == []


async def test_close_writes_what_waits_for_the_event_loop(quick: Rig) -> None:
    quick.thread.submit(append(3, 3))
    await quick.thread.close()
    assert quick.persisted == [3]


async def test_a_slow_disk_is_left_to_the_thread(rig: Rig) -> None:
    rig.storage.gate.clear()
    rig.thread.submit(append(2, 2))
    rig.thread.write_pending()  # would wait at the gate for ever
    await rig.blocked()
    rig.storage.gate.set()
    await rig.until(lambda: rig.persisted == [2])


async def test_a_disk_that_stalled_once_is_left_to_the_thread_for_a_while(
    quick: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsync_node.storage.disk_thread._STALL_FACTOR", 0)
    quick.thread.submit(append(3, 3))
    quick.thread.write_pending()
    assert quick.persisted == [3]
    quick.thread.submit(append(4, 4))
    quick.thread.write_pending()
    assert quick.persisted == [3]
    await quick.until(lambda: quick.persisted == [3, 4])
