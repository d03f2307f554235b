"""What no crash leaves behind stops the node, with one line naming file, offset and remedy."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from distsync_node.errors import StartupError
from distsync_node.raft.types import LogIndex, Persist, RecoveredState
from distsync_node.storage import Storage
from unit.storage.faultfs import FaultFileSystem
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
SEGMENT_BYTES = 4096
RECORD_MAGIC = b"DSCR"


def open_storage(disk: FaultFileSystem) -> Storage:
    disk.kill_process()
    return Storage.open(PATH, filesystem=disk, segment_bytes=SEGMENT_BYTES)


def filled(disk: FaultFileSystem) -> RecoveredState:
    """Three segments, the last one partly used, and a snapshot; returns what they hold."""
    storage = open_storage(disk)
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    for index in range(2, 25):
        storage.write([append(index, index, payload=b"x" * 350)])
    storage.write([Persist(seq=1, snapshot=snapshot(5, data=b"state" * 50), keep_from=LogIndex(3))])
    storage.write([Persist(seq=2, hard_state=hard_state(2, "aa"))])
    assert segments(disk) == [f"log-{number:016d}" for number in (1, 2, 3)]
    state = open_storage(disk).recovered
    assert state is not None
    return state


def segments(disk: FaultFileSystem) -> list[str]:
    return [name for name in disk.names(MEMBER) if name.startswith("log-")]


def refusal(disk: FaultFileSystem) -> str:
    with pytest.raises(StartupError) as caught:
        open_storage(disk)
    message = str(caught.value)
    assert "\n" not in message
    return message


def used_bytes(disk: FaultFileSystem, name: str) -> int:
    return len(bytes(disk.file(MEMBER / name).current).rstrip(b"\0"))


def test_a_flipped_byte_in_the_middle_of_the_log_names_file_offset_and_remedy() -> None:
    disk = FaultFileSystem()
    filled(disk)
    disk.flip(MEMBER / "log-0000000000000002", 1500)
    message = refusal(disk)
    found = re.search(r"/data/member/log-0{15}2: .* at offset (\d+)", message)
    assert found is not None
    assert 512 <= int(found[1]) <= 1500
    assert "remove member" in message


def test_a_flipped_byte_in_the_last_complete_record_stops_the_node() -> None:
    disk = FaultFileSystem()
    filled(disk)
    name = segments(disk)[-1]
    disk.flip(MEMBER / name, used_bytes(disk, name) - 12)
    assert "checksum does not match" in refusal(disk)


@pytest.mark.parametrize("name", ["log-0000000000000001", "log-0000000000000003"])
def test_a_flipped_byte_anywhere_in_a_segment_is_never_read_over(name: str) -> None:
    disk = FaultFileSystem()
    state = filled(disk)
    used = used_bytes(disk, name)
    chance = random.Random(4)
    for offset in range(SEGMENT_BYTES):
        mask = 1 << chance.randrange(8)
        disk.flip(MEMBER / name, offset, mask)
        try:
            assert open_storage(disk).recovered == state
            survived = True
        except StartupError:
            survived = False
        assert not (survived and offset < used), offset
        if survived:
            # Taken for the rest of a torn record, and cut.
            assert len(bytes(disk.file(MEMBER / name).current).rstrip(b"\0")) == used
        else:
            disk.flip(MEMBER / name, offset, mask)
    assert open_storage(disk).recovered == state


@pytest.mark.parametrize("name", ["snapshot-0000000000000005", "identity"])
def test_a_flipped_byte_anywhere_in_a_snapshot_or_the_identity_stops_the_node(name: str) -> None:
    disk = FaultFileSystem()
    filled(disk)
    for offset in range(len(disk.file(MEMBER / name).current)):
        disk.flip(MEMBER / name, offset)
        assert name in refusal(disk)
        disk.flip(MEMBER / name, offset)


@pytest.mark.parametrize("change", [-1, -300, 1])
def test_a_snapshot_of_another_length_stops_the_node(change: int) -> None:
    disk = FaultFileSystem()
    filled(disk)
    path = MEMBER / "snapshot-0000000000000005"
    size = len(disk.file(path).current)
    if change < 0:
        disk.shorten(path, size + change)
    else:
        disk.overwrite(path, size, b"x")
    assert "not as long as its header says" in refusal(disk)


def test_a_corrupt_newest_snapshot_is_not_replaced_by_an_older_one() -> None:
    disk = FaultFileSystem()
    filled(disk)
    older = bytes(disk.file(MEMBER / "snapshot-0000000000000005").current)
    storage = open_storage(disk)
    storage.write([Persist(seq=3, snapshot=snapshot(9), keep_from=LogIndex(3))])
    put(disk, "snapshot-0000000000000005", older)
    disk.flip(MEMBER / "snapshot-0000000000000009", 70)
    assert "snapshot-0000000000000009" in refusal(disk)


def put(disk: FaultFileSystem, name: str, content: bytes) -> None:
    file = disk.open(MEMBER / name, create=True)
    disk.write(file, content, 0)
    disk.sync(file)
    disk.sync_directory(MEMBER)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("log-0000000000000002", "log-0000000000000002, is missing"),
        ("snapshot-0000000000000005", "is missing"),
        ("identity", "is missing"),
    ],
)
def test_a_missing_file_stops_the_node(name: str, words: str) -> None:
    disk = FaultFileSystem()
    filled(disk)
    disk.unlink(MEMBER / name)
    assert words in refusal(disk)


def test_missing_first_segments_stop_the_node() -> None:
    disk = FaultFileSystem()
    filled(disk)
    disk.unlink(MEMBER / "log-0000000000000001")
    assert "does not go back to the snapshot" in refusal(disk)


def test_a_missing_log_stops_the_node() -> None:
    disk = FaultFileSystem()
    filled(disk)
    for name in segments(disk):
        disk.unlink(MEMBER / name)
    assert "missing" in refusal(disk)


def test_a_missing_installed_snapshot_stops_the_node_though_an_older_one_is_there() -> None:
    disk = FaultFileSystem()
    filled(disk)
    older = bytes(disk.file(MEMBER / "snapshot-0000000000000005").current)
    storage = open_storage(disk)
    install = Persist(seq=3, snapshot=snapshot(90, 2), keep_from=LogIndex(91), discard_log=True)
    storage.write([install])
    put(disk, "snapshot-0000000000000005", older)
    disk.unlink(MEMBER / "snapshot-0000000000000090")
    assert "snapshot-0000000000000090: is missing" in refusal(disk)


def test_a_shortened_middle_segment_stops_the_node() -> None:
    disk = FaultFileSystem()
    filled(disk)
    name = "log-0000000000000002"
    content = bytes(disk.file(MEMBER / name).current)
    for size in (0, 300, 512, 2000, used_bytes(disk, name) - 1):
        disk.shorten(MEMBER / name, size)
        refusal(disk)
        put(disk, name, content)
    assert open_storage(disk).recovered is not None


@pytest.mark.parametrize("cut", ["zeroed", "shortened"])
def test_a_middle_segment_without_its_last_record_stops_the_node(cut: str) -> None:
    disk = FaultFileSystem()
    filled(disk)
    path = MEMBER / "log-0000000000000002"
    start = bytes(disk.file(path).current).rindex(RECORD_MAGIC)
    if cut == "zeroed":
        disk.overwrite(path, start, bytes(SEGMENT_BYTES - start))
    else:
        disk.shorten(path, start)
    assert "log-0000000000000003: it does not continue the segment before it" in refusal(disk)


def test_a_torn_tail_loses_the_last_record_only() -> None:
    disk = FaultFileSystem()
    state = filled(disk)
    storage = open_storage(disk)
    storage.write([append(25, 25, 2, payload=b"y" * 1500)])
    name = segments(disk)[-1]
    end = used_bytes(disk, name)
    sector = (end - 700) // 512 * 512
    disk.overwrite(MEMBER / name, sector, bytes(512))
    assert open_storage(disk).recovered == state


def test_a_log_file_cut_short_loses_the_last_record_only() -> None:
    disk = FaultFileSystem()
    state = filled(disk)
    storage = open_storage(disk)
    storage.write([append(25, 25, 2, payload=b"y" * 900)])
    name = segments(disk)[-1]
    disk.shorten(MEMBER / name, used_bytes(disk, name) - 3)
    again = open_storage(disk)
    assert again.recovered == state
    again.write([append(25, 25, 2)])
    after = open_storage(disk).recovered
    assert after is not None
    assert after.entries == state.entries + entries(25, 25, 2)


def test_a_segment_of_another_member_is_refused() -> None:
    disk, other = FaultFileSystem(), FaultFileSystem()
    filled(disk)
    filled(other)
    name = "log-0000000000000001"
    disk.overwrite(MEMBER / name, 0, bytes(other.file(MEMBER / name).current))
    assert "belongs to member" in refusal(disk)


def test_a_segment_under_another_name_is_refused() -> None:
    disk = FaultFileSystem()
    filled(disk)
    disk.rename(MEMBER / "log-0000000000000003", MEMBER / "log-0000000000000004")
    assert "it is segment 3, not what its name says" in refusal(disk)


@pytest.mark.parametrize("module", ["log", "snapshots"])
def test_a_file_of_a_later_format_asks_for_a_newer_release(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultFileSystem()
    with monkeypatch.context() as later_release:
        later_release.setattr(f"distsync_node.storage.{module}._VERSION", 2)
        storage = open_storage(disk)
        storage.initialise(GENESIS, GENESIS_HARD_STATE)
        storage.write([append(2, 2)])
    message = refusal(disk)
    assert "has format 2, this release reads format 1" in message
    assert "or a newer one" in message
    assert "remove" not in message


def test_left_over_drafts_are_removed() -> None:
    disk = FaultFileSystem()
    state = filled(disk)
    names = disk.names(MEMBER)
    put(disk, "snapshot-0000000000000077.new", b"half")
    put(disk, "log-0000000000000004.new", b"")
    assert open_storage(disk).recovered == state
    assert disk.names(MEMBER) == names
