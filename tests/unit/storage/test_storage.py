"""What a node keeps: identity, founding, log, snapshots, removal, archive."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distsync_node.errors import (
    AlreadyBootstrapped,
    InvariantViolation,
    StartupError,
    StorageFailed,
)
from distsync_node.raft.types import LogIndex, Persist
from distsync_node.storage import Storage
from unit.storage.faultfs import FaultFileSystem, PowerCut
from unit.storage.samples import (
    GENESIS,
    GENESIS_HARD_STATE,
    append,
    entries,
    entry,
    hard_state,
    snapshot,
)

PATH = Path("/data")
MEMBER = PATH / "member"
SEGMENT_BYTES = 4096


def open_storage(disk: FaultFileSystem) -> Storage:
    return Storage.open(PATH, filesystem=disk, segment_bytes=SEGMENT_BYTES)


def founded(disk: FaultFileSystem) -> Storage:
    storage = open_storage(disk)
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    return storage


def reopened(disk: FaultFileSystem) -> Storage:
    """Open after a power cut that kept nothing unsynced."""
    disk.cut_power(NOTHING_SURVIVES)
    return open_storage(disk)


class _NothingSurvives(random.Random):
    def random(self) -> float:
        return 1.0

    def choice(self, options):  # type: ignore[no-untyped-def]
        return options[0]


NOTHING_SURVIVES = _NothingSurvives()


# --- Identity --------------------------------------------------------------------------------


def test_an_empty_directory_gets_a_random_durable_id() -> None:
    ids = set()
    for _ in range(3):
        disk = FaultFileSystem()
        storage = open_storage(disk)
        assert len(bytes.fromhex(storage.member_id)) == 8
        assert storage.recovered is None
        assert not storage.initialised
        assert reopened(disk).member_id == storage.member_id
        ids.add(storage.member_id)
    assert len(ids) == 3


def test_a_power_cut_while_the_id_is_minted_leaves_an_empty_or_a_complete_directory() -> None:
    steps = FaultFileSystem()
    open_storage(steps)
    for cut_after in range(steps.operations):
        for seed in range(8):
            disk = FaultFileSystem()
            disk.cut_after = cut_after
            with pytest.raises(PowerCut):
                open_storage(disk)
            disk.cut_power(random.Random(seed))
            member_id = open_storage(disk).member_id
            assert reopened(disk).member_id == member_id


# --- Founding --------------------------------------------------------------------------------


def test_the_founding_state_is_durable_when_initialise_returns() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    state = storage.recovered
    assert state is not None
    assert (state.snapshot, state.hard_state, state.entries) == (GENESIS, GENESIS_HARD_STATE, ())
    assert reopened(disk).recovered == state


def test_initialise_with_the_same_state_does_nothing() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    before = disk.operations
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    assert disk.operations == before
    reopened(disk).initialise(GENESIS, GENESIS_HARD_STATE)


@pytest.mark.parametrize(
    ("other", "state"),
    [(snapshot(1, data=b"other"), GENESIS_HARD_STATE), (GENESIS, hard_state(2))],
)
def test_initialise_with_another_state_is_refused(other, state) -> None:  # type: ignore[no-untyped-def]
    disk = FaultFileSystem()
    storage = founded(disk)
    for each in (storage, reopened(disk)):
        with pytest.raises(AlreadyBootstrapped):
            each.initialise(other, state)
    assert open_after_kill(disk).recovered == storage.recovered


def open_after_kill(disk: FaultFileSystem) -> Storage:
    disk.kill_process()
    return open_storage(disk)


def test_a_power_cut_while_founding_leaves_all_or_nothing() -> None:
    disk = FaultFileSystem()
    storage = open_storage(disk)
    before = disk.operations
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    outcomes = set()
    for cut_after in range(disk.operations - before):
        for seed in range(8):
            disk = FaultFileSystem()
            storage = open_storage(disk)
            disk.cut_after = cut_after
            with pytest.raises(PowerCut):
                storage.initialise(GENESIS, GENESIS_HARD_STATE)
            disk.cut_power(random.Random(seed))
            found = open_storage(disk)
            assert found.member_id == storage.member_id
            assert found.recovered is None or found.recovered.snapshot == GENESIS
            outcomes.add(found.recovered is None)
            found.initialise(GENESIS, GENESIS_HARD_STATE)
            assert reopened(disk).recovered == found.recovered
    assert outcomes == {True, False}


def test_nothing_is_written_before_founding() -> None:
    with pytest.raises(InvariantViolation):
        open_storage(FaultFileSystem()).write([append(2, 2)])


# --- The log ---------------------------------------------------------------------------------


def test_a_written_batch_is_on_disk() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 4), Persist(seq=5, hard_state=hard_state(3, "aa")), append(5, 6, 3)])
    state = reopened(disk).recovered
    assert state is not None
    assert state.member_id == storage.member_id
    assert state.hard_state == hard_state(3, "aa")
    assert state.entries == entries(2, 4) + entries(5, 6, 3)


def test_a_batch_costs_one_write_and_one_sync() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 2)])
    before = disk.operations
    storage.write([append(3, 3), Persist(seq=1, hard_state=hard_state(2)), append(4, 9, 2)])
    assert disk.operations - before == 2


def test_an_empty_batch_touches_nothing() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    before = disk.operations
    storage.write([])
    storage.write([Persist(seq=1)])
    assert disk.operations == before


def test_later_entries_replace_the_tail_from_their_first_index_on() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 9)])
    storage.write([append(5, 6, 2)])
    storage.write([append(4, 4, 3), append(5, 5, 3), append(5, 7, 4)])
    state = reopened(disk).recovered
    assert state is not None
    assert state.entries == entries(2, 3) + entries(4, 4, 3) + entries(5, 7, 4)


def test_entries_that_leave_a_gap_are_refused_before_anything_is_written() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    before = disk.operations
    for wrong in (append(5, 5), Persist(seq=1, entries=(entry(4), entry(6)))):
        with pytest.raises(InvariantViolation):
            storage.write([append(4, 3 + 1), wrong][1:])
    assert disk.operations == before


@pytest.mark.parametrize("can_reserve", [True, False])
def test_the_log_continues_over_segments(can_reserve: bool) -> None:
    disk = FaultFileSystem(can_reserve=can_reserve)
    storage = founded(disk)
    for index in range(2, 60):
        storage.write([append(index, index, payload=b"x" * 300)])
    assert len(disk.names(MEMBER)) > 4
    again = reopened(disk)
    assert again.recovered is not None
    assert again.recovered.entries == entries(2, 59, payload=b"x" * 300)
    assert again.size_bytes == storage.size_bytes
    again.write([append(60, 60)])
    last = reopened(disk).recovered
    assert last is not None
    assert last.entries[-1] == entry(60)


def test_a_batch_larger_than_a_segment_gets_its_own() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 2)])
    storage.write([append(3, 3, payload=b"x" * 10_000)])
    storage.write([append(4, 4)])
    assert [n for n in disk.names(MEMBER) if n.startswith("log")] == [
        f"log-{number:016d}" for number in (1, 2, 3)
    ]
    state = reopened(disk).recovered
    assert state is not None
    assert state.entries == entries(2, 2) + entries(3, 3, payload=b"x" * 10_000) + entries(4, 4)


def test_writing_continues_at_the_cut_after_a_torn_record() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 2)])
    disk.cut_after = 1  # the write happens, its sync does not
    with pytest.raises(PowerCut):
        storage.write([append(3, 3, payload=b"torn" * 500)])
    disk.cut_power(random.Random(3))
    again = open_storage(disk)
    assert again.recovered is not None
    assert again.recovered.entries == entries(2, 2)
    again.write([append(3, 5, 2)])
    state = reopened(disk).recovered
    assert state is not None
    assert state.entries == entries(2, 2) + entries(3, 5, 2)
    assert [n for n in disk.names(MEMBER) if n.startswith("log")] == ["log-0000000000000001"]


# --- Snapshots -------------------------------------------------------------------------------


def compacted(disk: FaultFileSystem) -> Storage:
    storage = founded(disk)
    for index in range(2, 60):
        storage.write([append(index, index, payload=b"x" * 300)])
    new = snapshot(50, data=b"fifty" * 300)
    storage.write([Persist(seq=1, snapshot=new, keep_from=LogIndex(40))])
    return storage


def test_a_snapshot_replaces_the_older_and_frees_segments_below_keep_from() -> None:
    disk = FaultFileSystem()
    storage = compacted(disk)
    names = disk.names(MEMBER)
    assert [n for n in names if n.startswith("snapshot")] == ["snapshot-0000000000000050"]
    assert "log-0000000000000001" not in names
    again = reopened(disk)
    assert (
        again.size_bytes
        == storage.size_bytes
        == sum(
            len(disk.file(MEMBER / n).current) for n in names if n.startswith(("log", "snapshot"))
        )
    )
    state = again.recovered
    assert state is not None
    assert state.snapshot == snapshot(50, data=b"fifty" * 300)
    assert 30 < state.entries[0].index <= 40
    assert state.entries == entries(state.entries[0].index, 59, payload=b"x" * 300)


def test_the_hard_state_outlives_the_segments_it_was_written_to() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([Persist(seq=1, hard_state=hard_state(7, "bb"))])
    for index in range(2, 60):
        storage.write([append(index, index, 7, payload=b"x" * 300)])
    storage.write([Persist(seq=2, snapshot=snapshot(59, 7), keep_from=LogIndex(60))])
    assert "log-0000000000000001" not in disk.names(MEMBER)
    state = reopened(disk).recovered
    assert state is not None
    assert state.hard_state == hard_state(7, "bb")


def test_two_snapshots_in_quick_succession_leave_the_newer() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write(
        [
            append(2, 20),
            Persist(seq=2, snapshot=snapshot(10, data=b"ten"), keep_from=LogIndex(5)),
            append(21, 22),
            Persist(seq=3, snapshot=snapshot(15, data=b"fifteen"), keep_from=LogIndex(8)),
        ]
    )
    state = reopened(disk).recovered
    assert state is not None
    assert state.snapshot == snapshot(15, data=b"fifteen")
    assert state.entries == entries(2, 22)
    assert [n for n in disk.names(MEMBER) if n.startswith("snap")] == ["snapshot-0000000000000015"]


def test_an_installed_snapshot_discards_the_log() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    for index in range(2, 60):
        storage.write([append(index, index, payload=b"x" * 300)])
    storage.write(
        [
            Persist(
                seq=1,
                hard_state=hard_state(4),
                snapshot=snapshot(30, 4),
                keep_from=LogIndex(31),
                discard_log=True,
            ),
            append(31, 32, 4),
        ]
    )
    assert len([n for n in disk.names(MEMBER) if n.startswith("log")]) == 1
    state = reopened(disk).recovered
    assert state is not None
    assert (state.hard_state, state.snapshot) == (hard_state(4), snapshot(30, 4))
    assert state.entries == entries(31, 32, 4)


def test_a_snapshot_beyond_the_log_supersedes_it() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 5)])
    storage.write([Persist(seq=1, snapshot=snapshot(9, 2), keep_from=LogIndex(10))])
    storage.write([append(10, 11, 2)])
    state = reopened(disk).recovered
    assert state is not None
    assert (state.snapshot, state.entries) == (snapshot(9, 2), entries(10, 11, 2))


def test_a_power_cut_at_any_moment_of_an_install_leaves_before_or_after() -> None:
    install = Persist(
        seq=1,
        hard_state=hard_state(4, "aa"),
        snapshot=snapshot(30, 4, b"s" * 3000),
        keep_from=LogIndex(31),
        discard_log=True,
        entries=entries(31, 31, 4),
    )

    def prepared() -> tuple[FaultFileSystem, Storage]:
        disk = FaultFileSystem()
        storage = founded(disk)
        for index in range(2, 35):
            storage.write([append(index, index, payload=b"x" * 300)])
        return disk, storage

    disk, storage = prepared()
    before = disk.operations
    storage.write([install])
    outcomes = set()
    for cut_after in range(disk.operations - before):
        for seed in range(4):
            disk, storage = prepared()
            disk.cut_after = cut_after
            with pytest.raises(PowerCut):
                storage.write([install])
            disk.cut_power(random.Random(seed))
            state = open_storage(disk).recovered
            assert state is not None
            seen = (state.snapshot.meta.index, state.hard_state, len(state.entries))
            outcomes.add(seen)
            assert seen in {
                (1, hard_state(1), 33),
                (30, hard_state(4), 0),  # the snapshot made it, the record did not
                (30, hard_state(4, "aa"), 1),
            }
            assert reopened(disk).recovered == state
    assert len(outcomes) == 3


def test_a_log_superseded_by_a_snapshot_stays_superseded() -> None:
    """After a crash between snapshot and record, what is written next must not meet old entries."""
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 5)])
    install = Persist(seq=1, snapshot=snapshot(9, 2), keep_from=LogIndex(10), discard_log=True)
    disk.cut_after = 6  # snapshot: create, two writes, sync, rename, sync of the directory
    with pytest.raises(PowerCut):
        storage.write([install])
    again = reopened(disk)
    assert again.recovered is not None
    assert (again.recovered.snapshot, again.recovered.entries) == (snapshot(9, 2), ())
    again.write([append(10, 11, 2)])
    state = reopened(disk).recovered
    assert state is not None
    assert state.entries == entries(10, 11, 2)


# --- Removal and archive ---------------------------------------------------------------------


def test_the_removed_mark_is_durable() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    assert not storage.removed
    storage.mark_removed()
    storage.mark_removed()
    assert storage.removed
    again = reopened(disk)
    assert again.removed
    assert again.recovered is not None


def test_a_member_whose_state_was_found_to_differ_does_not_start_again() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.mark_diverged()
    with pytest.raises(StartupError, match="differ from a quorum's") as error:
        reopened(disk)
    assert "\n" not in str(error.value)
    assert f"remove member {storage.member_id} from its cluster" in str(error.value)


def test_an_archived_member_leaves_an_empty_directory_and_keeps_its_content() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    storage.write([append(2, 3)])
    storage.mark_removed()
    content = disk.names(MEMBER)
    where = storage.archive()
    assert where == PATH / f"archived-{storage.member_id}"
    assert disk.names(where) == content
    with pytest.raises(StorageFailed):
        storage.write([append(4, 4)])
    storage.close()
    fresh = reopened(disk)
    assert fresh.member_id != storage.member_id
    assert (fresh.recovered, fresh.removed) == (None, False)
    assert disk.names(where) == content


def test_a_power_cut_while_archiving_moves_all_or_nothing() -> None:
    for cut_after in range(2):
        for seed in range(8):
            disk = FaultFileSystem()
            storage = founded(disk)
            storage.mark_removed()
            disk.cut_after = cut_after
            with pytest.raises(PowerCut):
                storage.archive()
            disk.cut_power(random.Random(seed))
            found = open_storage(disk)
            assert found.removed == (found.member_id == storage.member_id)


def test_archives_of_one_id_do_not_overwrite_each_other() -> None:
    disk = FaultFileSystem()
    storage = founded(disk)
    disk.make_directory(PATH / f"archived-{storage.member_id}")
    assert storage.archive() == PATH / f"archived-{storage.member_id}-2"
