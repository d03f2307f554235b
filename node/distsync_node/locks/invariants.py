"""What must hold between any two commands, checked from scratch.

Nothing here trusts an index: every one is compared with what the items say. It costs as much as the
state is large, so it is for tests and simulators.
"""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from distsync_node.errors import InvariantViolation
from distsync_node.locks import limits
from distsync_node.locks.commands import FencingToken, LockMode, SessionId
from distsync_node.locks.deadlock import find_any_cycle
from distsync_node.locks.hashing import StateHash
from distsync_node.locks.lock import LIMIT_UNSET, Lock
from distsync_node.locks.records import (
    FinishedRequest,
    HeldGrant,
    Item,
    LockLimit,
    RequestRecord,
    SessionLease,
    WaitingRequest,
)
from distsync_node.locks.snapshot import waiting_requests
from distsync_node.locks.state import LockState


def check_state(state: LockState) -> None:
    """Raise InvariantViolation if anything that must hold does not."""
    for name, lock in state.locks.items():
        _check_lock(state, name, lock)
    waiting = waiting_requests(state)
    _check_owners(state, waiting)
    _check_waiting(state, waiting)
    _check_sessions(state, waiting)
    _check_requests(state)
    _check_counters(state, waiting)
    _check_hash(state, waiting)
    if state.touched:
        _fail("a lock was touched and not settled")
    cycle = find_any_cycle(state)
    if cycle is not None:
        _fail(f"owners wait in a circle: {cycle}")


def _fail(what: str) -> NoReturn:
    raise InvariantViolation(what)


def _check_lock(state: LockState, name: str, lock: Lock) -> None:
    holders = list(lock.holders())
    if lock.name != name or lock.is_idle:
        _fail(f"lock {name} is idle or filed under another name")
    if lock.exclusive is not None and lock.shared is not None:
        _fail(f"lock {name} is held both ways")
    if lock.limit > 0 and len(holders) > lock.limit:
        _fail(f"lock {name} has {len(holders)} holders with a limit of {lock.limit}")
    if lock.shared is not None and lock.limit == LIMIT_UNSET:
        _fail(f"lock {name} is shared and its limit not fixed")
    tokens = [held.token for held in holders]
    if tokens != sorted(set(tokens)) or any(not 0 < token <= state.token for token in tokens):
        _fail(f"lock {name} has tokens {tokens}")
    for held in holders:
        wants = LockMode.SHARED if lock.exclusive is None else LockMode.EXCLUSIVE
        if held.name != name or held.mode is not wants:
            _fail(f"lock {name} holds a foreign grant {held}")
    _check_queue(state, lock)


def _check_queue(state: LockState, lock: Lock) -> None:
    queue = [] if lock.queue is None else list(lock.queue.values())
    if [one.sequence for one in queue] != sorted({one.sequence for one in queue}):
        _fail(f"lock {lock.name} has a queue out of order")
    if lock.exclusive_waiters != sum(one.mode is LockMode.EXCLUSIVE for one in queue):
        _fail(f"lock {lock.name} miscounts its writers")
    for request in lock.waiters():
        if state.find_waiting(request) is None or lock.name not in request.names:
            _fail(f"lock {lock.name} queues {request}, which does not wait for it")
    if lock.upgrade is not None:
        shared = None if lock.shared is None else lock.shared.get(lock.upgrade.owner)
        if shared is None or shared.token != lock.upgrade.upgrade_token:
            _fail(f"lock {lock.name} has an upgrade without its grant")
        if lock.holder_count == 1:
            _fail(f"lock {lock.name} has an upgrade that could be granted")
    stakes = Counter([held.owner for held in lock.holders()] + [one.owner for one in queue])
    if any(count > 1 for count in stakes.values()):
        _fail(f"lock {lock.name} has an owner with two stakes")


def _check_owners(state: LockState, waiting: list[WaitingRequest]) -> None:
    names_of: dict[str, set[str]] = {}
    for lock in state.locks.values():
        for held in lock.holders():
            names_of.setdefault(held.owner, set()).add(lock.name)
    if {owner: set(state.names_held(owner)) for owner in state.names_of} != names_of:
        _fail("the index of owners does not match the grants")
    waits_of: dict[str, list[int]] = {}
    for request in waiting:
        waits_of.setdefault(request.owner, []).append(request.sequence)
    if {owner: list(waits) for owner, waits in state.waits_of.items()} != waits_of:
        _fail("the index of waiting owners does not match the requests")


