"""The directory of a cluster that `distsync up` runs: what is in it and whose it is.

    distsync-up.json   says that the directory is ours, and the shape of the cluster
    .lock              held (flock) by the `up` that runs; the kernel drops it with the process
    secret             shared by the nodes and by administrators, readable by its owner only
    node-1/ ...        the data of a node
    node-1.log ...     what a node wrote to stderr
    redis/             the data of the Redis server, and its socket
    redis.log          what that server wrote

Nothing is ever removed from a directory without the first file, and then only these names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Self

import msgspec

from distsync.command.failures import ExitCode, Failure

_OUR_NAMES = re.compile(r"(node-[1-9]\d*|redis)(\.log(\.1)?)?|secret|distsync-up\.json")
_MAX_LOG_BYTES = 16 << 20


class GenesisMember(msgspec.Struct, frozen=True):
    """A member of the first configuration, as POST /cluster/bootstrap takes it."""

    id: str
    name: str
    peer_url: str
    client_url: str


class Genesis(msgspec.Struct, frozen=True):
    """The body of POST /cluster/bootstrap; on disk before the first node hears of it, so that a
    bootstrap that was interrupted half way is completed with the same words."""

    cluster_id: str
    members: tuple[GenesisMember, ...]


class Shape(msgspec.Struct, frozen=True):
    """What must be the same when the cluster is started again."""

    nodes: int
    base_port: int
    genesis: Genesis | None = None


class ClusterDir:
    """A directory of ours, locked by this process for as long as it is open."""

    def __init__(self, path: Path, lock_fd: int, shape: Shape | None) -> None:
        self.path = path
        self.shape = shape
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path, *, fresh: bool) -> ClusterDir:
        """Create or take the directory; with `fresh`, empty it of what is ours.

        Raises:
            Failure: it is not ours, another `up` runs in it, or it cannot be read and written.
        """
        try:
            return cls._open(path, fresh=fresh)
        except OSError as error:
            raise _refusal(f"cannot use {path}: {error.strerror or error}") from None
        except (msgspec.DecodeError, msgspec.ValidationError):
            raise _refusal(f"{path}/distsync-up.json is damaged; move {path} away") from None

    @classmethod
    def _open(cls, path: Path, *, fresh: bool) -> ClusterDir:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = path / "distsync-up.json"
        if not marker.exists() and _holds_anything(path):
            raise _refusal(f"{path} is not empty and was not made by distsync up; give another")
        lock_fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lock_fd)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _refusal(
                    f"another distsync up is running in {path}; stop it or give another --data-dir"
                ) from None
            if fresh:
                _remove_ours(path)
            shape = None
            if marker.exists():
                shape = msgspec.json.decode(marker.read_bytes(), type=Shape)
            undo.pop_all()
        return cls(path, lock_fd, shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock_fd)

    def save(self, shape: Shape) -> None:
        """Make the shape durable."""
        self.shape = shape
        _write_durably(self.path / "distsync-up.json", msgspec.json.encode(shape))

    @property
    def secret_file(self) -> Path:
        """Where the shared secret is kept."""
        return self.path / "secret"

    def secret(self) -> str:
        """Return the shared secret; the first call mints it."""
        if not self.secret_file.exists():
            _write_durably(self.secret_file, secrets.token_hex(32).encode() + b"\n")
        return self.secret_file.read_text(encoding="utf-8").strip()

    def node_dir(self, name: str) -> Path:
        """Return where a node keeps its data."""
        return self.path / name

    @property
    def redis_dir(self) -> Path:
        """Where the Redis server of the queues keeps its data."""
        return self.path / "redis"

    def log_file(self, name: str) -> Path:
        """Return where the log of a node or of Redis goes; a long one is put aside first."""
        log = self.path / f"{name}.log"
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(self.path / f"{name}.log.1")
        return log

    def last_words(self, name: str) -> str:
        """Return the last line of a node's log, or of Redis's."""
        try:
            with (self.path / f"{name}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def _holds_anything(path: Path) -> bool:
    return any(not entry.name.startswith(".") for entry in path.iterdir())


def _remove_ours(path: Path) -> None:
    # The marker goes last: a removal that is interrupted leaves a directory that is still ours.
    ours = [entry for entry in path.iterdir() if _OUR_NAMES.fullmatch(entry.name)]
    for entry in sorted(ours, key=lambda entry: entry.name == "distsync-up.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _write_durably(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _refusal(message: str) -> Failure:
    return Failure(message, exit_code=ExitCode.USAGE, code="startup")
