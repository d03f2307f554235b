"""A full disk refuses and loses nothing; a failed sync ends it."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from distsync_node.errors import DiskFull, StartupError, StorageFailed
from distsync_node.raft.types import LogIndex, Persist
from distsync_node.storage import Storage
from unit.storage.faultfs import FaultFileSystem, PowerCut
from unit.storage.samples import (
    GENESIS,
    GENESIS_HARD_STATE,
    append,
    entries,
    hard_state,
    snapshot,
)

PATH = Path("/data")
MEMBER = PATH / "member"


def founded(disk: FaultFileSystem) -> Storage:
    storage = Storage.open(PATH, filesystem=disk, segment_bytes=4096)
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    return storage


def after_restart(disk: FaultFileSystem, seed: int | None = None) -> Storage:
    if seed is None:
        disk.kill_process()
    else:
        disk.cut_power(random.Random(seed))
    return Storage.open(PATH, filesystem=disk, segment_bytes=4096)


@pytest.mark.parametrize("can_reserve", [True, False])
@pytest.mark.parametrize("budget_bytes", [0, 1, 100, 511, 512, 513, 1500, 4095, 5000])
def test_a_full_disk_changes_nothing_and_the_same_batch_goes_through_later(
    budget_bytes: int, can_reserve: bool
) -> None:
    disk = FaultFileSystem(can_reserve=can_reserve)
    storage = founded(disk)
    storage.write([append(2, 3, payload=b"kept" * 100)])
    before = after_restart(disk).recovered
    disk.kill_process()
    storage = after_restart(disk)
    batch = [append(4, 5, payload=b"late" * 700), Persist(seq=9, hard_state=hard_state(2))]
    disk.budget_bytes = budget_bytes
    for _ in range(3):
        with pytest.raises(DiskFull):
            storage.write(batch)
        disk.budget_bytes = min(budget_bytes, 50)
    for seed in (None, 1, 2):
        disk.budget_bytes = None
        storage = after_restart(disk, seed)
        assert storage.recovered == before
    disk.budget_bytes = 0
    with pytest.raises(DiskFull):
        storage.write(batch)
    disk.budget_bytes = None
    storage.write(batch)
    storage.write([append(6, 6)])
    state = after_restart(disk, 3).recovered
    assert state is not None
    assert state.entries == (
        entries(2, 3, payload=b"kept" * 100) + entries(4, 5, payload=b"late" * 700) + entries(6, 6)
    )
    assert state.hard_state == hard_state(2)


def test_the_rest_of_a_refused_record_cannot_mix_with_the_next_one() -> None:
    """The kernel may have put part of the refused record on the disk by itself."""
    for seed in range(40):
        disk = FaultFileSystem(can_reserve=False, writeback=random.Random(seed))
        storage = founded(disk)
        storage.write([append(2, 3)])
        disk.budget_bytes = 1800
        with pytest.raises(DiskFull):
            storage.write([append(4, 4, payload=b"refused" * 300)])
        disk.budget_bytes = None
        disk.cut_after = 1  # the write happens, its sync does not
        with pytest.raises(PowerCut):
            storage.write([append(4, 4, payload=b"torn" * 300)])
        state = after_restart(disk, seed).recovered
        assert state is not None
        assert state.entries[:2] == entries(2, 3)
        assert state.entries[2:] in ((), entries(4, 4, payload=b"torn" * 300))


def test_a_full_disk_leaves_no_half_written_files() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    names = disk.names(MEMBER)
    disk.budget_bytes = 1000
    with pytest.raises(DiskFull):
        storage.write([Persist(seq=1, snapshot=snapshot(3, data=b"s" * 5000))])
    with pytest.raises(DiskFull):
        storage.write([append(4, 4, payload=b"x" * 5000)])
    assert disk.names(MEMBER) == names


@pytest.mark.parametrize("room_after_snapshot", [False, True])
def test_an_install_on_a_full_disk_goes_through_later(room_after_snapshot: bool) -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 9)])
    batch = [
        append(10, 10),
        Persist(
            seq=1,
            hard_state=hard_state(3),
            snapshot=snapshot(20, 3),
            keep_from=LogIndex(21),
            discard_log=True,
            entries=entries(21, 22, 3, payload=b"x" * 3000),
        ),
    ]
    disk.budget_bytes = 1000 if room_after_snapshot else 10
    with pytest.raises(DiskFull):
        storage.write(batch)
    has_snapshot = "snapshot-0000000000000020" in disk.names(MEMBER)
    assert has_snapshot == room_after_snapshot
    first = disk.file(MEMBER / "snapshot-0000000000000020") if has_snapshot else None
    disk.budget_bytes = None
    storage.write(batch)
    if first is not None:
        assert disk.file(MEMBER / "snapshot-0000000000000020") is first  # not written again
    state = after_restart(disk, 5).recovered
    assert state is not None
    assert state.snapshot == snapshot(20, 3)
    assert state.entries == entries(21, 22, 3, payload=b"x" * 3000)


@pytest.mark.parametrize("openings", range(8))
def test_a_full_table_of_open_files_only_delays(openings: int) -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 9)])
    batch = [
        append(10, 11, payload=b"x" * 3000),
        Persist(seq=1, snapshot=snapshot(9), keep_from=LogIndex(10)),
    ]
    disk.openings = openings
    with suppress(DiskFull):  # the last openings are for deletions, which may be left out
        storage.write(batch)
    disk.openings = None
    storage.write(batch)
    storage.write([append(12, 13, payload=b"x" * 3000)])
    state = after_restart(disk, 5).recovered
    assert state is not None
    assert state.snapshot == snapshot(9)
    assert state.entries[-4:] == entries(10, 13, payload=b"x" * 3000)


def test_founding_and_removal_on_a_full_disk_can_be_repeated() -> None:
    disk = FaultFileSystem()
    storage = Storage.open(PATH, filesystem=disk)
    disk.budget_bytes = 5
    with pytest.raises(DiskFull):
        storage.initialise(GENESIS, GENESIS_HARD_STATE)
    with pytest.raises(DiskFull):
        storage.mark_removed()
    assert not storage.initialised
    assert not storage.removed
    disk.budget_bytes = None
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    storage.mark_removed()
    again = after_restart(disk, 1)
    assert again.removed
    assert again.recovered is not None


def test_a_disk_too_full_to_begin_is_a_startup_error() -> None:
    disk = FaultFileSystem()
    disk.budget_bytes = 3
    with pytest.raises(StartupError, match="No space left on device"):
        Storage.open(PATH, filesystem=disk)
    disk.budget_bytes = None
    assert Storage.open(PATH, filesystem=disk).recovered is None


def test_a_full_disk_does_not_keep_a_node_from_starting() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    disk.cut_after = 1
    with pytest.raises(PowerCut):
        storage.write([append(4, 4, payload=b"torn" * 500)])
    disk.cut_power(random.Random(3))
    disk.budget_bytes = 0
    storage = Storage.open(PATH, filesystem=disk, segment_bytes=4096)
    assert storage.recovered is not None
    assert storage.recovered.entries == entries(2, 3)


def test_a_failed_sync_ends_the_storage_and_is_never_repeated() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    disk.fail_next_sync = True
    with pytest.raises(StorageFailed, match="Input/output error"):
        storage.write([append(4, 4)])
    before = disk.operations
    for call in (
        lambda: storage.write([append(4, 4)]),
        storage.mark_removed,
        storage.archive,
    ):
        with pytest.raises(StorageFailed):
            call()
    assert disk.operations == before


def test_what_a_failed_sync_left_in_the_cache_is_on_disk_once_the_node_started_again() -> None:
    """The kernel marks the pages of a failed sync clean; reading them proves nothing."""
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    disk.fail_next_sync = True
    with pytest.raises(StorageFailed):
        storage.write([append(4, 4, payload=b"x" * 2000)])
    seen = after_restart(disk).recovered
    assert after_restart(disk, 1).recovered == seen


def test_a_failed_sync_of_a_snapshot_ends_the_storage() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    disk.fail_next_sync = True
    with pytest.raises(StorageFailed):
        storage.write([Persist(seq=1, snapshot=snapshot(5), discard_log=True)])
    state = after_restart(disk, 1).recovered
    assert state is not None
    assert state.snapshot == GENESIS
