"""Snapshot files: one a snapshot, complete or not there at all.

    file = magic, version, metadata length, data length, checksums of both, header checksum
           + metadata (msgpack) + data

A snapshot is written beside its place, synced, renamed into it, and the directory is synced; so
a file under its own name is whole, and one with a bad checksum was damaged later: the node stops.
A snapshot written before there is any log segment (the one that founds the cluster, first of all)
also carries the hard state, so that founding is one rename; later the log carries it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import msgspec

from distsync_node.raft.types import HardState, LogIndex, Snapshot, SnapshotMeta
from distsync_node.storage.filesystem import FileSystem
from distsync_node.storage.records import DamageError, UnknownFormatError

TEMPORARY_SUFFIX = ".new"
_NAME = re.compile(r"snapshot-(\d{16})")
_MAGIC = b"DSYNCSNP"
_VERSION = 1
_READABLE_VERSIONS = (1,)
_HEADER = struct.Struct("<8sIIQIII")
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A snapshot file's content; `hard_state` is set while there is no segment."""

    snapshot: Snapshot
    hard_state: HardState | None
    size_bytes: int


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """The metadata block."""

    meta: SnapshotMeta
    hard_state: HardState | None


_decoder = msgspec.msgpack.Decoder(_Head)
_encoder = msgspec.msgpack.Encoder()


def snapshot_name(index: LogIndex) -> str:
    """Return the file name of the snapshot at `index`."""
    return f"snapshot-{index:016d}"


def snapshot_index(name: str) -> LogIndex | None:
    """Return the index in a snapshot's file name, or None for another file."""
    match = _NAME.fullmatch(name)
    return LogIndex(int(match[1])) if match else None


def write_snapshot(
    filesystem: FileSystem, directory: Path, snapshot: Snapshot, hard_state: HardState | None = None
) -> int:
    """Make the snapshot durable under its name and return the file's size in bytes."""
    head = _encoder.encode(_Head(snapshot.meta, hard_state))
    data = snapshot.data
    header = _HEADER.pack(_MAGIC, _VERSION, len(head), len(data), crc32(head), crc32(data), 0)
    header = header[:-4] + struct.pack("<I", crc32(header[:-4]))
    parts: list[bytes | memoryview] = [header + head]
    view = memoryview(data)
    parts += [view[at : at + _WRITE_BYTES] for at in range(0, len(data), _WRITE_BYTES)]
    write_whole(filesystem, directory / snapshot_name(snapshot.meta.index), parts)
    return len(header) + len(head) + len(data)


def read_snapshot(filesystem: FileSystem, path: Path) -> StoredSnapshot:
    """Read a snapshot back.

    Raises:
        DamageError: if it is not as it was written.
        UnknownFormatError: if another release wrote it.
    """
    file = filesystem.open(path)
    try:
        content = filesystem.read(file, filesystem.size(file), 0)
    finally:
        filesystem.close(file)
    if len(content) < _HEADER.size or content[:8] != _MAGIC:
        raise DamageError(0, "snapshot header is missing")
    _, version, head_length, data_length, head_checksum, data_checksum, checksum = (
        _HEADER.unpack_from(content)
    )
    if crc32(content[: _HEADER.size - 4]) != checksum:
        raise DamageError(0, "snapshot header checksum does not match")
    if version not in _READABLE_VERSIONS:
        raise UnknownFormatError(version, _READABLE_VERSIONS)
    data_start = _HEADER.size + head_length
    if len(content) != data_start + data_length:
        raise DamageError(None, "snapshot is not as long as its header says")
    head = content[_HEADER.size : data_start]
    data = content[data_start:]
    if crc32(head) != head_checksum:
        raise DamageError(_HEADER.size, "snapshot metadata checksum does not match")
    if crc32(data) != data_checksum:
        raise DamageError(data_start, "snapshot data checksum does not match")
    try:
        decoded = _decoder.decode(head)
    except msgspec.DecodeError as error:
        raise DamageError(_HEADER.size, f"snapshot metadata cannot be read ({error})") from error
    return StoredSnapshot(
        snapshot=Snapshot(decoded.meta, data),
        hard_state=decoded.hard_state,
        size_bytes=len(content),
    )


def write_whole(filesystem: FileSystem, path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file so that it is there in full and durable, or not at all."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    file = filesystem.open(temporary, create=True)
    try:
        offset = 0
        for part in parts:
            filesystem.write(file, part, offset)
            offset += len(part)
        filesystem.sync(file)
    except OSError:
        filesystem.unlink(temporary)
        raise
    finally:
        filesystem.close(file)
    filesystem.rename(temporary, path)
    filesystem.sync_directory(path.parent)
