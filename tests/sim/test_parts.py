"""The simulator's own parts: a disk that forgets what was not synced, a clock, a network."""

from __future__ import annotations

from typing import Any

import pytest

from distsync_node.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    MemberId,
    Persist,
    Snapshot,
    SnapshotMeta,
    Term,
)
from distsync_node.replica.types import Initialise
from sim.disk import Disk
from sim.kernel import DriftingClock, Kernel, Violation
from sim.network import Network

MEMBER = MemberId("n1.1")


def entry(index: int, term: int = 2) -> Entry:
    return Entry(Term(term), LogIndex(index), EntryKind.COMMANDS, index, b"")


def snapshot(index: int, term: int = 2) -> Snapshot:
    configuration = Configuration(LogIndex(1), ())
    meta = SnapshotMeta("k", LogIndex(index), Term(term), 0, 1, configuration)
    return Snapshot(meta, b"state")


class FixedChance:
    """A generator whose every draw is given."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value

    def randint(self, low: int, high: int) -> int:
        return low


def founded(kernel: Kernel, crash_chance: float = 0.99) -> Disk:
    disk = Disk(kernel, FixedChance(crash_chance), MEMBER)  # type: ignore[arg-type]
    disk.submit(Initialise(snapshot=snapshot(1, 1), hard_state=HardState(Term(1), None)))
    kernel.run_until(kernel.now_us + 10_000)
    return disk


def write(kernel: Kernel, disk: Disk, **what: Any) -> None:
    disk.submit(Persist(seq=1, **what))
    kernel.run_until(kernel.now_us + 10_000)


def test_what_was_synced_survives_a_crash_and_the_rest_does_not() -> None:
    kernel = Kernel(0)
    disk = founded(kernel)
    write(kernel, disk, entries=(entry(2), entry(3)), hard_state=HardState(Term(2), MEMBER))
    disk.submit(Persist(seq=2, entries=(entry(4),), hard_state=HardState(Term(3), None)))
    disk.crash()
    kernel.run_until(kernel.now_us + 10_000)
    recovered = disk.recover()
    assert recovered is not None
    assert recovered.hard_state == HardState(Term(2), MEMBER)
    assert [one.index for one in recovered.entries] == [2, 3]
    assert (disk.holds(3, 2), disk.holds(4, 2)) == (True, False)


def test_a_crash_between_snapshot_and_record_keeps_the_log_that_agrees_with_it() -> None:
    kernel = Kernel(0)
    disk = founded(kernel, crash_chance=0.5)
    write(kernel, disk, entries=tuple(entry(index) for index in range(2, 9)))
    disk.submit(Persist(seq=2, snapshot=snapshot(5), keep_from=LogIndex(6)))
    disk.crash()
    recovered = disk.recover()
    assert recovered is not None
    assert recovered.snapshot.meta.index == 5
    assert recovered.entries[-1].index == 8


def test_a_crash_between_snapshot_and_record_supersedes_a_log_that_disagrees() -> None:
    kernel = Kernel(0)
    disk = founded(kernel, crash_chance=0.5)
    write(kernel, disk, entries=tuple(entry(index) for index in range(2, 9)))
    disk.submit(Persist(seq=2, snapshot=snapshot(7, 5), keep_from=LogIndex(8), discard_log=True))
    disk.crash()
    recovered = disk.recover()
    assert recovered is not None
    assert recovered.entries == ()
    assert recovered.hard_state == HardState(Term(5), None)
    write(kernel, disk, entries=(entry(8, 5),))
    assert disk.holds(8, 5)


def test_entries_replace_what_the_log_held_from_their_index_on() -> None:
    kernel = Kernel(0)
    disk = founded(kernel)
    write(kernel, disk, entries=(entry(2), entry(3), entry(4)))
    write(kernel, disk, entries=(entry(3, 3),))
    assert (disk.last_index, disk.holds(3, 3), disk.holds(3, 2)) == (3, True, False)


def test_a_gap_in_the_log_is_a_violation() -> None:
    kernel = Kernel(0)
    disk = founded(kernel)
    disk.submit(Persist(seq=1, entries=(entry(3),)))
    with pytest.raises(Violation, match=r"disk\.gap"):
        kernel.run_until(kernel.now_us + 10_000)


def test_a_full_disk_takes_the_write_once_there_is_room() -> None:
    kernel = Kernel(0)
    disk = founded(kernel)
    told: list[bool] = []
    disk.on_full = told.append
    disk.full = True
    write(kernel, disk, entries=(entry(2),))
    assert (disk.last_index, told) == (1, [True])
    disk.full = False
    kernel.run_until(kernel.now_us + 100_000)
    assert (disk.last_index, told) == (2, [True, False])


@pytest.mark.parametrize("drift_ppm", [-10_000, 0, 7, 10_000])
def test_a_clock_shows_a_time_from_the_moment_it_says(drift_ppm: int) -> None:
    clock = DriftingClock(123_456, drift_ppm)
    for local_ms in (123_456, 123_457, 200_001, 9_999_999):
        when_us = clock.when_us(local_ms)
        assert clock.read_ms(when_us) == local_ms
        assert clock.read_ms(when_us - 1) < local_ms


def test_a_reboot_changes_what_a_clock_shows_and_not_how_fast_it_runs() -> None:
    clock = DriftingClock(5_000, 10_000)
    later = clock.rebooted(70, 1_000_000)
    assert later.read_ms(1_000_000) == 70
    assert later.read_us(2_000_000) - later.read_us(1_000_000) == 1_010_000


def test_a_cut_is_in_one_direction_and_takes_what_is_on_its_way() -> None:
    kernel = Kernel(0)
    network = Network(kernel)
    arrived: list[str] = []
    network.send("a", "b", arrived.append, "on its way")
    network.cut("a", "b")
    network.send("a", "b", arrived.append, "cut")
    network.send("b", "a", arrived.append, "the other way")
    kernel.run_until(10_000)
    network.mend("a", "b")
    network.send("a", "b", arrived.append, "mended")
    kernel.run_until(20_000)
    assert arrived == ["the other way", "mended"]
