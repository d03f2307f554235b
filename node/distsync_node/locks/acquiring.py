"""Commands that take locks or change how they are held: acquire, upgrade, downgrade.

Refusals are checked in the order in which they stand here. All but those for lack of room
(TOO_MANY_...) are remembered under the request's key: whoever lost the reply gets the same answer
from a retry. Lack of room passes, and the client is told to try again with the same key, so those
leave no trace.
"""

from __future__ import annotations

from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Acquire,
    Downgrade,
    Granted,
    LockMode,
    Outcome,
    RefusalCode,
    Refused,
    Upgrade,
    Waiting,
)
from distsync_node.locks.deadlock import find_cycle
from distsync_node.locks.granting import exchange, grant, granted
from distsync_node.locks.lock import LIMIT_UNSET, NO_LIMIT, Lock
from distsync_node.locks.records import HeldGrant, WaitingRequest
from distsync_node.locks.state import LockState


def refuse(
    state: LockState,
    command: Acquire | Upgrade | Downgrade,
    code: RefusalCode,
    name: str,
    cycle: tuple[str, ...] = (),
) -> Refused:
    """Refuse and remember it."""
    refusal = Refused(code=code, name=name, cycle=cycle)
    state.finish(command.key, command.digest, refusal)
    return refusal


# --- Acquire --------------------------------------------------------------------------------


def acquire(state: LockState, command: Acquire) -> Outcome:
    """Grant all locks, or none and wait, or refuse."""
    names = command.names
    if len(names) != 1:
        names = tuple(dict.fromkeys(names))
        if not 1 <= len(names) <= limits.MAX_NAMES_PER_ACQUIRE:
            return Refused(code=RefusalCode.TOO_MANY_LOCKS)
    if command.session is not None:
        session = state.sessions.get(command.session)
        if session is None or session.lease.deadline_ms <= state.stamp_ms:
            return refuse(state, command, RefusalCode.SESSION_NOT_FOUND, names[0])
    limit = _limit_asked_for(command)
    if limit > limits.MAX_SEMAPHORE_LIMIT or limit < LIMIT_UNSET:
        return refuse(state, command, RefusalCode.LIMIT_MISMATCH, names[0])
    known = [lock for name in names if (lock := state.locks.get(name)) is not None]
    if known:
        return _acquire_known(state, command, names, known, limit)
    return _acquire_free(state, command, names, known, limit)


def _limit_asked_for(command: Acquire) -> int:
    if command.limit is None:
        return LIMIT_UNSET if command.mode is LockMode.EXCLUSIVE else NO_LIMIT
    return command.limit if command.limit > 0 else LIMIT_UNSET - 1


def _acquire_free(
    state: LockState, command: Acquire, names: tuple[str, ...], known: list[Lock], limit: int
) -> Granted | Refused:
    """Grant locks none of which is blocked; `known` are those that exist."""
    if (
        len(state.locks) + len(names) - len(known) > limits.MAX_LOCKS
        or state.grant_count + len(names) > limits.MAX_GRANTS
    ):
        return Refused(code=RefusalCode.TOO_MANY_LOCKS)
    outcome = grant(state, command, names)
    _fix_limits(state, names, limit)
    return outcome


def _fix_limits(state: LockState, names: tuple[str, ...], limit: int) -> None:
    if limit != LIMIT_UNSET:
        for name in names:
            state.fix_limit(state.locks[name], limit)


def _acquire_known(
    state: LockState, command: Acquire, names: tuple[str, ...], known: list[Lock], limit: int
) -> Outcome:
    """Acquire where somebody holds, or waits for, at least one of the locks."""
    for lock in known:
        if LIMIT_UNSET not in (lock.limit, limit) and lock.limit != limit:
            return refuse(state, command, RefusalCode.LIMIT_MISMATCH, lock.name)
    waits = command.wait_ms > 0
    for lock in known:
        if _has_stake(state, lock, command.owner):
            if waits:
                cycle = (command.owner,)
                return refuse(state, command, RefusalCode.DEADLOCK, lock.name, cycle)
            return refuse(state, command, RefusalCode.LOCK_HELD, lock.name)
    blocking = next((lock for lock in known if not lock.admits_newcomer(command.mode)), None)
    if blocking is None:
        return _acquire_free(state, command, names, known, limit)
    if not waits:
        return refuse(state, command, RefusalCode.LOCK_HELD, blocking.name)
    return _wait(state, command, names, known, blocking, limit)


