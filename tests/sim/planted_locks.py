"""Bugs in leases, requests and locks."""

from __future__ import annotations

from typing import Any

import msgspec

from distsync_node.cluster import leases
from distsync_node.locks import acquiring, ending, granting, machine, repeats, snapshot
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    RefusalCode,
    Refused,
    Release,
    Waiting,
)
from distsync_node.locks.lock import Lock
from distsync_node.locks.machine import LockMachine
from distsync_node.locks.records import WaitingRequest
from distsync_node.raft import leader
from distsync_node.raft.types import Role
from distsync_node.replica.clock import LeaderClock
from distsync_node.replica.participant import Participant
from distsync_node.replica.types import RejectReason
from sim.planting import mutant, put

# --- Leader time and leases -----------------------------------------------------------------------


@mutant("leader time is the local clock of whoever leads")
def leader_time_is_local() -> None:
    put(LeaderClock, "read", lambda self, now_ms: max(self.floor_ms, now_ms))


@mutant("a new leader prefers its own older reading of the time to the last stamp")
def successor_trusts_itself() -> None:
    applied = LeaderClock.applied

    def trusting(self: LeaderClock, index: int, stamp_ms: int) -> None:
        arrivals = list(self._arrivals)
        at_ms = max((at for first, at in arrivals if first <= index), default=0)
        own_ms = self._anchor_stamp_ms + at_ms - self._anchor_at_ms
        applied(self, index, max(stamp_ms, own_ms))

    put(LeaderClock, "applied", trusting)


@mutant("leader time stands still between two commits", "clocks")
def time_is_the_last_stamp() -> None:
    put(LeaderClock, "read", lambda self, _now_ms: self.floor_ms)


@mutant("an expiry ends a grant whatever its deadline is by now")
def expiry_ignores_renewal() -> None:
    def _expire_grant(state: Any, item: Any) -> None:
        held = state.find_grant(item.name, item.owner, item.token)
        if held is not None and held.session is None:
            ending.end_grant(state, state.locks[item.name], held)

    put(ending, "_expire_grant", _expire_grant)


@mutant("the leader proposes expiries a second early")
def expiry_early() -> None:
    due = machine.LockMachine.due
    put(
        machine.LockMachine,
        "due",
        lambda self, now_ms, *rest: due(self, now_ms + 1_000, *rest),
    )
    put(ending, "_expire_grant", _expire_early)


def _expire_early(state: Any, item: Any) -> None:
    held = state.find_grant(item.name, item.owner, item.token)
    if held is not None and held.session is None and held.deadline_ms == item.deadline_ms:
        ending.end_grant(state, state.locks[item.name], held)


@mutant("a waiter is granted after it gave up", "disk")
def waiter_granted_late() -> None:
    put(granting, "_overdue", lambda _state, _request: None)


@mutant("the grants of a session outlive it")
def session_leaves_grants() -> None:
    def end_session(state: Any, session: Any) -> None:
        for sequence in sorted(session.waits):
            request = session.waits[sequence]
            granting.leave(
                state,
                request,
                granting.Refused(code=granting.RefusalCode.SESSION_NOT_FOUND),
            )
        state.remove_session(session)

    put(ending, "end_session", end_session)


@mutant("a new leader takes nodes out of the ring before earlier leases have ended")
def takeover_without_waiting() -> None:
    put(leases.LeaseOptions, "takeover_ms", property(lambda _self: 0))


@mutant("a node that leaves the ring keeps its lease until that ends", "clocks")
def lease_kept_on_leaving() -> None:
    def leave(self: leases.LeaseHolder) -> None:
        self.is_leaving = True

    put(leases.LeaseHolder, "leave", leave)


@mutant("node leases are granted on old contact to a quorum")
def lease_without_fresh_contact() -> None:
    request = leases.LeaseTable.request

    def judge(self: Any, message: Any, ring: Any, *, now_ms: int, **_: Any) -> Any:
        return request(self, message, ring, now_ms=now_ms, quorum_contact_ms=now_ms)

    put(leases.LeaseTable, "request", judge)
    put(leader.Leader, "has_quorum", lambda _self: True)


# --- Requests -------------------------------------------------------------------------------------


@mutant("the cancel of an earlier attempt ends the wait of a later one")
def cancel_ignores_attempt() -> None:
    def cancel(state: Any, command: Cancel) -> Any:
        record = state.requests.get(command.key)
        if isinstance(record, WaitingRequest):
            command = Cancel(key=command.key, attempt=record.attempt)
        return ending.cancel(state, command)

    put(machine, "cancel", cancel)


