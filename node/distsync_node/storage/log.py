"""The log: append-only segments of framed records.

    segment = header (one sector) + records + zeros up to the reserved size

Guarantees:

- `append` returns when its record is on disk; when it raises for a full disk, the log is as before;
- a segment appears under its name only with a durable header, which carries the checksum of the
  last record before it, so a missing or shortened segment is noticed;
- segments are numbered without gaps and deleted from the oldest on, one durable step at a time;
- space is reserved ahead (and reads as zeros), so a sync moves no metadata and a full disk shows
  when a segment is made, not in the middle of one; when there is no room for a whole segment, as
  much as there is. Space is never reused: no old record can come back. Where a file system
  cannot reserve, files grow and all else holds.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import msgspec

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import Entry, HardState, LogIndex, MemberId
from distsync_node.storage.filesystem import FileSystem, is_for_want_of_room
from distsync_node.storage.records import (
    SECTOR_BYTES,
    DamageError,
    Scan,
    UnknownFormatError,
    frame,
    record_start,
    scan,
)
from distsync_node.storage.snapshots import TEMPORARY_SUFFIX

SEGMENT_BYTES = 16 << 20
_NO_INDEX = LogIndex(0)
_NAME = re.compile(r"log-(\d{16})")
_MAGIC = b"DSYNCLOG"
_VERSION = 1
_READABLE_VERSIONS = (1,)
_HEADER = struct.Struct("<8sIQIII")  # magic, version, number, nonce, chain, metadata length
_METADATA_BYTES = SECTOR_BYTES - _HEADER.size - 4


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One batch. `discard`, if set, empties the log first: the snapshot at that index rules."""

    hard_state: HardState | None
    discard: LogIndex | None
    entries: Sequence[Entry]


class _SegmentMetadata(msgspec.Struct, frozen=True, array_like=True):
    """What held when the segment was made, for the time when older ones are gone."""

    member_id: MemberId
    hard_state: HardState
    snapshot_index: LogIndex


@dataclass(slots=True, kw_only=True)
class _Segment:
    number: int
    size: int
    last_index: LogIndex = _NO_INDEX  # highest index of a wanted entry in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the log held; `snapshot_index` is the snapshot it relies on."""

    hard_state: HardState | None
    snapshot_index: LogIndex
    entries: list[Entry]


class SegmentError(Exception):
    """A segment cannot be used; `cause` says why."""

    def __init__(self, name: str, cause: DamageError | UnknownFormatError) -> None:
        super().__init__(f"{name}: {cause}")
        self.name = name
        self.cause = cause


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"log-{number:016d}"


def segment_numbers(names: Sequence[str]) -> list[int]:
    """Return the sorted numbers of the segments among the names."""
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


