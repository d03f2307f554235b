"""DistSync: locks for the applications of a cluster, from Python.

from distsync import AsyncClient, Client
"""

from __future__ import annotations

from distsync.client import AsyncClient
from distsync.errors import (
    BadRequest,
    ClientClosed,
    Conflict,
    Deadlock,
    DiskFull,
    DistSyncError,
    LimitMismatch,
    LimitReached,
    LockHeld,
    LockLost,
    NotFound,
    NotHolder,
    OutcomeUnknown,
    PayloadTooLarge,
    RequestIdReused,
    ServerError,
    SessionLost,
    SessionNotFound,
    Unauthorized,
    Unavailable,
    WaitTimeout,
)
from distsync.lock_sets import LockSet
from distsync.locks import Lock
from distsync.models import ClusterStatus, Holder, LockInfo, Member, Mode, Waiter
from distsync.sessions import Session

__all__ = [
    "AsyncClient",
    "BadRequest",
    "ClientClosed",
    "ClusterStatus",
    "Conflict",
    "Deadlock",
    "DiskFull",
    "DistSyncError",
    "Holder",
    "LimitMismatch",
    "LimitReached",
    "Lock",
    "LockHeld",
    "LockInfo",
    "LockLost",
    "LockSet",
    "Member",
    "Mode",
    "NotFound",
    "NotHolder",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "RequestIdReused",
    "ServerError",
    "Session",
    "SessionLost",
    "SessionNotFound",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
    "Waiter",
]
