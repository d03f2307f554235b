"""The lock state machine: what every replica does with a committed command.

It guarantees, for any log of commands with stamps that do not go back:

  - a lock has one exclusive holder, or shared holders up to its limit, or none;
  - every grant has a token of its own from one counter, higher than all before it;
  - waiting requests that conflict are served first come, first served, and no request waits that
    nothing blocks;
  - nothing ends before its deadline, and nothing is granted on a lease or a wait that is over;
  - owners that wait never form a cycle;
  - a request sent again is not done again (`repeats.py`);
  - state, outcomes and notices depend on the log alone: there is no clock, no randomness and no
    order of hashes in here, and a machine restored from a snapshot goes on like the one it
    was taken from.

The rules are those of DistSync's design, section 3; fencing tokens and why leases need them: M.
Kleppmann, "How to do distributed locking" (2016); the wait-for graph: Coffman et al., "System
Deadlocks" (1971).

    commands.py   what comes in and goes out     limits.py     bounds, part of the behaviour
    records.py    the items of the state         state.py      tables and indexes over them
    lock.py       one lock, who may enter        granting.py   who gets in
    acquiring.py  acquire, upgrade, downgrade    ending.py     release, renew, expire, sessions
    repeats.py    retries                        deadlock.py   cycles
    deadlines.py  heaps                          hashing.py    the state hash
    snapshot.py   encode and restore             views.py      read models
    fencing.py    the check of a token           invariants.py what must hold, checked anew
"""

from __future__ import annotations

from typing import assert_never

from distsync_node.errors import InvariantViolation
from distsync_node.locks import limits
from distsync_node.locks.acquiring import acquire, downgrade, upgrade
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Done,
    Downgrade,
    Expire,
    ExpiredGrant,
    ExpiredSession,
    ExpiredWait,
    FencingToken,
    KeepAlive,
    LockCommand,
    LockMode,
    Notice,
    OpenSession,
    Outcome,
    RaiseTokens,
    Release,
    Renew,
    SessionId,
    Upgrade,
)
from distsync_node.locks.ending import (
    cancel,
    close_session,
    expire,
    keep_alive,
    open_session,
    release,
    renew,
)
from distsync_node.locks.granting import settle
from distsync_node.locks.invariants import check_state
from distsync_node.locks.repeats import KeyedCommand, answer_repeat
from distsync_node.locks.snapshot import decode_state, encode_state
from distsync_node.locks.state import LockState
from distsync_node.locks.views import (
    Counts,
    LockView,
    count_state,
    view_lock,
    view_locks,
)


