"""The data directory: who may use it, and which member it belongs to.

<data directory>/
  lock                  held while a node runs
  member/               everything of one member; made by one rename, archived by one rename
    identity            format and member id
    removed             there once the member was removed from its cluster
    snapshot-<index>    the newest snapshot (an older one only while it is being replaced)
    log-<number>        segments
  archived-<id>/        a former member's content
"""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

from distsync_node.errors import StartupError
from distsync_node.raft.types import MemberId
from distsync_node.storage.filesystem import FileSystem
from distsync_node.storage.snapshots import TEMPORARY_SUFFIX, write_whole

LOCK_NAME = "lock"
MEMBER_NAME = "member"
REMOVED_NAME = "removed"
DIVERGED_NAME = "diverged"
_IDENTITY_NAME = "identity"
_FORMAT = 1
_IDENTITY_LIMIT_BYTES = 4096


def lock_directory(filesystem: FileSystem, path: Path) -> int:
    """Create the data directory and lock it for this process.

    Raises:
        StartupError: when another node holds it.
        OSError: when it cannot be used.
    """
    try:
        filesystem.make_directory(path)
    except (FileExistsError, NotADirectoryError):
        raise StartupError(
            f"data directory {path} is not a directory: name another place with --data-dir"
        ) from None
    try:
        return filesystem.lock(path / LOCK_NAME)
    except BlockingIOError:
        raise StartupError(
            f"data directory {path} is in use by another node: stop that node, "
            "or give this one its own directory"
        ) from None


def open_member(filesystem: FileSystem, path: Path) -> tuple[Path, MemberId]:
    """Return the member's directory and id, minted durably if there is none yet.

    Raises:
        StartupError: when the identity is damaged.
        OSError: when the directory cannot be used.
    """
    directory = path / MEMBER_NAME
    if MEMBER_NAME not in filesystem.list_directory(path):
        _mint(filesystem, path, directory)
    return directory, _read_identity(filesystem, directory / _IDENTITY_NAME)


def archive_member(filesystem: FileSystem, path: Path, member_id: MemberId) -> Path:
    """Move the member's directory aside, durably, and return where it went."""
    names = set(filesystem.list_directory(path))
    name = f"archived-{member_id}"
    attempt = 1
    while name in names:
        attempt += 1
        name = f"archived-{member_id}-{attempt}"
    filesystem.rename(path / MEMBER_NAME, path / name)
    filesystem.sync_directory(path)
    return path / name


def _mint(filesystem: FileSystem, path: Path, directory: Path) -> None:
    draft = path / (MEMBER_NAME + TEMPORARY_SUFFIX)
    filesystem.make_directory(draft)
    text = f"distsync {_FORMAT} {os.urandom(8).hex()}"
    write_whole(filesystem, draft / _IDENTITY_NAME, [_with_checksum(text)])
    filesystem.rename(draft, directory)
    filesystem.sync_directory(path)
    filesystem.sync_directory(path.parent)


def _with_checksum(text: str) -> bytes:
    return f"{text} {crc32(text.encode()):08x}\n".encode()


def _read_identity(filesystem: FileSystem, path: Path) -> MemberId:
    try:
        file = filesystem.open(path)
    except FileNotFoundError:
        raise _identity_error(path, "is missing") from None
    try:
        content = filesystem.read(file, _IDENTITY_LIMIT_BYTES, 0)
    finally:
        filesystem.close(file)
    text = content.decode("ascii", "replace").rpartition(" ")[0]
    words = text.split(" ")
    if content != _with_checksum(text) or len(words) != 3 or words[0] != "distsync":
        raise _identity_error(path, "is damaged")
    if words[1] != str(_FORMAT):
        raise StartupError(
            f"{path} has format {words[1]}, this release reads format {_FORMAT}: "
            "start the release that wrote it, or a newer one"
        )
    return MemberId(words[2])


def _identity_error(path: Path, what: str) -> StartupError:
    return StartupError(
        f"{path} {what}, so this node does not know which member it is: remove the member from "
        f"its cluster, move {path.parent} away and start again to join as a new member"
    )