def _check_waiting(state: LockState, waiting: list[WaitingRequest]) -> None:
    for request in waiting:
        locks = [state.locks.get(name) for name in request.names]
        if request.upgrade_token is not None:
            if locks[0] is None or locks[0].upgrade is None:
                _fail(f"upgrade {request} is not at its lock")
            continue
        if any(
            lock is None or lock.queue is None or request.sequence not in lock.queue
            for lock in locks
        ):
            _fail(f"request {request} is missing in a queue")
        if all(lock is not None and lock.admits(request) for lock in locks):
            _fail(f"request {request} waits for nothing")


def _check_sessions(state: LockState, waiting: list[WaitingRequest]) -> None:
    grants: dict[SessionId, dict[FencingToken, HeldGrant]] = {}
    for lock in state.locks.values():
        for grant in lock.holders():
            if grant.session is not None:
                grants.setdefault(grant.session, {})[grant.token] = grant
    waits: dict[SessionId, set[int]] = {}
    for request in waiting:
        if request.session is not None:
            waits.setdefault(request.session, set()).add(request.sequence)
    if not (grants.keys() | waits.keys()) <= state.sessions.keys():
        _fail("a grant or a wait has outlived its session")
    for session_id, session in state.sessions.items():
        if (
            session.lease.id != session_id
            or session.grants != grants.get(session_id, {})
            or set(session.waits) != waits.get(session_id, set())
        ):
            _fail(f"session {session_id} does not match what depends on it")


def _check_requests(state: LockState) -> None:
    held_keys = {
        held.token: held.key
        for lock in state.locks.values()
        for held in lock.holders()
        if held.key is not None
    }
    for key, record in state.requests.items():
        for held in _grants_of(record):
            if held_keys.pop(held.token, None) != key:
                _fail(f"request {key} is recorded as holding {held.token}")
        if isinstance(record, WaitingRequest | FinishedRequest | SessionLease):
            if record.key != key:
                _fail(f"request {key} is filed under another key")
            if isinstance(record, SessionLease) and record.id not in state.sessions:
                _fail(f"request {key} opened a session that is gone")
    if held_keys:
        _fail(f"grants {sorted(held_keys)} belong to requests that do not know them")
    live = [end for end in state.finished if state.requests.get(end.key) is end]
    ends = [one for one in state.requests.values() if isinstance(one, FinishedRequest)]
    if len(live) != len(ends) or len(live) != state.finished_count:
        _fail("finished requests are miscounted")
    if [end.sequence for end in live] != sorted(end.sequence for end in ends):
        _fail("finished requests are out of order")
    if len(live) > limits.MAX_REQUESTS_REMEMBERED:
        _fail("too many requests are remembered")


def _grants_of(record: RequestRecord) -> tuple[HeldGrant, ...]:
    if isinstance(record, tuple):
        return record
    return (record,) if isinstance(record, HeldGrant) else ()


def _check_counters(state: LockState, waiting: list[WaitingRequest]) -> None:
    if state.grant_count != sum(lock.holder_count for lock in state.locks.values()):
        _fail("grants are miscounted")
    places = sum(lock.waiter_count for lock in state.locks.values())
    if state.place_count != places or places != sum(len(one.names) for one in waiting):
        _fail("places in queues are miscounted")


def _check_hash(state: LockState, waiting: list[WaitingRequest]) -> None:
    items: list[Item] = [session.lease for session in state.sessions.values()]
    for lock in state.locks.values():
        items.extend(lock.holders())
        if lock.limit != LIMIT_UNSET:
            items.append(LockLimit(lock.name, lock.limit))
    items.extend(waiting)
    items.extend(one for one in state.requests.values() if isinstance(one, FinishedRequest))
    fresh = StateHash()
    for item in items:
        fresh.add(item)
    if fresh.value(state.counters()) != state.hash.value(state.counters()):
        _fail("the state hash is not that of the state")
