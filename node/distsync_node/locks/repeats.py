"""Answers to a request whose key came before.

    still waiting      the attach is counted and waits along: Waiting with the new attempt
    granted, all held  the same grants with the deadline (and mode) they have now
    granted, any ended LOCK_LOST
    session open       Done with its deadline now, and the id it was opened under
    session ended      SESSION_NOT_FOUND
    cancelled          asked anew, under an attempt number above the cancelled one
    else               the remembered outcome: released again, refused again
    other digest       REQUEST_ID_REUSED, whatever is remembered

A cancel names the attempt whose connection is gone. If the next attach was committed before it, the
request waits under a higher number and the cancel does nothing; if after it, the attach starts
the wait anew. Either way the client that retried through another node waits on.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import (
    Acquire,
    CloseSession,
    Done,
    Downgrade,
    Granted,
    OpenSession,
    Outcome,
    RefusalCode,
    Refused,
    Release,
    Upgrade,
    Waiting,
)
from distsync_node.locks.granting import granted
from distsync_node.locks.records import (
    FinishedRequest,
    HeldGrant,
    RequestRecord,
    SessionLease,
    WaitingRequest,
)
from distsync_node.locks.state import LockState

KeyedCommand: TypeAlias = Acquire | Upgrade | Downgrade | Release | OpenSession | CloseSession


def answer_repeat(state: LockState, command: KeyedCommand, record: RequestRecord) -> Outcome | None:
    """Answer from what is remembered, or return None if the command is to be applied anew."""
    digest = record[0].digest if isinstance(record, tuple) else record.digest
    if digest != command.digest:
        return Refused(code=RefusalCode.REQUEST_ID_REUSED)
    match record:
        case WaitingRequest():
            return Waiting(attempt=state.count_attach(record))
        case HeldGrant():
            return granted(state, _current(state, record))
        case tuple():
            return granted(state, *(_current(state, one) for one in record))
        case SessionLease():
            deadline_ms = state.sessions[record.id].lease.deadline_ms
            return Done(deadline_ms=deadline_ms, session=record.id)
        case FinishedRequest():
            return _answer_finished(state, command, record)
        case _:
            assert_never(record)


def _current(state: LockState, recorded: HeldGrant) -> HeldGrant:
    current = state.find_grant(recorded.name, recorded.owner, recorded.token)
    if current is None:
        raise InvariantViolation(f"grant {recorded.token} is recorded but not held")
    return current


def _answer_finished(
    state: LockState, command: KeyedCommand, record: FinishedRequest
) -> Outcome | None:
    outcome = record.outcome
    match outcome:
        case Refused(code=RefusalCode.CANCELLED):
            return None
        case Refused(code=RefusalCode.LOCK_LOST, name="") if isinstance(command, Acquire):
            return Refused(code=RefusalCode.LOCK_LOST, name=command.names[0])
        case Granted():
            one = outcome.grants[0]
            held = state.find_grant(one.name, outcome.owner, one.token)
            if held is None:
                return Refused(code=RefusalCode.LOCK_LOST, name=one.name)
            return granted(state, held)
        case _:
            return outcome
