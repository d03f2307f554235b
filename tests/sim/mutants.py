"""Planted bugs: each is a real mistake that somebody could make, and the simulator must catch it.

`python -m sim.mutants` (from the `tests` directory; `make mutants`) plants each one in a process of
its own and runs seeds until a check fails. It prints which check that was and at which seed; a bug
that survives `--seeds` of them (1,000 unless told) makes the exit code 1. With `--only NAME` one
bug is tried, with the trace of its failure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import msgspec

from distsync_node.cluster import leases
from distsync_node.locks import acquiring, ending, granting, machine, snapshot
from distsync_node.locks.commands import Cancel, Release
from distsync_node.locks.lock import Lock
from distsync_node.locks.records import WaitingRequest
from distsync_node.raft import election, follower, leader, quorum
from distsync_node.raft.disk import DiskQueue
from distsync_node.raft.state import RaftState
from distsync_node.raft.types import HardState, LogIndex, ReadReady, Role
from distsync_node.replica.clock import LeaderClock
from distsync_node.replica.core import Replica
from distsync_node.replica.participant import Participant
from sim.__main__ import describe_failure, run_one

MOST_SEEDS = 1_000
SHOWN_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug; `profile` is where it shows soonest (None: the seed's own)."""

    name: str
    what: str
    plant: Callable[[], None]
    profile: str | None = None


MUTANTS: dict[str, Mutant] = {}


def mutant(what: str, profile: str | None = None) -> Callable[[Callable[[], None]], None]:
    """Register a planted bug under its function's name."""

    def register(plant: Callable[[], None]) -> None:
        name = plant.__name__
        MUTANTS[name] = Mutant(name=name, what=what, plant=plant, profile=profile)

    return register


