"""Read models: what the API shows of locks.

A view is a copy; it does not change with the state. Lists in it are bounded by MAX_SHOWN, the
counts beside them are not.
"""

from __future__ import annotations

import heapq
from itertools import islice

import msgspec

from distsync_node.locks.commands import FencingToken, LockMode, SessionId
from distsync_node.locks.lock import Lock
from distsync_node.locks.state import LockState

MAX_SHOWN = 1_000


class HolderView(msgspec.Struct, frozen=True, gc=False):
    """One holder of a lock; the deadline (leader time) is that of its session if it has one."""

    owner: str
    mode: LockMode
    token: FencingToken
    deadline_ms: int
    session: SessionId | None


class WaiterView(msgspec.Struct, frozen=True, gc=False):
    """One waiting request; the first in line has position 1. An upgrade is always first."""

    owner: str
    mode: LockMode
    position: int
    deadline_ms: int
    upgrade: bool


class LockView(msgspec.Struct, frozen=True):
    """A lock that is held or waited for. `limit` is that of a semaphore."""

    name: str
    limit: int | None
    holder_count: int
    waiter_count: int
    holders: tuple[HolderView, ...]  # by token
    waiters: tuple[WaiterView, ...]  # in the order in which they are served


class Counts(msgspec.Struct, frozen=True):
    """How much of everything there is; `places` are places in queues."""

    locks: int
    grants: int
    waiting_requests: int
    places: int
    sessions: int
    requests: int
    finished_requests: int


def view_lock(state: LockState, name: str) -> LockView | None:
    """Return a lock, or None."""
    lock = state.locks.get(name)
    return None if lock is None else _view(state, lock)


def view_locks(state: LockState, prefix: str, after: str, limit: int) -> list[LockView]:
    """Return up to `limit` locks by name."""
    names = (name for name in state.locks if name > after and name.startswith(prefix))
    return [_view(state, state.locks[name]) for name in heapq.nsmallest(limit, names)]


def _view(state: LockState, lock: Lock) -> LockView:
    holders = [
        HolderView(held.owner, held.mode, held.token, state.lease_deadline_ms(held), held.session)
        for held in islice(lock.holders(), MAX_SHOWN)
    ]
    waiters = [
        WaiterView(
            request.owner,
            request.mode,
            position,
            request.deadline_ms,
            request.upgrade_token is not None,
        )
        for position, request in enumerate(islice(lock.waiters(), MAX_SHOWN), start=1)
    ]
    return LockView(
        name=lock.name,
        limit=lock.limit if lock.limit > 0 else None,
        holder_count=lock.holder_count,
        waiter_count=lock.waiter_count,
        holders=tuple(holders),
        waiters=tuple(waiters),
    )


def count_state(state: LockState) -> Counts:
    """Count."""
    return Counts(
        locks=len(state.locks),
        grants=state.grant_count,
        waiting_requests=sum(len(waits) for waits in state.waits_of.values()),
        places=state.place_count,
        sessions=len(state.sessions),
        requests=len(state.requests),
        finished_requests=state.finished_count,
    )