class LockMachine:
    """The state of all locks. Feed it commands; take notices and changes after each."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = LockState()

    # --- Commands -------------------------------------------------------------------------

    def apply(self, command: LockCommand, stamp_ms: int) -> Outcome:
        """Apply one committed command under the stamp (leader time) of its log entry.

        Raises:
            InvariantViolation: the stamp went back, or the fencing tokens are used up.
        """
        state = self._state
        if stamp_ms != state.stamp_ms:
            if stamp_ms < state.stamp_ms:
                raise InvariantViolation(
                    f"leader time went back from {state.stamp_ms} to {stamp_ms} ms"
                )
            state.stamp_ms = stamp_ms
            if state.finished:
                state.forget_before(stamp_ms - limits.REQUEST_MEMORY_MS)
        outcome = self._step(state, command)
        if state.touched:
            settle(state)
        state.hash.keep_bounded()
        return outcome

    def _step(self, state: LockState, command: LockCommand) -> Outcome:
        match command:
            case Renew():
                return renew(state, command)
            case KeepAlive():
                return keep_alive(state, command)
            case Expire():
                return expire(state, command)
            case Cancel():
                return cancel(state, command)
            case RaiseTokens():
                self.raise_tokens(command.above)
                return Done()
            case _:
                record = state.requests.get(command.key)
                if record is not None:
                    answer = answer_repeat(state, command, record)
                    if answer is not None:
                        return answer
                return self._step_keyed(state, command)

    def _step_keyed(self, state: LockState, command: KeyedCommand) -> Outcome:
        match command:
            case Acquire():
                return acquire(state, command)
            case Release():
                return release(state, command)
            case Upgrade():
                return upgrade(state, command)
            case Downgrade():
                return downgrade(state, command)
            case OpenSession():
                return open_session(state, command)
            case CloseSession():
                return close_session(state, command)
            case _:
                assert_never(command)

    def take_notices(self) -> list[Notice]:
        """Return the final outcomes of waiting requests since the last call, in order."""
        notices, self._state.notices = self._state.notices, []
        return notices

    def take_changes(self) -> list[str]:
        """Return the locks whose holders, modes or waiters changed since the last call, in order.

        A renewal is not a change. Take them after each entry: they are kept until then.
        """
        changes, self._state.changes = self._state.changes, {}
        return list(changes)

    # --- For the leader -------------------------------------------------------------------

    def due(self, now_ms: int, limit: int = limits.MAX_EXPIRIES_PER_ENTRY) -> Expire | None:
        """Return what a leader should propose at leader time `now_ms`, or None.

        What it names stays due until it has ended, so ask again only after it was applied.
        """
        state = self._state
        sessions = state.session_deadlines.due(now_ms, limit)
        limit -= len(sessions)
        grants = state.grant_deadlines.due(now_ms, limit)
        limit -= len(grants)
        waits = state.wait_deadlines.due(now_ms, limit)
        if not (sessions or grants or waits):
            return None
        return Expire(
            sessions=tuple([ExpiredSession(one.id, at_ms) for at_ms, one in sessions]),
            grants=tuple(
                [ExpiredGrant(one.name, one.owner, one.token, at_ms) for at_ms, one in grants]
            ),
            waits=tuple([ExpiredWait(one.key, at_ms) for at_ms, one in waits]),
        )

    def next_deadline_ms(self) -> int | None:
        """Return the earliest deadline of any grant, session or wait."""
        state = self._state
        heaps = (state.grant_deadlines, state.session_deadlines, state.wait_deadlines)
        return min((at_ms for heap in heaps if (at_ms := heap.next_ms()) is not None), default=None)

    @property
    def has_leases(self) -> bool:
        """Whether anything has a deadline, so that leader time must be kept committed."""
        state = self._state
        return bool(state.grant_count or state.sessions or state.waits_of)

    # --- Whole state ----------------------------------------------------------------------

    @property
    def stamp_ms(self) -> int:
        """The stamp of the last command applied."""
        return self._state.stamp_ms

    @property
    def last_token(self) -> FencingToken:
        """The highest fencing token issued (or skipped) so far."""
        return FencingToken(self._state.token)

    def raise_tokens(self, minimum: int) -> None:
        """Make every token issued from now on higher than `minimum`; never back."""
        if minimum > limits.MAX_TOKEN:
            raise InvariantViolation(f"fencing tokens cannot be raised to {minimum}")
        self._state.token = max(self._state.token, minimum)

    def snapshot(self) -> bytes:
        """Encode the whole state. Notices and changes not taken yet are not part of it."""
        return encode_state(self._state)

    @classmethod
    def restore(cls, data: bytes) -> LockMachine:
        """Return a machine that goes on where the one that made the snapshot was.

        Raises:
            InvariantViolation: the data is not a snapshot, or not of the state it claims to be.
        """
        machine = cls()
        machine._state = decode_state(data)
        return machine

    def state_hash(self) -> int:
        """Return a 64-bit hash of the state; equal states have equal hashes."""
        return self._state.hash.value(self._state.counters())

    def check_invariants(self) -> None:
        """Check everything that must hold, from scratch. For tests and simulators.

        Raises:
            InvariantViolation: what is broken.
        """
        check_state(self._state)

    # --- Reading --------------------------------------------------------------------------

    def lock_view(self, name: str) -> LockView | None:
        """Return a lock with its holders and waiters, or None if nobody holds or wants it."""
        return view_lock(self._state, name)

    def lock_views(self, prefix: str = "", after: str = "", limit: int = 100) -> list[LockView]:
        """Return up to `limit` locks under a prefix, by name, those after `after`."""
        return view_locks(self._state, prefix, after, limit)

    def session_deadline_ms(self, session: SessionId) -> int | None:
        """Return when an open session ends (leader time), or None if none is open."""
        found = self._state.sessions.get(session)
        return None if found is None else found.lease.deadline_ms

    def counts(self) -> Counts:
        """Return how much of everything there is."""
        return count_state(self._state)

    def mode_of_token(self, name: str, token: int) -> LockMode | None:
        """Return how a lock is held under a token, or None if it is not."""
        lock = self._state.locks.get(name)
        if lock is None:
            return None
        return next((held.mode for held in lock.holders() if held.token == token), None)