def put(owner: Any, name: str, value: Any) -> None:
    """Replace a function for the rest of the process."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name}: the planted bug has lost its place")
    setattr(owner, name, value)


# --- Durability -----------------------------------------------------------------------------------


@mutant("acknowledgements and votes leave before they are on disk", "disk")
def ack_before_fsync() -> None:
    def flush(self: RaftState) -> None:
        if self.disk.staged:
            persist = self.disk.flush(HardState(self.term, self.vote, self.commit_index))
            self.effects.extend(persist.then)
            self.effects.append(replaced(persist, then=()))

    put(RaftState, "flush", flush)


@mutant("term and vote are not written", "disk")
def vote_not_kept() -> None:
    flush = DiskQueue.flush
    put(DiskQueue, "flush", lambda self, hard: replaced(flush(self, hard), hard_state=None))


@mutant("the leader counts entries that its own disk does not have yet", "disk")
def own_log_counted_unwritten() -> None:
    def durable(self: DiskQueue, seq: int) -> None:
        persisted(self, seq)

    persisted = DiskQueue.persisted
    stage = DiskQueue.stage_entries

    def stage_entries(self: DiskQueue, entries: Any) -> None:
        stage(self, entries)
        self.durable_index = entries[-1].index

    put(DiskQueue, "stage_entries", stage_entries)
    put(DiskQueue, "persisted", durable)


# --- Elections ------------------------------------------------------------------------------------


@mutant("a member votes for everybody who asks in a term")
def two_votes_in_a_term() -> None:
    handle = election.handle_vote_request

    def handle_vote_request(state: RaftState, sender: Any, message: Any) -> None:
        state.vote = None
        handle(state, sender, message)

    put(election, "handle_vote_request", handle_vote_request)


@mutant("half of the voters are a quorum")
def half_is_a_quorum() -> None:
    put(quorum, "quorum_size", lambda voters: max(1, voters // 2))


@mutant("a candidate with an old log is voted for")
def old_log_elected() -> None:
    from distsync_node.raft.log import Log

    put(Log, "is_up_to_date", lambda _self, _index, _term: True)


# --- Replication ----------------------------------------------------------------------------------


@mutant("entries of earlier terms are committed by counting")
def prior_term_commit() -> None:
    def _maybe_commit(self: leader.Leader) -> None:
        state = self._state
        index = self.replicator.quorum_match()
        if index <= state.commit_index:
            return
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        self._uncommitted.extend([0] * (state.log.last_index - index))
        if state.advance_commit(index):
            self._configuration_changed()

    put(leader.Leader, "_maybe_commit", _maybe_commit)


@mutant("an append cuts off the tail behind it, also one that matches")
def matching_tail_cut() -> None:
    def _unknown_suffix(state: RaftState, entries: Any) -> Any:
        return tuple(entry for entry in entries if entry.index > state.commit_index)

    put(follower, "_unknown_suffix", _unknown_suffix)


@mutant("a follower applies what it has, committed or not")
def uncommitted_applied() -> None:
    handle = follower.handle_append

    def handle_append(state: RaftState, sender: Any, message: Any) -> None:
        far = LogIndex(message.prev_index + len(message.entries))
        handle(state, sender, msgspec.structs.replace(message, commit=far))

    put(follower, "handle_append", handle_append)


@mutant("a received snapshot replaces a log that is ahead of it", "snapshots")
def snapshot_discards_suffix() -> None:
    from distsync_node.raft.log import Log

    handle = follower.handle_snapshot_chunk

    def handle_snapshot_chunk(state: RaftState, sender: Any, message: Any) -> None:
        commit, state.commit_index = state.commit_index, LogIndex(0)
        matches = Log.matches
        Log.matches = lambda _self, _index, _term: False  # type: ignore[method-assign]
        try:
            handle(state, sender, message)
        finally:
            Log.matches = matches  # type: ignore[method-assign]
            if state.commit_index == 0:
                state.commit_index = commit

    put(follower, "handle_snapshot_chunk", handle_snapshot_chunk)


# --- Membership -----------------------------------------------------------------------------------


@mutant("membership changes are not kept one at a time, nor behind the no-op", "membership")
def changes_at_once() -> None:
    refusal = leader.Leader._config_refusal

    def _config_refusal(self: leader.Leader, event: Any) -> Any:
        reason = refusal(self, event)
        allowed = {leader.DropReason.NOT_READY, leader.DropReason.CONFIG_IN_PROGRESS}
        return None if reason in allowed else reason

    put(leader.Leader, "_config_refusal", _config_refusal)


@mutant("a bootstrap is taken by a member that it does not list", "forming")
def unlisted_bootstrap_taken() -> None:
    bootstrap = Replica._bootstrap

    def _bootstrap(self: Replica, event: Any) -> None:
        if not any(member.id == self.member_id for member in event.members):
            own = msgspec.structs.replace(event.members[0], id=self.member_id)
            event = replaced(event, members=(own, *event.members[1:]))
        bootstrap(self, event)

    put(Replica, "_bootstrap", _bootstrap)


# --- Reads ----------------------------------------------------------------------------------------


@mutant("a leader answers reads without asking a quorum whether it still leads")
def stale_read() -> None:
    def read(self: leader.Leader, ref: int) -> None:
        self._state.effects.append(ReadReady(ref=ref, index=self._state.commit_index))

    put(leader.Leader, "read", read)


@mutant("a new leader answers reads before its no-op is committed")
def read_before_no_op() -> None:
    def _begin_round(self: leader.Leader) -> None:
        number = self.replicator.rounds.begin(self._state.now_ms)
        self.reads.join_round(number, self._state.commit_index)

    def _confirm_reads(self: leader.Leader) -> None:
        self._answer_reads()
        if self.reads.wants_round:
            self._begin_round()
            for peer in self.replicator.voting_peers:
                self.replicator.send_confirmation(peer)
            self._answer_reads()

    put(leader.Leader, "_begin_round", _begin_round)
    put(leader.Leader, "_confirm_reads", _confirm_reads)


# --- Leader time and leases -----------------------------------------------------------------------


@mutant("leader time is the local clock of whoever leads")
def leader_time_is_local() -> None:
    put(LeaderClock, "read", lambda self, now_ms: max(self.floor_ms, now_ms))


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


@mutant("a waiter is granted after it gave up")
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


# --- Running --------------------------------------------------------------------------------------


def try_one(name: str, first: int, seeds: int, lines: int) -> int:
    """Plant a bug in this process and run seeds until one fails; 0 when one did."""
    chosen = MUTANTS[name]
    chosen.plant()
    for seed in range(first, first + seeds):
        result = run_one((seed, chosen.profile))
        if result.failure is not None:
            if lines:
                print(describe_failure(result, lines))
            tried = seed - first + 1
            print(f"{name}: caught by {result.failure.check} at seed {seed} ({tried} tried)")
            return 0
    print(f"{name}: NOT CAUGHT in {seeds} seeds")
    return 1


def _in_process(name: str, seeds: int) -> int:
    process = subprocess.run(
        [sys.executable, "-m", "sim.mutants", "--only", name, "--seeds", str(seeds), "--lines=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(process.stdout.strip() or f"{name}: broke\n{process.stderr[-2_000:]}", flush=True)
    return process.returncode


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="sim.mutants", description=__doc__)
    parser.add_argument("--only", choices=sorted(MUTANTS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS)
    parser.add_argument("--lines", type=int, default=SHOWN_LINES)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.only is not None:
        return try_one(options.only, options.first, options.seeds, options.lines)
    with ThreadPoolExecutor(options.processes) as pool:
        codes = list(pool.map(lambda name: _in_process(name, options.seeds), MUTANTS))
    print(f"{codes.count(0)} of {len(codes)} planted bugs caught")
    return 0 if not any(codes) else 1


if __name__ == "__main__":
    sys.exit(main())
