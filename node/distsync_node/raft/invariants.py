"""What must hold between any two steps, as code. The validator costs O(log); it is for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.errors import InvariantViolation
from distsync_node.raft.progress import ProgressState
from distsync_node.raft.types import EntryKind, Role

if TYPE_CHECKING:
    from distsync_node.raft.leader import Leader
    from distsync_node.raft.progress import Progress
    from distsync_node.raft.state import RaftState


def check_state(state: RaftState) -> None:
    """Raise InvariantViolation naming the first rule that does not hold."""
    _check_indexes(state)
    _check_log(state)
    _check_role(state)
    if state.leadership is not None:
        _check_leader(state, state.leadership)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise InvariantViolation(rule)


def _check_indexes(state: RaftState) -> None:
    log = state.log
    _require(log.base_index <= state.snapshot.meta.index, "the snapshot reaches the log's base")
    _require(state.snapshot.meta.index <= state.applied_index, "a snapshot is of applied state")
    _require(state.applied_index <= state.commit_index, "only committed entries are applied")
    _require(state.commit_index <= log.last_index, "committed entries are in the log")
    _require(state.disk.durable_index <= log.last_index, "durable entries are in the log")
    _require(state.configuration.index <= state.applied_index, "configurations take effect late")


def _check_log(state: RaftState) -> None:
    log = state.log
    index, term = log.base_index, log.base_term
    pending_changes = 0
    for entry in log.slice(log.first_index, log.last_index):
        _require(entry.index == index + 1, "indexes are contiguous")
        _require(entry.term >= term, "terms never fall along the log")
        index, term = entry.index, entry.term
        if entry.kind == EntryKind.CONFIG and entry.index > state.commit_index:
            pending_changes += 1
    _require(term == log.last_term, "the runs of terms end where the log ends")
    _require(term <= state.term, "no entry is of a later term than the member")
    _require(pending_changes <= 1, "one membership change at a time")


def _check_role(state: RaftState) -> None:
    role = state.role
    campaigns = role in (Role.PRE_CANDIDATE, Role.CANDIDATE)
    _require((state.leadership is not None) == (role is Role.LEADER), "leadership with the role")
    _require((state.ballot is not None) == campaigns, "a ballot while campaigning only")
    _require(state.is_voter or role is Role.FOLLOWER, "only voters campaign and lead")
    _require(
        role not in (Role.CANDIDATE, Role.LEADER) or state.vote == state.member_id,
        "candidates and leaders voted for themselves",
    )
    _require(not campaigns or state.leader is None, "who campaigns knows no leader")
    _require((state.leader == state.member_id) == (role is Role.LEADER), "a leader knows itself")
    _require(state.assembly is None or role is not Role.LEADER, "a leader receives no snapshot")


def _check_leader(state: RaftState, leadership: Leader) -> None:
    others = {member.id for member in state.configuration.members} - {state.member_id}
    _require(set(leadership.replicator.progress) == others, "one progress a follower")
    for progress in leadership.replicator.peers:
        _check_progress(state, progress)


def _check_progress(state: RaftState, progress: Progress) -> None:
    options, last_index = state.options, state.log.last_index
    _require(progress.match_index < progress.next_index, "match is before next")
    _require(progress.match_index <= last_index, "a follower matches what there is")
    _require(progress.next_index <= last_index + 1, "next is at most one past the end")
    _require(progress.inflight_count <= options.max_inflight_requests, "bounded requests in flight")
    _require(
        progress.inflight_bytes <= options.max_inflight_bytes + options.max_append_bytes
        or progress.inflight_count == 1,
        "bounded bytes in flight",
    )
    _require(
        progress.state is ProgressState.REPLICATE or progress.inflight_count == 0,
        "only replication runs ahead",
    )
    _require(
        (progress.snapshot is not None) == (progress.state is ProgressState.SNAPSHOT),
        "a snapshot under way in its state only",
    )
