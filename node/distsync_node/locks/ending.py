"""Commands that end or prolong: release, renew, cancel, expire, and sessions.

Expiry is decided by the leader and carried out here only if it still names the truth: each item of
an Expire holds the deadline the leader saw, and does nothing if another one is in force, or if that
deadline lies after the stamp of the entry. So nothing ends early, whatever an old leader proposed.
A lease past its deadline that no entry has ended yet is still held, and may still be renewed.
"""

from __future__ import annotations

from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Cancel,
    CloseSession,
    Done,
    Expire,
    ExpiredGrant,
    ExpiredSession,
    ExpiredWait,
    FencingToken,
    KeepAlive,
    OpenSession,
    Outcome,
    RefusalCode,
    Refused,
    Release,
    Renew,
)
from distsync_node.locks.granting import leave, lose_request
from distsync_node.locks.lock import Lock
from distsync_node.locks.records import HeldGrant, SessionLease, WaitingRequest
from distsync_node.locks.state import LockState, Session

_DONE = Done()


def end_grant(state: LockState, lock: Lock, held: HeldGrant) -> None:
    """End a grant, and with it the upgrade that waits on the strength of it."""
    state.remove_grant(lock, held)
    lose_request(state, held)
    upgrade = lock.upgrade
    if upgrade is not None and upgrade.owner == held.owner:
        leave(state, upgrade, Refused(code=RefusalCode.LOCK_LOST, name=lock.name))
    state.drop_if_idle(lock)


# --- Grants ---------------------------------------------------------------------------------


def release(state: LockState, command: Release) -> Outcome:
    """End the grant named, or with `force` whatever the administrator names."""
    lock = state.locks.get(command.name)
    ending: list[HeldGrant] = []
    if lock is not None:
        if command.force:
            ending = _forced(lock, command)
        else:
            held = lock.grant_of(command.owner)
            if held is not None and held.token == command.token:
                ending = [held]
    if lock is None or not ending:
        refusal = Refused(code=RefusalCode.NOT_HOLDER, name=command.name)
        state.finish(command.key, command.digest, refusal)
        return refusal
    for held in ending:
        end_grant(state, lock, held)
    state.finish(command.key, command.digest, _DONE)
    return _DONE


def _forced(lock: Lock, command: Release) -> list[HeldGrant]:
    if command.owner == "" and command.token == 0:
        return list(lock.holders())
    return [held for held in lock.holders() if held.token == command.token]


def renew(state: LockState, command: Renew) -> Outcome:
    """Set the deadline of a grant; that of a session-bound grant is its session's."""
    lock = state.locks.get(command.name)
    held = state.find_grant(command.name, command.owner, command.token)
    if lock is None or held is None:
        return Refused(code=RefusalCode.NOT_HOLDER, name=command.name)
    if held.session is not None:
        return Done(deadline_ms=state.lease_deadline_ms(held))
    deadline_ms = state.stamp_ms + command.ttl_ms
    if deadline_ms != held.deadline_ms:
        renewed = HeldGrant(
            held.name,
            held.owner,
            held.mode,
            held.token,
            deadline_ms,
            None,
            held.key,
            held.digest,
        )
        state.replace_grant(lock, held, renewed)
    return Done(deadline_ms=deadline_ms)


# --- Waits and expiry -----------------------------------------------------------------------


def cancel(state: LockState, command: Cancel) -> Outcome:
    """End the wait of a request whose latest attempt is the one named."""
    record = state.requests.get(command.key)
    if isinstance(record, WaitingRequest) and record.attempt == command.attempt:
        leave(state, record, Refused(code=RefusalCode.CANCELLED, name=record.names[0]))
    return _DONE


def expire(state: LockState, command: Expire) -> Outcome:
    """End what is still exactly as named."""
    for grant in command.grants:
        _expire_grant(state, grant)
    for session in command.sessions:
        _expire_session(state, session)
    for wait in command.waits:
        _expire_wait(state, wait)
    return _DONE


def _expire_grant(state: LockState, item: ExpiredGrant) -> None:
    held = state.find_grant(item.name, item.owner, item.token)
    if (
        held is not None
        and held.session is None
        and held.deadline_ms == item.deadline_ms <= state.stamp_ms
    ):
        end_grant(state, state.locks[item.name], held)


def _expire_session(state: LockState, item: ExpiredSession) -> None:
    session = state.sessions.get(item.session)
    if session is not None and session.lease.deadline_ms == item.deadline_ms <= state.stamp_ms:
        end_session(state, session)


def _expire_wait(state: LockState, item: ExpiredWait) -> None:
    record = state.requests.get(item.key)
    if (
        isinstance(record, WaitingRequest)
        and record.deadline_ms == item.deadline_ms <= state.stamp_ms
    ):
        leave(state, record, Refused(code=RefusalCode.WAIT_TIMEOUT, name=record.names[0]))


# --- Sessions -------------------------------------------------------------------------------


def open_session(state: LockState, command: OpenSession) -> Outcome:
    """Open a session under an id that is free."""
    if command.session in state.sessions:
        refusal = Refused(code=RefusalCode.SESSION_EXISTS)
        state.finish(command.key, command.digest, refusal)
        return refusal
    if len(state.sessions) >= limits.MAX_SESSIONS:
        return Refused(code=RefusalCode.TOO_MANY_SESSIONS)
    deadline_ms = state.stamp_ms + command.ttl_ms
    lease = SessionLease(command.session, command.ttl_ms, deadline_ms, command.key, command.digest)
    state.add_session(lease)
    return Done(deadline_ms=deadline_ms, session=command.session)


def keep_alive(state: LockState, command: KeepAlive) -> Outcome:
    """Renew sessions; those that are gone are named in the answer."""
    missing = []
    deadlines_ms = []
    for session_id in command.sessions:
        session = state.sessions.get(session_id)
        if session is None:
            missing.append(session_id)
        else:
            deadlines_ms.append(state.renew_session(session))
    return Done(deadline_ms=min(deadlines_ms, default=0), missing=tuple(missing))


def close_session(state: LockState, command: CloseSession) -> Outcome:
    """End a session, its grants and its waits."""
    session = state.sessions.get(command.session)
    if session is None:
        refusal = Refused(code=RefusalCode.SESSION_NOT_FOUND)
        state.finish(command.key, command.digest, refusal)
        return refusal
    end_session(state, session)
    state.finish(command.key, command.digest, _DONE)
    return _DONE


def end_session(state: LockState, session: Session) -> None:
    """End a session's waits, then its grants, each in the order in which they came."""
    gone = RefusalCode.SESSION_NOT_FOUND
    for sequence in sorted(session.waits):
        request = session.waits[sequence]
        leave(state, request, Refused(code=gone, name=request.names[0]))
    tokens: list[FencingToken] = sorted(session.grants)
    for token in tokens:
        held = session.grants[token]  # looked up anew: the end of one may change another
        end_grant(state, state.locks[held.name], held)
    state.remove_session(session)
    state.finish(session.lease.key, session.lease.digest, Refused(code=gone))
