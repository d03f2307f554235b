"""DistSync: locks for the applications of a cluster, from Python.

from distsync import AsyncClient, Client
"""

from __future__ import annotations

from distsync.barriers import Barrier
from distsync.client import AsyncClient
from distsync.elections import Election, Leader
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
from distsync.latches import Latch
from distsync.lock_sets import LockSet
from distsync.locks import Lock
from distsync.models import ClusterStatus, Holder, LockInfo, Member, Mode, Waiter
from distsync.sessions import Session
from distsync.sync_client import Client
from distsync.sync_locks import SyncLock, SyncLockSet, SyncSession
from distsync.sync_recipes import ElectionThread, SyncBarrier, SyncElection, SyncLatch

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Barrier",
    "Client",
    "ClientClosed",
    "ClusterStatus",
    "Conflict",
    "Deadlock",
    "DiskFull",
    "DistSyncError",
    "Election",
    "ElectionThread",
    "Holder",
    "Latch",
    "Leader",
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
    "SyncBarrier",
    "SyncElection",
    "SyncLatch",
    "SyncLock",
    "SyncLockSet",
    "SyncSession",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
    "Waiter",
]
