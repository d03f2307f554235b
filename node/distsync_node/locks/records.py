"""The items that make up the state: what is hashed, and what a snapshot holds.

Every item is frozen. A change puts a new item in the place of the old one, so an index may go on
holding an item as it was when it was entered, as long as it reads only what never changes: of a
grant the name, owner, token, session, digest; of a waiting request all but `attempt`. Everything
else of the machine (queues, indexes, heaps) is derived from these items and from the counters.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from distsync_node.locks.commands import (
    Done,
    FencingToken,
    Granted,
    LockMode,
    Refused,
    RequestKey,
    SessionId,
)


class HeldGrant(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="g"):
    """One lock held by one owner.

    `key` is that of the request it answers, and None once that request would be answered
    LOCK_LOST because another of its grants has ended.
    """

    name: str
    owner: str
    mode: LockMode
    token: FencingToken
    deadline_ms: int  # 0 when a session decides
    session: SessionId | None
    key: RequestKey | None
    digest: bytes


class WaitingRequest(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="w"):
    """A request in the queue of each of its locks; the order of `sequence` is the FIFO order.

    An upgrade has `upgrade_token`, the token of the shared grant it wants to exchange, and stands
    at the head of its lock instead of in the queue.
    """

    key: RequestKey
    digest: bytes
    sequence: int
    attempt: int
    owner: str
    mode: LockMode
    names: tuple[str, ...]
    deadline_ms: int
    ttl_ms: int
    session: SessionId | None
    upgrade_token: FencingToken | None = None


class FinishedRequest(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="f"):
    """The remembered end of a request. `sequence` orders them by the time they finished.

    `attempt` is kept for a cancelled wait: the next attach of it gets the number above.
    A Granted outcome is one of a downgrade, and holds as long as that grant does.
    """

    key: RequestKey
    digest: bytes
    sequence: int
    finished_ms: int
    outcome: Granted | Done | Refused
    attempt: int = 0


class SessionLease(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="s"):
    """An open session and the request that opened it."""

    id: SessionId
    ttl_ms: int
    deadline_ms: int
    key: RequestKey
    digest: bytes


class LockLimit(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="l"):
    """The limit of a lock once a request has fixed it; 0 is shared without a limit."""

    name: str
    limit: int


class Counters(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="c"):
    """The last fencing token, the last sequence number and the last stamp."""

    token: int
    sequence: int
    stamp_ms: int


Item: TypeAlias = HeldGrant | WaitingRequest | FinishedRequest | SessionLease | LockLimit

# What the table of requests holds under a key: a request that waits, the grants it got, the
# session it opened, or its end.
RequestRecord: TypeAlias = (
    WaitingRequest | HeldGrant | tuple[HeldGrant, ...] | SessionLease | FinishedRequest
)
