"""Who gets in, and when.

`settle` grants every waiting request that nothing blocks any more (`lock.py` has the rule), lock by
lock in the order in which they were touched. Granting one request never blocks another that was
not blocked, so the set of those granted does not depend on that order.

A request that would be granted after its time leaves instead. Its time is over when, at the stamp
of the entry, its wait deadline has passed (WAIT_TIMEOUT), its session's deadline has passed
(SESSION_NOT_FOUND), or, for an upgrade, the lease of its shared grant has (LOCK_LOST). The entry
that ends that lease may still be on its way; nothing is granted on the strength of it.
"""

from __future__ import annotations

from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import (
    Acquire,
    Grant,
    Granted,
    LockMode,
    Notice,
    RefusalCode,
    Refused,
)
from distsync_node.locks.lock import Lock
from distsync_node.locks.records import HeldGrant, WaitingRequest
from distsync_node.locks.state import LockState

_LOST = Refused(code=RefusalCode.LOCK_LOST)


def grant(state: LockState, request: Acquire | WaitingRequest, names: tuple[str, ...]) -> Granted:
    """Give the owner all locks of `names`, which must not be blocked, each under a new token."""
    session = request.session
    own_deadline_ms = state.stamp_ms + request.ttl_ms if session is None else 0
    held = []
    for name in names:
        one = HeldGrant(
            name,
            request.owner,
            request.mode,
            state.next_token(),
            own_deadline_ms,
            session,
            request.key,
            request.digest,
        )
        state.add_grant(state.lock_for(name), one)
        held.append(one)
    state.record(request.key, held[0] if len(held) == 1 else tuple(held))
    return Granted(
        owner=request.owner,
        mode=request.mode,
        grants=tuple([Grant(one.name, one.token) for one in held]),
        deadline_ms=state.lease_deadline_ms(held[0]),
    )


def exchange(state: LockState, lock: Lock, shared: HeldGrant, request: WaitingRequest) -> Granted:
    """Turn the only grant of a lock into an exclusive one under a new token."""
    state.remove_grant(lock, shared)
    lose_request(state, shared)
    exclusive = HeldGrant(
        shared.name,
        shared.owner,
        LockMode.EXCLUSIVE,
        state.next_token(),
        shared.deadline_ms,
        shared.session,
        request.key,
        request.digest,
    )
    state.add_grant(lock, exclusive)
    state.record(request.key, exclusive)
    return granted(state, exclusive)


def lose_request(state: LockState, ended: HeldGrant) -> None:
    """From now on the request that got this grant is answered LOCK_LOST."""
    if ended.key is None:
        return
    record = state.requests[ended.key]
    name = ""
    if isinstance(record, tuple):
        name = ended.name  # which of them it was; with one lock the caller knows
        for other in record:
            if other.token != ended.token:
                _orphan(state, other)
    lost = Refused(code=RefusalCode.LOCK_LOST, name=name) if name else _LOST
    state.finish(ended.key, ended.digest, lost)


def _orphan(state: LockState, grant_as_entered: HeldGrant) -> None:
    lock = state.locks[grant_as_entered.name]
    current = lock.grant_of(grant_as_entered.owner)
    if current is None:
        raise InvariantViolation(f"grant {grant_as_entered.token} is recorded but not held")
    state.replace_grant(lock, current, _without_key(current))


def _without_key(held: HeldGrant) -> HeldGrant:
    return HeldGrant(
        held.name,
        held.owner,
        held.mode,
        held.token,
        held.deadline_ms,
        held.session,
        None,
        held.digest,
    )


def granted(state: LockState, *held: HeldGrant) -> Granted:
    """Describe grants as they are now: the weakest mode and the earliest deadline of them."""
    return Granted(
        owner=held[0].owner,
        mode=max(one.mode for one in held),
        grants=tuple(Grant(one.name, one.token) for one in held),
        deadline_ms=min(state.lease_deadline_ms(one) for one in held),
    )


def leave(state: LockState, request: WaitingRequest, refusal: Refused) -> None:
    """End a wait without a grant."""
    current = state.remove_waiting(request)
    if current.mode is LockMode.SHARED:
        for name in current.names:
            state.free_limit(state.locks[name])
    state.finish(current.key, current.digest, refusal, current.attempt)
    state.notices.append(Notice(current.key, current.attempt, refusal))


def settle(state: LockState) -> None:
    """Grant whatever can be granted after the locks in `state.touched` have changed."""
    while state.touched:
        batch, state.touched = state.touched, {}
        for name in batch:
            lock = state.locks.get(name)
            if lock is not None:
                _settle_lock(state, lock)
                state.drop_if_idle(lock)


def _settle_lock(state: LockState, lock: Lock) -> None:
    if lock.upgrade is not None:
        _settle_upgrade(state, lock, lock.upgrade)
    for request in lock.admissible():
        if len(request.names) > 1 and not _is_admitted(state, request):
            continue
        refusal = _overdue(state, request)
        if refusal is not None:
            leave(state, request, refusal)
        else:
            current = state.remove_waiting(request)
            outcome = grant(state, current, current.names)
            state.notices.append(Notice(current.key, current.attempt, outcome))


def _is_admitted(state: LockState, request: WaitingRequest) -> bool:
    return all(state.locks[name].admits(request) for name in request.names)


def _overdue(state: LockState, request: WaitingRequest) -> Refused | None:
    session_id = request.session
    name = request.names[0]
    if session_id is not None and state.sessions[session_id].lease.deadline_ms <= state.stamp_ms:
        return Refused(code=RefusalCode.SESSION_NOT_FOUND, name=name)
    if request.deadline_ms <= state.stamp_ms:
        return Refused(code=RefusalCode.WAIT_TIMEOUT, name=name)
    return None


def _settle_upgrade(state: LockState, lock: Lock, request: WaitingRequest) -> None:
    shared = lock.grant_of(request.owner)
    if shared is None:
        raise InvariantViolation(f"the upgrade of {lock.name} has outlived its grant")
    if lock.holder_count > 1:
        return
    if state.lease_deadline_ms(shared) <= state.stamp_ms:
        leave(state, request, Refused(code=RefusalCode.LOCK_LOST, name=lock.name))
    elif request.deadline_ms <= state.stamp_ms:
        leave(state, request, Refused(code=RefusalCode.WAIT_TIMEOUT, name=lock.name))
    else:
        current = state.remove_waiting(request)
        outcome = exchange(state, lock, shared, current)
        state.notices.append(Notice(current.key, current.attempt, outcome))