@mutant("a release ends whatever grant its lock has")
def release_ignores_token() -> None:
    def release(state: Any, command: Release) -> Any:
        lock = state.locks.get(command.name)
        held = next(iter(lock.holders()), None) if lock is not None else None
        if held is not None:
            command = msgspec.structs.replace(command, owner=held.owner, token=held.token)
        return ending.release(state, command)

    put(machine, "release", release)


@mutant("an outcome is answered when its entry is proposed")
def answered_before_commit() -> None:
    accepted = Participant._accepted

    def _accepted(self: Participant, effect: Any) -> None:
        batch = self._proposing
        accepted(self, effect)
        if effect.ref or batch is None:
            return
        guess = LockMachine.restore(self.machine.snapshot())
        for command, ref in zip(batch.commands, batch.refs, strict=True):
            if not hasattr(command, "server") and not hasattr(command, "incarnation"):
                outcome = guess.apply(command, max(guess.stamp_ms, self.clock.floor_ms))
                if ref and not isinstance(outcome, Waiting):
                    self._reply(ref, outcome)

    put(Participant, "_accepted", _accepted)


@mutant("what was proposed is said not to have been")
def unknown_called_undone() -> None:
    reject = Participant._reject

    def _reject(self: Participant, ref: int, reason: RejectReason) -> None:
        lost = reason is RejectReason.LEADERSHIP_LOST
        reject(self, ref, RejectReason.NOT_LEADER if lost else reason)

    put(Participant, "_reject", _reject)


@mutant("a retried acquire whose grant has ended acquires anew")
def ended_grant_granted_again() -> None:
    answer = repeats._answer_finished

    def _answer_finished(state: Any, command: Any, record: Any) -> Any:
        outcome = answer(state, command, record)
        lost = isinstance(outcome, Refused) and outcome.code is RefusalCode.LOCK_LOST
        return None if lost and isinstance(command, Acquire) else outcome

    put(repeats, "_answer_finished", _answer_finished)


@mutant("retries are not recognised")
def retries_forgotten() -> None:
    put(machine, "answer_repeat", lambda _state, _command, _record: None)


@mutant("finished requests are not in the snapshot", "snapshots")
def requests_not_in_snapshot() -> None:
    build = snapshot._build

    def _build(image: Any) -> Any:
        return build(msgspec.structs.replace(image, finished=[]))

    def decode_state(data: bytes) -> Any:
        return _build(snapshot._decoder.decode(data))

    put(machine, "decode_state", decode_state)


@mutant("the token counter is not in the snapshot", "snapshots")
def tokens_not_in_snapshot() -> None:
    def decode_state(data: bytes) -> Any:
        state = snapshot._build(snapshot._decoder.decode(data))
        state.token = max(
            (grant.token for lock in state.locks.values() for grant in lock.holders()), default=0
        )
        return state

    put(machine, "decode_state", decode_state)


# --- Granting -------------------------------------------------------------------------------------


@mutant("readers overtake waiting writers")
def readers_overtake() -> None:
    admits = Lock.admits_newcomer

    def admits_newcomer(self: Lock, mode: Any) -> bool:
        waiting, self.exclusive_waiters = self.exclusive_waiters, 0
        try:
            return admits(self, mode)
        finally:
            self.exclusive_waiters = waiting

    put(Lock, "admits_newcomer", admits_newcomer)


@mutant("a semaphore admits one more than its limit")
def semaphore_one_more() -> None:
    admits = Lock.admits_newcomer

    def admits_newcomer(self: Lock, mode: Any) -> bool:
        limit = self.limit
        self.limit = limit + 1 if limit > 0 else limit
        try:
            return admits(self, mode)
        finally:
            self.limit = limit

    put(Lock, "admits_newcomer", admits_newcomer)


@mutant("cycles of waiting owners are not looked for")
def deadlock_unseen() -> None:
    put(acquiring, "find_cycle", lambda *_args, **_kwargs: None)


@mutant("an upgrade keeps its token")
def upgrade_keeps_token() -> None:
    exchange = granting.exchange

    def kept(state: Any, lock: Any, shared: Any, request: Any) -> Any:
        before = state.token
        state.token = shared.token - 1
        try:
            return exchange(state, lock, shared, request)
        finally:
            state.token = before

    put(granting, "exchange", kept)
    put(acquiring, "exchange", kept)


@mutant("a leader proposes before its no-op is applied")
def proposes_before_no_op() -> None:
    changed = Participant._role_changed

    def _role_changed(self: Participant, effect: Any) -> None:
        changed(self, effect)
        if effect.role is Role.LEADER and not self.is_ready_leader:
            self.is_ready_leader = True

    put(Participant, "_role_changed", _role_changed)


@mutant("a request for several locks is granted when the first is free")
def several_granted_for_one() -> None:
    put(granting, "_is_admitted", lambda _state, _request: True)