def _has_stake(state: LockState, lock: Lock, owner: str) -> bool:
    """Whether the owner holds the lock or waits for it under another request."""
    if lock.grant_of(owner) is not None:
        return True
    waits = state.waits_of.get(owner)
    return waits is not None and any(lock.name in other.names for other in waits.values())


def _wait(
    state: LockState,
    command: Acquire,
    names: tuple[str, ...],
    known: list[Lock],
    blocking: Lock,
    limit: int,
) -> Waiting | Refused:
    if len(state.locks) + len(names) - len(known) > limits.MAX_LOCKS:
        return Refused(code=RefusalCode.TOO_MANY_LOCKS)
    if state.place_count + len(names) > limits.MAX_WAITERS:
        return Refused(code=RefusalCode.TOO_MANY_WAITERS)
    for lock in known:
        if lock.waiter_count >= limits.MAX_WAITERS_PER_LOCK:
            return Refused(code=RefusalCode.TOO_MANY_WAITERS, name=lock.name)
    request = WaitingRequest(
        command.key,
        command.digest,
        state.next_sequence(),
        state.next_attempt(command.key),
        command.owner,
        command.mode,
        names,
        state.stamp_ms + command.wait_ms,
        command.ttl_ms,
        command.session,
    )
    cycle = find_cycle(state, request)
    if cycle is not None:
        return refuse(state, command, RefusalCode.DEADLOCK, blocking.name, cycle)
    state.add_waiting(request)
    _fix_limits(state, names, limit)
    return Waiting(attempt=request.attempt)


# --- Upgrade and downgrade ------------------------------------------------------------------


def upgrade(state: LockState, command: Upgrade) -> Outcome:
    """Exchange a shared grant for an exclusive one, at once if it is the only one."""
    name = command.name
    lock = state.locks.get(name)
    shared = state.find_grant(name, command.owner, command.token)
    if (
        lock is None
        or shared is None
        or shared.mode is not LockMode.SHARED
        or state.lease_deadline_ms(shared) <= state.stamp_ms
    ):
        return refuse(state, command, RefusalCode.NOT_HOLDER, name)
    is_alone = lock.holder_count == 1
    if command.wait_ms <= 0 and not is_alone:
        return refuse(state, command, RefusalCode.LOCK_HELD, name)
    if lock.upgrade is not None and lock.upgrade.owner == command.owner:
        return refuse(state, command, RefusalCode.DEADLOCK, name, (command.owner,))
    request = _upgrade_request(state, command)
    cycle = find_cycle(state, request, upgrading=lock)
    if cycle is not None:
        return refuse(state, command, RefusalCode.DEADLOCK, name, cycle)
    if is_alone:
        return exchange(state, lock, shared, request)
    if state.place_count >= limits.MAX_WAITERS or lock.waiter_count >= limits.MAX_WAITERS_PER_LOCK:
        return Refused(code=RefusalCode.TOO_MANY_WAITERS, name=name)
    state.add_waiting(request)
    return Waiting(attempt=request.attempt)


def _upgrade_request(state: LockState, command: Upgrade) -> WaitingRequest:
    # No session: its wait ends with its shared grant, which a session's end takes along.
    return WaitingRequest(
        command.key,
        command.digest,
        state.next_sequence(),
        state.next_attempt(command.key),
        command.owner,
        LockMode.EXCLUSIVE,
        (command.name,),
        state.stamp_ms + command.wait_ms,
        0,
        None,
        command.token,
    )


def downgrade(state: LockState, command: Downgrade) -> Outcome:
    """Turn an exclusive grant into a shared one under the same token."""
    name = command.name
    lock = state.locks.get(name)
    held = state.find_grant(name, command.owner, command.token)
    if lock is None or held is None or held.mode is not LockMode.EXCLUSIVE:
        return refuse(state, command, RefusalCode.NOT_HOLDER, name)
    shared = HeldGrant(
        held.name,
        held.owner,
        LockMode.SHARED,
        held.token,
        held.deadline_ms,
        held.session,
        held.key,
        held.digest,
    )
    state.replace_grant(lock, held, shared)
    state.fix_limit(lock, NO_LIMIT)
    state.changes[name] = None
    if lock.is_waited_for:
        state.touched[name] = None
    outcome = granted(state, shared)
    state.finish(command.key, command.digest, outcome)
    return outcome
