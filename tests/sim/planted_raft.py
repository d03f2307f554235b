"""Bugs in consensus, membership and reads."""

from __future__ import annotations

from typing import Any

import msgspec

from distsync_node.raft import election, follower, leader, quorum
from distsync_node.raft.disk import DiskQueue
from distsync_node.raft.log import Log
from distsync_node.raft.quorum import reached_by_quorum
from distsync_node.raft.replication import Replicator
from distsync_node.raft.state import RaftState
from distsync_node.raft.types import HardState, LogIndex, MemberId, ReadReady, Send
from distsync_node.replica.core import Replica
from sim.disk import Disk
from sim.host import Host
from sim.planting import mutant, put

# --- Durability -----------------------------------------------------------------------------------


@mutant("acknowledgements and votes leave before they are on disk", "disk")
def ack_before_fsync() -> None:
    def flush(self: RaftState) -> None:
        if self.disk.staged:
            persist = self.disk.flush(HardState(self.term, self.vote, self.commit_index))
            self.effects.extend(persist.then)
            self.effects.append(msgspec.structs.replace(persist, then=()))

    put(RaftState, "flush", flush)


@mutant("term and vote are not written", "disk")
def vote_not_kept() -> None:
    flush = DiskQueue.flush
    put(
        DiskQueue,
        "flush",
        lambda self, hard: msgspec.structs.replace(flush(self, hard), hard_state=None),
    )


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


@mutant("a snapshot is confirmed before it is on disk", "snapshots")
def snapshot_confirmed_unwritten() -> None:
    def stage_message(self: DiskQueue, to: Any, message: Any) -> None:
        if getattr(message, "installed", False):
            early.append(Send(to=to, message=message))
        else:
            stage(self, to, message)

    def emit(self: RaftState) -> None:
        self.effects.extend(early)
        early.clear()
        flush(self)

    early: list[Any] = []
    stage, flush = DiskQueue.stage_message, RaftState.flush
    put(DiskQueue, "stage_message", stage_message)
    put(RaftState, "flush", emit)


@mutant("a write that was replaced vouches for what replaced it", "disk")
def late_write_vouches() -> None:
    def truncated_from(self: DiskQueue, index: int) -> None:
        self.durable_index = min(self.durable_index, LogIndex(index - 1))

    put(DiskQueue, "truncated_from", truncated_from)


@mutant("a wiped disk comes back under its old id", "membership")
def wiped_disk_keeps_its_id() -> None:
    def _new_disk(self: Host) -> Disk:
        self._disks = 1
        member_id = MemberId(f"{self.name}.1")
        disk = Disk(self._kernel, self._kernel.rng(f"disk/{member_id}"), member_id)
        disk.on_done, disk.on_full = self._disk_done, self._disk_full
        return disk

    put(Host, "_new_disk", _new_disk)


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


@mutant("a follower commits what its leader has committed, whether its own log matches or not")
def commit_beyond_the_match() -> None:
    handle = follower.handle_append

    def handle_append(state: RaftState, sender: Any, message: Any) -> None:
        handle(state, sender, message)
        state.advance_commit(min(message.commit, state.log.last_index))

    put(follower, "handle_append", handle_append)


@mutant("a restart applies again what the snapshot holds", "snapshots")
def restart_applies_again() -> None:
    begin = RaftState.__init__

    def begin_early(self: RaftState, *arguments: Any) -> None:
        begin(self, *arguments)
        self.applied_index = min(self.applied_index, self.log.base_index)

    put(RaftState, "__init__", begin_early)


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
            event = msgspec.structs.replace(event, members=(own, *event.members[1:]))
        bootstrap(self, event)

    put(Replica, "_bootstrap", _bootstrap)


@mutant("learners count for the commit", "membership")
def learners_count() -> None:
    def quorum_match(self: Replicator) -> int:
        matches = [peer.match_index for peer in self.peers]
        return reached_by_quorum([*matches, self._state.disk.durable_index])

    put(Replicator, "quorum_match", quorum_match)


@mutant("a removed member takes part again after a restart", "membership")
def removal_forgotten() -> None:
    begin = Replica.__init__

    def begin_anew(self: Replica, member_id: Any, **arguments: Any) -> None:
        begin(self, member_id, **{**arguments, "removed": False})

    put(Replica, "__init__", begin_anew)


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
