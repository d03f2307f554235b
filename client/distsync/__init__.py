"""DistSync: locks, queues and a cache for the applications of a cluster, from Python.

from distsync import AsyncClient, Client
"""

from __future__ import annotations

from distsync.backoff import Backoff
from distsync.barriers import Barrier
from distsync.cache import Cache
from distsync.cache_models import CachedLine, CacheEntry, CacheStats
from distsync.client import AsyncClient
from distsync.consumers import Consumer
from distsync.elections import Election, Leader
from distsync.errors import (
    BadRequest,
    ClaimLost,
    ClientClosed,
    ComputeLost,
    ComputeTimeout,
    Conflict,
    Deadlock,
    DiskFull,
    DistSyncError,
    Fenced,
    LimitMismatch,
    LimitReached,
    LineLost,
    LockHeld,
    LockLost,
    MessageInFlight,
    MessageNotFound,
    NotFound,
    NotHolder,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueFull,
    QueueNotFound,
    RedisFull,
    RedisUnavailable,
    RequestIdReused,
    ServerError,
    SessionLost,
    SessionNotFound,
    StaleReceipt,
    Unauthorized,
    Unavailable,
    VersionMismatch,
    WaitTimeout,
)
from distsync.latches import Latch
from distsync.lock_sets import LockSet
from distsync.locks import Lock
from distsync.messages import ClaimedMessage
from distsync.models import (
    ClusterStatus,
    Holder,
    LockInfo,
    Member,
    Mode,
    RefusedItem,
    Waiter,
)
from distsync.queue_models import (
    Message,
    MessageInfo,
    PeekedMessage,
    QueueConfig,
    QueueStats,
    Schedule,
)
from distsync.queues import Queue
from distsync.sessions import Session
from distsync.sync_cache import SyncCache
from distsync.sync_client import Client
from distsync.sync_locks import SyncLock, SyncLockSet, SyncSession
from distsync.sync_queues import SyncConsumer, SyncMessage, SyncQueue
from distsync.sync_recipes import ElectionThread, SyncBarrier, SyncElection, SyncLatch

__all__ = [
    "AsyncClient",
    "Backoff",
    "BadRequest",
    "Barrier",
    "Cache",
    "CacheEntry",
    "CacheStats",
    "CachedLine",
    "ClaimLost",
    "ClaimedMessage",
    "Client",
    "ClientClosed",
    "ClusterStatus",
    "ComputeLost",
    "ComputeTimeout",
    "Conflict",
    "Consumer",
    "Deadlock",
    "DiskFull",
    "DistSyncError",
    "Election",
    "ElectionThread",
    "Fenced",
    "Holder",
    "Latch",
    "Leader",
    "LimitMismatch",
    "LimitReached",
    "LineLost",
    "Lock",
    "LockHeld",
    "LockInfo",
    "LockLost",
    "LockSet",
    "Member",
    "Message",
    "MessageInFlight",
    "MessageInfo",
    "MessageNotFound",
    "Mode",
    "NotFound",
    "NotHolder",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "PeekedMessage",
    "Queue",
    "QueueConfig",
    "QueueFull",
    "QueueNotFound",
    "QueueStats",
    "RedisFull",
    "RedisUnavailable",
    "RefusedItem",
    "RequestIdReused",
    "Schedule",
    "ServerError",
    "Session",
    "SessionLost",
    "SessionNotFound",
    "StaleReceipt",
    "SyncBarrier",
    "SyncCache",
    "SyncConsumer",
    "SyncElection",
    "SyncLatch",
    "SyncLock",
    "SyncLockSet",
    "SyncMessage",
    "SyncQueue",
    "SyncSession",
    "Unauthorized",
    "Unavailable",
    "VersionMismatch",
    "WaitTimeout",
    "Waiter",
]
