"""The few file operations the storage needs, so that tests can put a failing disk underneath.

Every operation raises `OSError` as the system call does. `is_for_want_of_room` tells the errors
that pass when something is freed from those that mean the disk failed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

# ENOMEM is not among them: a sync may fail with it, and a failed sync is never repeated.
_WANT_OF_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE})
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def is_for_want_of_room(error: OSError) -> bool:
    """Whether the operation succeeds once space, a quota or open files are freed."""
    return error.errno in _WANT_OF_ROOM


class FileSystem(Protocol):
    """What the storage asks of a file system. Files are small integers, as in POSIX."""

    def make_directory(self, path: Path) -> None:
        """Create the directory and its parents; one that exists is fine."""

    def list_directory(self, path: Path) -> list[str]:
        """Names in the directory."""

    def sync_directory(self, path: Path) -> None:
        """Make the directory's names durable."""

    def lock(self, path: Path) -> int:
        """Create and lock the file for this process; `BlockingIOError` when another holds it."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open for reading and writing; `create` makes an empty file, replacing an old one."""

    def close(self, file: int) -> None:
        """Close; releases the lock of a locked file."""

    def size(self, file: int) -> int:
        """Length in bytes."""

    def read(self, file: int, length: int, offset: int) -> bytes:
        """Read `length` bytes, fewer only at the end of the file."""

    def write(self, file: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of it, durable after `sync`."""

    def write_durably(self, file: int, data: bytes, offset: int) -> None:
        """Write all of it and have it on disk on return."""

    def allocate(self, file: int, offset: int, length: int) -> bool:
        """Reserve space that reads as zeros; False when the file system cannot."""

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to `size`."""

    def sync(self, file: int) -> None:
        """Make content and length durable."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically, replacing the target."""

    def unlink(self, path: Path) -> None:
        """Remove a file."""


class OsFileSystem:
    """The real one.

    `write_durably` is one `pwritev2` with `RWF_DSYNC` (write and fdatasync in a single system
    call). A thread that comes back from a system call must win the interpreter lock again, which
    beside a busy event loop takes up to the switch interval, so one call is worth having.
    """

    def __init__(self) -> None:
        self._dsync_flag: int = getattr(os, "RWF_DSYNC", 0)

    def make_directory(self, path: Path) -> None:
        """Create the directory and its parents; one that exists is fine."""
        path.mkdir(parents=True, exist_ok=True)

    def list_directory(self, path: Path) -> list[str]:
        """Names in the directory."""
        return os.listdir(path)

    def sync_directory(self, path: Path) -> None:
        """Make the directory's names durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> int:
        """Create and lock the file for this process; `BlockingIOError` when another holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open(self, path: Path, *, create: bool = False) -> int:
        """Open for reading and writing; `create` makes an empty file, replacing an old one."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        return os.open(path, flags, 0o600)

    def close(self, file: int) -> None:
        """Close; releases the lock of a locked file."""
        os.close(file)

    def size(self, file: int) -> int:
        """Length in bytes."""
        return os.fstat(file).st_size

    def read(self, file: int, length: int, offset: int) -> bytes:
        """Read `length` bytes, fewer only at the end of the file."""
        first = os.pread(file, length, offset)
        if len(first) == length or not first:
            return first
        parts = [first]
        done = len(first)
        while done < length and (part := os.pread(file, length - done, offset + done)):
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def write(self, file: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of it, durable after `sync`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, offset)
            view = view[written:]
            offset += written

    def write_durably(self, file: int, data: bytes, offset: int) -> None:
        """Write all of it and have it on disk on return."""
        if self._dsync_flag:
            try:
                written = os.pwritev(file, (data,), offset, self._dsync_flag)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                self._dsync_flag = 0
            else:
                if written == len(data):
                    return
                data, offset = data[written:], offset + written
        self.write(file, data, offset)
        os.fdatasync(file)

    def allocate(self, file: int, offset: int, length: int) -> bool:
        """Reserve space that reads as zeros; False when the file system cannot."""
        try:
            os.posix_fallocate(file, offset, length)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise
        return True

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to `size`."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Make content and length durable."""
        os.fsync(file)

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically, replacing the target."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()
