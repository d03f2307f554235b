"""A disk in memory that loses, fills up and fails the way real ones do.

- After `cut_power` any subset of the unsynced 512-byte sectors of a file has survived, its length
  is anywhere between the synced and the latest one, and any subset of the unsynced changes to a
  directory has happened.
- With `writeback`, some dirty sectors reach the disk at any time before that, as the kernel likes.
- `budget_bytes` is what can still be written or reserved: then a write stops half-way with ENOSPC.
- `openings`: how many calls that open something still succeed; then EMFILE, the table of open
  files is full.
- `fail_next_sync`: the sync raises EIO, and the dirty sectors count as clean without being on disk.
- `cut_after`: the power goes before the n-th operation from now.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

SECTOR_BYTES = 512


class PowerCut(BaseException):
    """The machine is off. Not an error that anyone handles."""


@dataclass(slots=True)
class File:
    current: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if len(self.current) < end:
            self.resize(end)
        self.current[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def resize(self, size: int) -> None:
        old = len(self.current)
        if size < old:
            del self.current[size:]
            self.dirty.update(range(size // SECTOR_BYTES, -(-old // SECTOR_BYTES)))
        else:
            self.current.extend(bytes(size - old))

    def sync(self) -> None:
        _resize(self.durable, len(self.current))
        for sector in self.dirty:
            self._keep(sector)
        self.dirty.clear()

    def write_back(self, random: random.Random) -> None:
        """Put some dirty sectors on the disk; they stay dirty until a sync."""
        if len(self.durable) < len(self.current) and random.random() < 0.5:
            _resize(self.durable, len(self.current))
        for sector in sorted(self.dirty):
            if random.random() < 0.5:
                self._keep(sector)

    def lose(self, random: random.Random) -> None:
        shorter, longer = sorted((len(self.durable), len(self.current)))
        boundaries = range(shorter - shorter % SECTOR_BYTES + SECTOR_BYTES, longer, SECTOR_BYTES)
        sizes = [shorter, longer, random.choice(boundaries) if boundaries else longer]
        kept = random.choice((0.0, 0.3, 0.7, 1.0))
        _resize(self.durable, random.choice(sizes))
        for sector in sorted(self.dirty):
            if random.random() < kept:
                self._keep(sector)
        self.dirty.clear()
        self.current = bytearray(self.durable)

    def _keep(self, sector: int) -> None:
        start = sector * SECTOR_BYTES
        end = min(start + SECTOR_BYTES, len(self.durable))
        part = self.current[start:end]
        if start < end:
            self.durable[start:end] = part.ljust(end - start, b"\0")


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


@dataclass(slots=True)
class Directory:
    current: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, str | None, Node]] = field(default_factory=list)

    def change(self, target: str, source: str | None, node: Node | None) -> None:
        """Put `node` at `target` (None: remove what is there), taking it from `source` if given."""
        moved = node if node is not None else self.current[target]
        self.pending.append((target if node is not None else "", source or target, moved))
        _apply(self.current, self.pending[-1])

    def sync(self) -> None:
        self.durable = dict(self.current)
        self.pending.clear()

    def lose(self, random: random.Random) -> None:
        kept = random.choice((0.0, 0.5, 1.0))
        for change in self.pending:
            if random.random() < kept:
                _apply(self.durable, change)
        self.pending.clear()
        self.current = dict(self.durable)


Node = File | Directory


def _apply(names: dict[str, Node], change: tuple[str, str | None, Node]) -> None:
    target, source, node = change
    if source is not None and names.get(source) is node:
        del names[source]
    if target:
        names[target] = node


class FaultFileSystem:
    """Implements `distsync_node.storage.FileSystem`."""

    def __init__(self, *, can_reserve: bool = True, writeback: random.Random | None = None) -> None:
        self._writeback = writeback
        self.root = Directory()
        self.can_reserve = can_reserve
        self.budget_bytes: int | None = None
        self.openings: int | None = None
        self.fail_next_sync = False
        self.cut_after: int | None = None
        self.operations = 0
        self.is_off = False
        self._files: dict[int, File] = {}
        self._locks: dict[int, File] = {}
        self._next_file = 3

    # --- What tests do to it --------------------------------------------------------------

    def cut_power(self, random: random.Random) -> None:
        """Lose what a power cut loses, and come back."""
        seen: list[Node] = [self.root]
        while seen:
            node = seen.pop()
            if isinstance(node, Directory):
                reachable = [*node.current.values(), *node.durable.values()]
                reachable += [change[2] for change in node.pending]
                node.lose(random)
                seen += {id(each): each for each in reachable}.values()
            else:
                node.lose(random)
        self.kill_process()
        self.is_off = False
        self.cut_after = None

    def kill_process(self) -> None:
        """Drop what a process holds; the page cache stays."""
        self._files.clear()
        self._locks.clear()

    def file(self, path: Path) -> File:
        """The file at a path, to be damaged."""
        node = self._directory(path.parent).current[path.name]
        assert isinstance(node, File)
        return node

    def overwrite(self, path: Path, offset: int, data: bytes) -> None:
        """Change bytes on the disk itself."""
        node = self.file(path)
        for content in (node.current, node.durable):
            content[offset : offset + len(data)] = data

    def flip(self, path: Path, offset: int, mask: int = 0x10) -> None:
        """Change one byte on the disk itself."""
        self.overwrite(path, offset, bytes([self.file(path).current[offset] ^ mask]))

    def shorten(self, path: Path, size: int) -> None:
        """Cut a file on the disk itself."""
        node = self.file(path)
        del node.current[size:]
        del node.durable[size:]

    def names(self, path: Path) -> list[str]:
        """Sorted names in a directory."""
        return sorted(self.list_directory(path))

    # --- The interface --------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        self._step()
        node = self.root
        for name in path.parts[1:]:
            child = node.current.get(name)
            if child is None:
                child = Directory()
                node.change(name, None, child)
            assert isinstance(child, Directory)
            node = child

    def list_directory(self, path: Path) -> list[str]:
        self._open()
        return list(self._directory(path).current)

    def sync_directory(self, path: Path) -> None:
        self._step()
        self._open()
        self._directory(path).sync()

    def lock(self, path: Path) -> int:
        self._step()
        names = self._directory(path.parent)
        if path.name not in names.current:
            names.change(path.name, None, File())
        node = self.file(path)
        if any(held is node for held in self._locks.values()):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._next_file += 1
        self._locks[self._next_file] = node
        return self._next_file

    def open(self, path: Path, *, create: bool = False) -> int:
        self._step()
        self._open()
        names = self._directory(path.parent)
        node = names.current.get(path.name)
        if create:
            if isinstance(node, File):
                node.resize(0)
            else:
                node = File()
                names.change(path.name, None, node)
        if not isinstance(node, File):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._next_file += 1
        self._files[self._next_file] = node
        return self._next_file

    def close(self, file: int) -> None:
        self._files.pop(file, None)
        self._locks.pop(file, None)

    def size(self, file: int) -> int:
        return len(self._files[file].current)

    def read(self, file: int, length: int, offset: int) -> bytes:
        return bytes(self._files[file].current[offset : offset + length])

    def write(self, file: int, data: bytes | memoryview, offset: int) -> None:
        self._step()
        allowed = self._spend(len(data))
        if allowed:
            self._files[file].write(bytes(data[:allowed]), offset)
        if self._writeback is not None:
            self._files[file].write_back(self._writeback)
        if allowed < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_durably(self, file: int, data: bytes, offset: int) -> None:
        self.write(file, data, offset)
        self.sync(file)

    def allocate(self, file: int, offset: int, length: int) -> bool:
        self._step()
        if not self.can_reserve:
            return False
        node = self._files[file]
        missing = max(0, offset + length - len(node.current))
        allowed = self._spend(missing)
        node.resize(len(node.current) + allowed)
        if allowed < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    def truncate(self, file: int, size: int) -> None:
        self._step()
        self._files[file].resize(size)

    def sync(self, file: int) -> None:
        self._step()
        if self.fail_next_sync:
            self.fail_next_sync = False
            self._files[file].dirty.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._files[file].sync()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        assert source.parent == target.parent
        names = self._directory(source.parent)
        names.change(target.name, source.name, names.current[source.name])

    def unlink(self, path: Path) -> None:
        self._step()
        names = self._directory(path.parent)
        if path.name not in names.current:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        names.change(path.name, None, None)

    # --- Inside ---------------------------------------------------------------------------

    def _step(self) -> None:
        self.operations += 1
        if self.cut_after is not None:
            self.cut_after -= 1
            self.is_off = self.is_off or self.cut_after < 0
        if self.is_off:
            raise PowerCut

    def _open(self) -> None:
        if self.openings is not None:
            self.openings -= 1
            if self.openings < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _spend(self, wanted: int) -> int:
        if self.budget_bytes is None:
            return wanted
        allowed = min(wanted, self.budget_bytes)
        self.budget_bytes -= allowed
        return allowed

    def _directory(self, path: Path) -> Directory:
        node: Node = self.root
        for name in path.parts[1:]:
            if not isinstance(node, Directory) or name not in node.current:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = node.current[name]
        assert isinstance(node, Directory)
        return node
