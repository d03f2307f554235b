"""Durable storage of one node: its identity, the log, and the newest snapshot.

Guarantees:

- when `write` returns, the batch is on disk and stays there over a crash at any moment;
- when it raises `DiskFull` (no space, or no room for a new file in the table of open files),
  nothing that was durable is lost, no part of a record remains, and the same batch may be written
  again (its snapshot may be durable by then, its record is not);
- a failed sync is never repeated: after `StorageFailed` the storage refuses everything;
- `open` gives back what was written, in order, or stops with one line that names file and offset.

A batch becomes one snapshot file (the last of its snapshots) and then one record. A snapshot holds
committed state, so it may be durable before the entries it was made from. After a crash between
the two, the log either agrees with the snapshot (it holds the snapshot's last entry, with the same
term) or it is superseded as a whole: Raft's rule for a received snapshot (thesis §5.1).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import msgspec

from distsync_node.errors import (
    AlreadyBootstrapped,
    DiskFull,
    InvariantViolation,
    StartupError,
    StorageFailed,
)
from distsync_node.raft.types import (
    Entry,
    HardState,
    LogIndex,
    MemberId,
    Persist,
    RecoveredState,
    Snapshot,
)
from distsync_node.storage.batch import Batch, merge
from distsync_node.storage.directory import (
    DIVERGED_NAME,
    REMOVED_NAME,
    archive_member,
    lock_directory,
    open_member,
)
from distsync_node.storage.filesystem import FileSystem, OsFileSystem, is_for_want_of_room
from distsync_node.storage.log import (
    SEGMENT_BYTES,
    Record,
    SegmentedLog,
    SegmentError,
    segment_numbers,
)
from distsync_node.storage.records import DamageError, UnknownFormatError
from distsync_node.storage.snapshots import (
    TEMPORARY_SUFFIX,
    StoredSnapshot,
    read_snapshot,
    snapshot_index,
    snapshot_name,
    write_snapshot,
    write_whole,
)

_NO_INDEX = LogIndex(0)
_FIRST_INDEX = LogIndex(1)


class Storage:
    """What a node keeps on disk. Methods block; those that write take turns."""

    member_id: MemberId
    recovered: RecoveredState | None
    removed: bool

    def __init__(
        self,
        path: Path,
        filesystem: FileSystem,
        lock_file: int,
        directory: Path,
        member_id: MemberId,
        segment_bytes: int,
    ) -> None:
        """Use `Storage.open`."""
        self.member_id = member_id
        self._path = path
        self._filesystem = filesystem
        self._lock_file: int | None = lock_file
        self._directory = directory
        self._log = SegmentedLog(
            filesystem=filesystem,
            directory=directory,
            member_id=member_id,
            segment_bytes=segment_bytes,
        )
        self._mutex = threading.Lock()
        self._failure: str | None = None
        self._hard_state: HardState | None = None
        self._snapshot_index = _NO_INDEX
        self._snapshot_bytes = 0
        self._genesis_digest: bytes | None = None
        self._last_index = _NO_INDEX
        self._pending_discard: LogIndex | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        filesystem: FileSystem | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Lock the directory, mint an identity if it is empty, and recover what it holds.

        Raises:
            StartupError: one line that says what is wrong and what to do.
        """
        filesystem = filesystem or OsFileSystem()
        with ExitStack() as undo:
            try:
                lock_file = lock_directory(filesystem, path)
                undo.callback(filesystem.close, lock_file)
                directory, member_id = open_member(filesystem, path)
                storage = cls(path, filesystem, lock_file, directory, member_id, segment_bytes)
                undo.callback(storage._log.close)
                storage._open()
            except OSError as error:
                raise StartupError(_unusable(path, error)) from error
            undo.pop_all()
            return storage

    # --- Opening --------------------------------------------------------------------------

    def _open(self) -> None:
        names = self._filesystem.list_directory(self._directory)
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                self._filesystem.unlink(self._directory / name)
        self._filesystem.sync_directory(self._directory)
        if DIVERGED_NAME in names:
            raise self._damaged(DIVERGED_NAME, "its state was found to differ from a quorum's")
        self.removed = REMOVED_NAME in names
        self.recovered = self._recover(names)

    def _recover(self, names: Sequence[str]) -> RecoveredState | None:
        indexes = sorted(index for name in names if (index := snapshot_index(name)) is not None)
        numbers = segment_numbers(names)
        if not indexes:
            if numbers:
                raise self._damaged("snapshot", "is missing while log segments are there")
            return None
        stored = self._read_snapshot(indexes[-1])
        snapshot, snapshot_hard_state = stored.snapshot, stored.hard_state
        try:
            replay = self._log.recover(numbers)
        except SegmentError as error:
            raise self._unreadable(error.name, error.cause) from error
        if snapshot.meta.index < replay.snapshot_index:
            raise self._damaged(snapshot_name(replay.snapshot_index), "is missing")
        hard_state = replay.hard_state or snapshot_hard_state
        if hard_state is None:
            raise self._damaged("log", f"is missing beside {snapshot_name(indexes[-1])}")
        if hard_state.term < snapshot.meta.term:
            # The snapshot became durable and the record that raises the term did not; in that
            # term this member has not voted.
            hard_state = msgspec.structs.replace(hard_state, term=snapshot.meta.term, vote=None)
        entries = self._reconcile(snapshot, replay.entries)
        if snapshot_hard_state is not None:
            self._genesis_digest = _digest(snapshot, snapshot_hard_state)
        self._hard_state = hard_state
        self._last_index = entries[-1].index if entries else snapshot.meta.index
        for index in indexes[:-1]:
            self._filesystem.unlink(self._directory / snapshot_name(index))
        return RecoveredState(
            member_id=self.member_id,
            hard_state=hard_state,
            snapshot=snapshot,
            entries=tuple(entries),
        )

    def _read_snapshot(self, index: LogIndex) -> StoredSnapshot:
        name = snapshot_name(index)
        try:
            stored = read_snapshot(self._filesystem, self._directory / name)
            found = stored.snapshot.meta.index
            if found != index:
                raise DamageError(None, f"it is the snapshot at {found}, not what its name says")
        except (DamageError, UnknownFormatError) as error:
            raise self._unreadable(name, error) from error
        self._snapshot_index = index
        self._snapshot_bytes = stored.size_bytes
        return stored

    def _reconcile(self, snapshot: Snapshot, entries: list[Entry]) -> list[Entry]:
        """Return the entries that go with the snapshot: all, or none if it supersedes them."""
        index = snapshot.meta.index
        if not entries or entries[0].index == index + 1:
            return entries
        if entries[0].index > index + 1:
            raise self._damaged("log", f"does not go back to the snapshot at {index}")
        holds_index = entries[-1].index >= index
        if holds_index and entries[index - entries[0].index].term == snapshot.meta.term:
            return entries
        self._pending_discard = index
        return []

    def _unreadable(self, name: str, cause: DamageError | UnknownFormatError) -> StartupError:
        if isinstance(cause, DamageError):
            return self._damaged(name, str(cause))
        return StartupError(
            f"{self._directory / name} {cause}: start the release that wrote it, or a newer one"
        )

    def _damaged(self, name: str, what: str) -> StartupError:
        return StartupError(
            f"{self._directory / name}: {what}; the data of this member cannot be trusted: remove "
            f"member {self.member_id} from its cluster, move {self._directory} away and start "
            "again to join as a new member"
        )

    # --- Founding -------------------------------------------------------------------------

    @property
    def initialised(self) -> bool:
        """Whether this member belongs to a cluster."""
        return self._hard_state is not None

    def initialise(self, snapshot: Snapshot, hard_state: HardState) -> None:
        """Make this the first durable state; the same once more does nothing.

        Raises:
            AlreadyBootstrapped: when there is another state.
            DiskFull: nothing was done.
            StorageFailed: the disk failed.
        """
        digest = _digest(snapshot, hard_state)
        if self._hard_state is not None:
            if digest != self._genesis_digest:
                raise AlreadyBootstrapped("this member belongs to a cluster already")
            return
        with self._disk():
            self._snapshot_bytes = write_snapshot(
                self._filesystem, self._directory, snapshot, hard_state
            )
        self._genesis_digest = digest
        self._hard_state = hard_state
        self._snapshot_index = self._last_index = snapshot.meta.index
        self.recovered = RecoveredState(
            member_id=self.member_id, hard_state=hard_state, snapshot=snapshot, entries=()
        )

    # --- Writing --------------------------------------------------------------------------

    def write(self, batch: Sequence[Persist]) -> None:
        """Execute the effects as one: the last snapshot first, then one record for all the rest.

        Raises:
            DiskFull: try the same batch again later.
            StorageFailed: the disk failed; the node must stop.
        """
        if self._hard_state is None:
            raise InvariantViolation("nothing can be written before the member is initialised")
        merged = merge(batch, self._last_index)
        with self._disk():
            if merged.snapshot is not None:
                self._install(merged.snapshot)
            self._append(merged)
            if merged.snapshot is not None:
                self._delete_superseded(merged.keep_from)

    def _install(self, snapshot: Snapshot) -> None:
        index, previous = snapshot.meta.index, self._snapshot_index
        if index <= previous:
            return  # durable already: the batch is being repeated after a full disk
        # Until there is a segment, whose header carries it, the snapshot carries the hard state.
        hard_state = self._hard_state if self._log.is_empty else None
        size = write_snapshot(self._filesystem, self._directory, snapshot, hard_state)
        self._snapshot_index, self._snapshot_bytes = index, size
        self._genesis_digest = None

    def _append(self, merged: Batch) -> None:
        if self._hard_state is None:
            raise InvariantViolation("no hard state")
        discard = self._pending_discard if merged.discard is None else merged.discard
        if merged.hard_state is not None or merged.entries or discard is not None:
            self._log.append(
                Record(merged.hard_state, discard, merged.entries),
                hard_state=self._hard_state,
                snapshot_index=self._snapshot_index,
            )
        self._pending_discard = None
        self._last_index = merged.last_index
        self._hard_state = merged.hard_state or self._hard_state

    def _delete_superseded(self, keep_from: LogIndex) -> None:
        """Delete older snapshots and segments without entries from `keep_from` on."""
        try:
            for name in self._filesystem.list_directory(self._directory):
                index = snapshot_index(name)
                if index is not None and index < self._snapshot_index:
                    self._filesystem.unlink(self._directory / name)
            wanted = min(keep_from, LogIndex(self._snapshot_index + 1))
            self._log.delete_below(max(wanted, _FIRST_INDEX))  # a discarded segment has index 0
        except OSError as error:
            if not is_for_want_of_room(error):
                raise
            # Some file systems need space to delete. The next snapshot tries again.

    @contextmanager
    def _disk(self) -> Iterator[None]:
        with self._mutex:
            if self._failure is not None:
                raise StorageFailed(self._failure)
            try:
                yield
            except OSError as error:
                if is_for_want_of_room(error):
                    raise DiskFull(f"no room to write to {self._path}: {error.strerror}") from error
                self._failure = f"the disk of {self._path} failed: {error}"
                raise StorageFailed(self._failure) from error

    # --- The rest of a member's life ------------------------------------------------------

    def mark_removed(self) -> None:
        """Note durably that this member was removed from its cluster.

        Raises:
            DiskFull: nothing was done.
            StorageFailed: the disk failed.
        """
        if self.removed:
            return
        with self._disk():
            write_whole(self._filesystem, self._directory / REMOVED_NAME, [b"removed\n"])
        self.removed = True

    def mark_diverged(self) -> None:
        """Note durably that the state of this member is wrong: it must not be started again.

        What is wrong may be in its snapshot, and it would serve that until it is found again.

        Raises:
            DiskFull: nothing was done.
            StorageFailed: the disk failed.
        """
        with self._disk():
            write_whole(self._filesystem, self._directory / DIVERGED_NAME, [b"diverged\n"])

    def archive(self) -> Path:
        """Move the member's content aside and return where it is; then only `close` is left.

        The directory is empty for the next `open`, which mints a new id.
        """
        with self._disk():
            target = archive_member(self._filesystem, self._path, self.member_id)
            self._log.close()
            self._failure = f"the content of {self._path} was archived"
        return target

    def release_recovered(self) -> None:
        """Let go of the recovered state, which holds memory once it has been taken over."""
        self.recovered = None

    @property
    def size_bytes(self) -> int:
        """Bytes of log (reserved space included) and snapshot; archives do not count."""
        return self._log.size_bytes + self._snapshot_bytes

    def close(self) -> None:
        """Close the files and let go of the directory."""
        with self._mutex:
            self._failure = self._failure or f"the storage in {self._path} is closed"
            self._log.close()
            if self._lock_file is not None:
                self._filesystem.close(self._lock_file)
                self._lock_file = None


def _digest(snapshot: Snapshot, hard_state: HardState) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode((snapshot, hard_state))).digest()


def _unusable(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    return (
        f"data directory {path} cannot be used: {reason}{where}: it must be a directory this "
        "process may read and write, on a disk with free space"
    )