class SegmentedLog:
    """The segments of one member, open for appending. Not thread-safe."""

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        directory: Path,
        member_id: MemberId,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._member_id = member_id
        self._segment_bytes = segment_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._segments: list[_Segment] = []
        self._file: int | None = None
        self._nonce = 0
        self._chain = 0
        self._end = 0
        self._reserved: int | None = 0  # None where the file system cannot reserve

    @property
    def is_empty(self) -> bool:
        """Whether no segment was made yet."""
        return not self._segments

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments, reserved space included."""
        return sum(segment.size for segment in self._segments)

    # --- Appending ------------------------------------------------------------------------

    def append(self, record: Record, *, hard_state: HardState, snapshot_index: LogIndex) -> None:
        """Make the record durable; the rest goes into the header if a segment is begun.

        Raises:
            OSError: of the disk. When it is full, nothing has changed.
        """
        payload = self._encoder.encode(record)
        data, chain = frame(payload, chain=self._chain, nonce=self._nonce)
        start = record_start(self._end)
        if self._file is None or start + len(data) > self._limit():
            metadata = _SegmentMetadata(self._member_id, hard_state, snapshot_index)
            self._begin_segment(SECTOR_BYTES + len(data), metadata)
            data, chain = frame(payload, chain=self._chain, nonce=self._nonce)
            start = record_start(self._end)
        self._write(data, start)
        self._end = start + len(data)
        self._chain = chain
        segment = self._segments[-1]
        segment.size = max(segment.size, self._end, self._reserved or 0)
        if record.discard is not None:
            self._forget_entries()
        if record.entries:
            last = max(entry.index for entry in record.entries)
            segment.last_index = max(segment.last_index, last)

    def _limit(self) -> int:
        return max(self._segment_bytes, self._segments[-1].size)

    def _forget_entries(self) -> None:
        for segment in self._segments:
            segment.last_index = _NO_INDEX

    def _write(self, data: bytes, start: int) -> None:
        file = self._active_file()
        try:
            if self._reserved is not None and self._reserved < start + len(data):
                self._reserved = self._reserve(file, self._end, start + len(data))
            self._filesystem.write_durably(file, data, start)
        except OSError as error:
            if is_for_want_of_room(error):
                self._cut()
            raise

    def _reserve(self, file: int, start: int, end: int) -> int | None:
        """Reserve from `start` to a segment's size, or as much as there is room for up to `end`.

        Returns the end of what is reserved, None if the file system cannot reserve.
        """
        target = max(self._segment_bytes, end)
        while True:
            try:
                if not self._filesystem.allocate(file, start, target - start):
                    return None
            except OSError as error:
                if not is_for_want_of_room(error) or target == end:
                    raise
                self._filesystem.truncate(file, start)
                target = max(target // 4, end)
            else:
                return target

    def _active_file(self) -> int:
        if self._file is None:
            raise InvariantViolation("the log has no segment to write to")
        return self._file

    def _cut(self) -> None:
        """Take back whatever lies behind the last whole record."""
        file = self._active_file()
        self._filesystem.truncate(file, self._end)
        self._filesystem.sync(file)
        self._reserved = None if self._reserved is None else self._end
        self._segments[-1].size = self._end

    def _begin_segment(self, needed_bytes: int, metadata: _SegmentMetadata) -> None:
        number = self._segments[-1].number + 1 if self._segments else 1
        nonce = int.from_bytes(os.urandom(4), "little")
        path = self._directory / segment_name(number)
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        file = self._filesystem.open(temporary, create=True)
        try:
            reserved = self._reserve(file, 0, needed_bytes)
            header = _encode_header(number, nonce, self._chain, self._encoder.encode(metadata))
            self._filesystem.write(file, header, 0)
            self._filesystem.sync(file)
            self._filesystem.rename(temporary, path)
            self._filesystem.sync_directory(self._directory)
        except OSError:
            self._filesystem.close(file)
            with suppress(FileNotFoundError):
                self._filesystem.unlink(temporary)
            raise
        self.close()
        self._file = file
        self._nonce = nonce
        self._end = SECTOR_BYTES
        self._reserved = reserved
        self._segments.append(_Segment(number=number, size=reserved or SECTOR_BYTES))

    # --- Deleting -------------------------------------------------------------------------

    def delete_below(self, keep_from: LogIndex) -> None:
        """Delete the oldest segments as long as they hold only entries below `keep_from`."""
        while len(self._segments) > 1 and self._segments[0].last_index < keep_from:
            path = self._directory / segment_name(self._segments[0].number)
            with suppress(FileNotFoundError):
                self._filesystem.unlink(path)
            self._filesystem.sync_directory(self._directory)
            del self._segments[0]

    def close(self) -> None:
        """Close the active segment."""
        if self._file is not None:
            self._filesystem.close(self._file)
            self._file = None

    # --- Recovery -------------------------------------------------------------------------

    def recover(self, numbers: Sequence[int]) -> Replay:
        """Read the segments, cut a torn tail, and make sure that what was read is on disk.

        Raises:
            SegmentError: if anything but the tail of the last segment is amiss.
        """
        replay = Replay(hard_state=None, snapshot_index=_NO_INDEX, entries=[])
        for number in numbers:
            replay = self._recover_segment(number, replay, is_last=number == numbers[-1])
        return replay

    def _recover_segment(self, number: int, replay: Replay, *, is_last: bool) -> Replay:
        name = segment_name(number)
        file = self._filesystem.open(self._directory / name)
        data = self._filesystem.read(file, self._filesystem.size(file), 0)
        try:
            nonce, chain, metadata = _decode_header(data, number, self._member_id)
            self._check_order(number, chain)
            found = scan(data, SECTOR_BYTES, chain=chain, nonce=nonce)
            if found.torn and not is_last:
                raise DamageError(found.end, "a later segment follows the unfinished record")
            segment = _Segment(number=number, size=len(data))
            self._segments.append(segment)
            replay = self._replay(found, replay, metadata)
        except (DamageError, UnknownFormatError) as error:
            self._filesystem.close(file)
            raise SegmentError(name, error) from error
        self._chain, self._nonce, self._end = found.chain, nonce, found.end
        if is_last:
            self._file = file
            self._make_tail_durable(data, found)
        else:
            self._filesystem.close(file)
        return replay

    def _check_order(self, number: int, chain: int) -> None:
        if self._segments and self._segments[-1].number + 1 != number:
            missing = segment_name(self._segments[-1].number + 1)
            raise DamageError(None, f"the segment before it, {missing}, is missing")
        if self._segments and chain != self._chain:
            raise DamageError(
                None, "it does not continue the segment before it, which is cut short"
            )

    def _replay(self, found: Scan, replay: Replay, metadata: _SegmentMetadata) -> Replay:
        hard_state: HardState | None = metadata.hard_state
        snapshot_index = max(replay.snapshot_index, metadata.snapshot_index)
        entries = replay.entries
        for record in _decode_records(found):
            if record.hard_state is not None:
                hard_state = record.hard_state
            if record.discard is not None:
                snapshot_index = max(snapshot_index, record.discard)
                entries.clear()
                self._forget_entries()
            if record.entries:
                highest = _replay_entries(entries, record.entries)
                segment = self._segments[-1]
                segment.last_index = max(segment.last_index, highest)
        return Replay(hard_state=hard_state, snapshot_index=snapshot_index, entries=entries)

    def _make_tail_durable(self, data: bytes, found: Scan) -> None:
        """Cut what is torn and write the last record once more.

        It may be in the page cache only: the process may have died between write and sync, or a
        sync may have failed, after which the kernel holds the pages for clean. Bytes are the same,
        so a crash meanwhile tears nothing. A file system that needs space to overwrite may have
        none; then the record is as durable as a sync makes it.
        """
        file = self._active_file()
        if found.torn:
            self._cut()
        else:
            self._reserved = len(data)
        if found.last_start < found.end:
            try:
                self._filesystem.write(file, data[found.last_start : found.end], found.last_start)
            except OSError as error:
                if not is_for_want_of_room(error):
                    raise
        self._filesystem.sync(file)


def _decode_records(found: Scan) -> Iterator[Record]:
    decoder = msgspec.msgpack.Decoder(Record)
    for payload in found.payloads:
        try:
            yield decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise DamageError(None, f"a record cannot be read ({error})") from error


def _replay_entries(entries: list[Entry], added: Sequence[Entry]) -> LogIndex:
    """Append, replacing from the first index on; return the highest index met."""
    expected = entries[-1].index + 1 if entries else added[0].index
    highest = added[0].index
    for entry in added:
        if entry.index != expected:
            if entry.index > expected:
                raise DamageError(None, f"entry {entry.index} follows entry {expected - 1}")
            del entries[max(0, entry.index - entries[0].index) :]
        entries.append(entry)
        highest = max(highest, entry.index)
        expected = entry.index + 1
    return highest


def _encode_header(number: int, nonce: int, chain: int, metadata: bytes) -> bytes:
    if len(metadata) > _METADATA_BYTES:
        raise InvariantViolation(f"segment metadata of {len(metadata)} bytes is too long")
    header = _HEADER.pack(_MAGIC, _VERSION, number, nonce, chain, len(metadata)) + metadata
    header = header.ljust(SECTOR_BYTES - 4, b"\0")
    return header + struct.pack("<I", crc32(header))


def _decode_header(
    data: bytes, number: int, member_id: MemberId
) -> tuple[int, int, _SegmentMetadata]:
    header = data[:SECTOR_BYTES]
    if len(header) < SECTOR_BYTES or header[:8] != _MAGIC:
        raise DamageError(0, "segment header is missing")
    _, version, stored_number, nonce, chain, length = _HEADER.unpack_from(header)
    if struct.pack("<I", crc32(header[:-4])) != header[-4:]:
        raise DamageError(0, "segment header checksum does not match")
    if version not in _READABLE_VERSIONS:
        raise UnknownFormatError(version, _READABLE_VERSIONS)
    if stored_number != number:
        raise DamageError(None, f"it is segment {stored_number}, not what its name says")
    try:
        metadata = msgspec.msgpack.decode(
            header[_HEADER.size : _HEADER.size + length], type=_SegmentMetadata
        )
    except msgspec.DecodeError as error:
        raise DamageError(0, f"segment header cannot be read ({error})") from error
    if metadata.member_id != member_id:
        raise DamageError(None, f"it belongs to member {metadata.member_id}")
    return nonce, chain, metadata
