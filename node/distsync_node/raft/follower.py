"""What a member does with what its leader sends: appends and snapshot chunks.

Guarantees
- `match_index` of an answer is durable here when the answer leaves. What matches but is still on
  its way to the disk is answered at once up to what is durable (the echo of the round must not wait
  for the disk), and again from the Persist that carries it.
- An append that matches cuts nothing: only an entry that conflicts goes, with all after it (thesis
  §3.5). So a delayed append cannot undo what a later one brought. Committed entries never go.
- A snapshot replaces the log only when the log does not hold the snapshot's last entry; chunks are
  kept in memory until the last has come, so a crash in between leaves the old state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import (
    AppendRequest,
    AppendResponse,
    LogIndex,
    Snapshot,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotResponse,
    Term,
)

if TYPE_CHECKING:
    from distsync_node.raft.state import RaftState
    from distsync_node.raft.types import Entry, MemberId


class SnapshotAssembly:
    """The part of a snapshot that has arrived from the leader of the present term."""

    __slots__ = ("data", "meta", "total")

    def __init__(self, meta: SnapshotMeta, total: int) -> None:
        self.meta = meta
        self.total = total
        self.data = bytearray()

    def fits(self, chunk: SnapshotChunk) -> bool:
        """Whether a chunk is of this snapshot."""
        return chunk.meta == self.meta and chunk.total == self.total

    def add(self, chunk: SnapshotChunk) -> None:
        """Take a chunk if it is the next one; others are asked for again."""
        end = chunk.offset + len(chunk.data)
        if chunk.offset == len(self.data) and end <= self.total:
            self.data += chunk.data

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return len(self.data) == self.total


def handle_append(state: RaftState, sender: MemberId, message: AppendRequest) -> None:
    """Take entries or a heartbeat of the present term's leader."""
    state.hear_leader(sender)
    log = state.log
    prev_index, entries = message.prev_index, message.entries
    matched = LogIndex(prev_index + len(entries))
    if prev_index < log.base_index:
        # Up to the base everything is committed, hence the same here and there.
        entries = entries[log.base_index - prev_index :]
    elif prev_index > log.last_index or log.term_at(prev_index) != message.prev_term:
        _refuse(state, sender, message)
        return
    news = _unknown_suffix(state, entries)
    if news:
        state.replace_suffix(news)
        state.disk.stage_message(sender, _accept(state, message, matched))
        state.flush()  # the disk starts before anything is applied
    elif state.disk.hard_durable:
        durable = min(matched, state.disk.durable_index)
        state.send(sender, _accept(state, message, durable))
    else:
        state.disk.stage_message(sender, _accept(state, message, matched))
    state.advance_commit(min(message.commit, matched))


def refuse_stale_append(state: RaftState, sender: MemberId, message: AppendRequest) -> None:
    """Tell a deposed leader the present term."""
    state.reply(
        sender, AppendResponse(state.term, message.round, accepted=False, match_index=LogIndex(0))
    )


def refuse_stale_chunk(state: RaftState, sender: MemberId, message: SnapshotChunk) -> None:
    """Tell a deposed leader the present term."""
    index = message.meta.index
    state.reply(
        sender,
        SnapshotResponse(state.term, message.round, index, next_offset=0, installed=False),
    )


def handle_snapshot_chunk(state: RaftState, sender: MemberId, message: SnapshotChunk) -> None:
    """Take a part of a snapshot; put the whole in place once the last part has come."""
    state.hear_leader(sender)
    meta = message.meta
    if meta.index <= state.commit_index or state.log.matches(meta.index, meta.term):
        state.assembly = None
        _confirm_installed(state, sender, message)
        state.advance_commit(meta.index)
        return
    assembly = state.assembly
    if assembly is None or not assembly.fits(message):
        if assembly is not None and meta.index < assembly.meta.index:
            return  # a late chunk of a snapshot that was given up
        assembly = state.assembly = SnapshotAssembly(meta, message.total)
    assembly.add(message)
    if assembly.is_complete:
        state.assembly = None
        state.install_snapshot(Snapshot(meta, bytes(assembly.data)))
        _confirm_installed(state, sender, message)
        return
    state.reply(
        sender,
        SnapshotResponse(
            state.term, message.round, meta.index, next_offset=len(assembly.data), installed=False
        ),
    )


def _accept(state: RaftState, message: AppendRequest, match_index: LogIndex) -> AppendResponse:
    return AppendResponse(state.term, message.round, accepted=True, match_index=match_index)


def _refuse(state: RaftState, sender: MemberId, message: AppendRequest) -> None:
    log, prev_index = state.log, message.prev_index
    if prev_index <= state.commit_index:
        raise InvariantViolation(
            f"leader {sender} has term {message.prev_term} at committed entry {prev_index}"
        )
    conflict_term, conflict_index = Term(0), LogIndex(log.last_index + 1)
    if prev_index <= log.last_index:
        conflict_term = log.term_at(prev_index)
        first_of_term = log.first_index_of_run(prev_index)
        conflict_index = LogIndex(max(first_of_term, state.commit_index + 1))
    state.reply(
        sender,
        AppendResponse(
            state.term,
            message.round,
            accepted=False,
            match_index=LogIndex(0),
            conflict_index=conflict_index,
            conflict_term=conflict_term,
            refused_index=prev_index,
        ),
    )


def _unknown_suffix(state: RaftState, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the entries from the first on that the log does not hold."""
    log = state.log
    if not entries or entries[0].index > log.last_index:
        return entries
    for position, entry in enumerate(entries):
        if entry.index > log.last_index or log.term_at(entry.index) != entry.term:
            return entries[position:]
    return ()


def _confirm_installed(state: RaftState, sender: MemberId, message: SnapshotChunk) -> None:
    """Answer that the log holds everything up to the snapshot's index, once that is durable."""
    index = message.meta.index
    response = SnapshotResponse(
        state.term, message.round, index, next_offset=message.total, installed=True
    )
    if state.disk.staged or state.disk.durable_index < index:
        state.disk.stage_message(sender, response)
    else:
        state.reply(sender, response)
