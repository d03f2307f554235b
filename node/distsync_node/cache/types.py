"""What the cache is made of: versions, records, changes, and what a client is told."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType, TypeAlias

import msgspec

from distsync_node.cluster.ring_state import Server

PeerId = NewType("PeerId", str)
"""One process: a restarted node is another peer. Nothing meant for the old one reaches the new."""

OpId = NewType("OpId", int)
"""A call of a client at this node, named by the shell."""

LINE_OVERHEAD_BYTES = 1_200
"""What a line takes beside its key and value, and beside it one entry in the directory of a home:
measured (`test_memory.py`)."""


def peer_id(server: Server) -> PeerId:
    """Return the name of a process in the ring."""
    return PeerId(f"{server.name}/{server.member}/{server.incarnation}")


class Version(NamedTuple):
    """Orders the states of one key: the epoch of the home that assigned it, then its counter."""

    epoch: int
    counter: int


ABSENT = Version(0, 0)
"""The version of a key that was never written; as `if_version`: only if there is no value."""


class Durability(Enum):
    """Where a value must be before its write is acknowledged."""

    MIRRORED = "mirrored"  # in two processes, or in Redis
    LOCAL = "local"  # in the owner's line; textbook MESI
    WRITE_THROUGH = "write_through"  # in Redis


class Copy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One state of a key as it travels. `value` None: none.

    `remaining_ms` 0: it does not expire; 1: its time is over.
    """

    version: Version
    value: bytes | None
    remaining_ms: int = 0
    fences: tuple[tuple[str, int], ...] = ()


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One state of a key as it is kept; `expires_ms` is on the clock of who keeps it, 0 = never."""

    version: Version
    value: bytes | None
    expires_ms: int = 0
    fences: tuple[tuple[str, int], ...] = ()

    def copy(self, now_ms: int) -> Copy:
        """Return it as sent now."""
        remaining_ms = max(1, self.expires_ms - now_ms) if self.expires_ms else 0
        return Copy(self.version, self.value, remaining_ms, self.fences)

    def is_expired(self, now_ms: int) -> bool:
        """Whether its time is over and nobody has noted that yet."""
        return self.value is not None and 0 < self.expires_ms <= now_ms

    @property
    def size(self) -> int:
        """Its bytes in memory, nearly."""
        return LINE_OVERHEAD_BYTES + (0 if self.value is None else len(self.value))


NOTHING = Record(ABSENT, None)


def received(copy: Copy, now_ms: int) -> Record:
    """Return a copy as kept from now on; one whose time is over has expired by now."""
    expires_ms = now_ms + copy.remaining_ms - 1 if copy.remaining_ms else 0
    return Record(copy.version, copy.value, expires_ms, copy.fences)


class Fence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The grant of a lock under which a write is made.

    `verified`: a linearizable read, begun after the write came, found the token to be the lock's
    current exclusive grant.
    """

    lock: str
    token: int
    verified: bool = False


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A write; `value` None deletes. `exact`: with ABSENT, only if it was never written at all."""

    value: bytes | None
    ttl_ms: int = 0
    if_version: Version | None = None
    fence: Fence | None = None
    exact: bool = False

    @property
    def size(self) -> int:
        """Its bytes in memory, nearly."""
        return LINE_OVERHEAD_BYTES + (0 if self.value is None else len(self.value))


class Code(Enum):
    """Why a call was not served."""

    VERSION_MISMATCH = "version_mismatch"
    FENCED = "fenced"
    FENCE_UNVERIFIED = "fence_unverified"  # ask again with a verified fence
    TOO_MANY_FENCES = "too_many_fences"
    LINE_LOST = "line_lost"
    LIMIT = "limit_reached"  # too many dirty bytes; retriable
    UNAVAILABLE = "unavailable"  # nothing was done
    REDIS_UNAVAILABLE = "redis_unavailable"  # nothing was done
    REDIS_FULL = "redis_full"  # it has no memory left; nothing was done
    UNKNOWN = "outcome_unknown"


class Found(msgspec.Struct, frozen=True, gc=False):
    """The value of the key; `remaining_ms` 0: it does not expire."""

    version: Version
    value: bytes
    remaining_ms: int = 0
    hit: bool = False


class Missing(msgspec.Struct, frozen=True, gc=False):
    """The key has no value."""

    version: Version
    hit: bool = False


class Written(msgspec.Struct, frozen=True, gc=False):
    """The write is done."""

    version: Version


class Refused(msgspec.Struct, frozen=True, gc=False):
    """It was not done; or, with UNKNOWN, nobody knows."""

    code: Code
    version: Version = ABSENT  # of a version_mismatch: the current one
    newest: int = 0  # of fenced: the newest token seen


Outcome: TypeAlias = Found | Missing | Written | Refused
