"""The vocabulary of the consensus core: entries, messages, events and effects.

Everything here is immutable. What crosses the wire or reaches the disk is a `msgspec.Struct` (it
encodes at C speed); what stays in the process is a frozen dataclass. All times are integer
milliseconds of `CLOCK_BOOTTIME` of the local machine, except `stamp_ms`, which is leader time
(design: last committed stamp + own elapsed time) and is opaque to this layer.

Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014), called "the thesis" below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType, TypeAlias

import msgspec

Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)
MemberId = NewType("MemberId", str)


class EntryKind(IntEnum):
    """What an entry's payload is; the core itself reads only CONFIG payloads."""

    NOOP = 0
    COMMANDS = 1
    CONFIG = 2
    VERSION = 3


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the replicated log; `payload` is opaque but for CONFIG."""

    term: Term
    index: LogIndex
    kind: EntryKind
    stamp_ms: int
    payload: bytes = b""


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member of the group and where it is reached."""

    id: MemberId
    name: str
    peer_url: str
    client_url: str = ""
    voter: bool = False


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """The membership in force: members sorted by id, and the ids that may never return."""

    index: LogIndex
    members: tuple[Member, ...]
    removed: tuple[MemberId, ...] = ()

    @property
    def voters(self) -> tuple[MemberId, ...]:
        """Ids that vote and count for a quorum."""
        return tuple(m.id for m in self.members if m.voter)

    @property
    def learners(self) -> tuple[MemberId, ...]:
        """Ids that receive the log and do not vote."""
        return tuple(m.id for m in self.members if not m.voter)

    def member(self, member_id: MemberId) -> Member | None:
        """Return the member of that id, or None."""
        return next((m for m in self.members if m.id == member_id), None)


class ConfigOperation(IntEnum):
    """The single-member changes (thesis §4.1)."""

    ADD_LEARNER = 0
    PROMOTE = 1
    REMOVE = 2
    UPDATE = 3  # new name or addresses of a member that stays what it is
    DEMOTE = 4  # voter -> learner


class ConfigChange(msgspec.Struct, frozen=True, array_like=True):
    """The payload of a CONFIG entry. `member.voter` is ignored; the operation decides it."""

    operation: ConfigOperation
    member: Member


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be on disk before any message that depends on it leaves (thesis fig. 3.1).

    `commit` is the commit index known when this was written. Nothing waits for it; it lets a
    restart know the configuration that was in force.
    """

    term: Term
    vote: MemberId | None
    commit: LogIndex = LogIndex(0)


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot covers. The genesis of a cluster is a snapshot at index 1, term 1."""

    cluster_id: str
    index: LogIndex
    term: Term
    stamp_ms: int
    cluster_version: int
    configuration: Configuration


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A state machine's state after `meta.index`, encoded by the layer above."""

    meta: SnapshotMeta
    data: bytes


# --- Messages -------------------------------------------------------------------------------
# `term` is always the sender's term, except in PreVote*, where it is the term asked about.


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


class PreVoteRequest(_Message, frozen=True):
    """Would you vote for me in `term`? Changes nothing at the receiver (thesis §9.6)."""

    term: Term
    last_index: LogIndex
    last_term: Term


class PreVoteResponse(_Message, frozen=True):
    """`term` echoes the request when granted; when refused it is the responder's own term.

    `commit`/`commit_term` name the last entry the responder knows to be committed. A candidate
    that holds that very entry knows then as well (log matching), and with it the membership in
    force, which may be another than the one it asked for votes in.
    """

    term: Term
    granted: bool
    commit: LogIndex = LogIndex(0)
    commit_term: Term = Term(0)


class VoteRequest(_Message, frozen=True):
    """`transfer` is set by a candidate told to campaign by TimeoutNow; it overrides stickiness."""

    term: Term
    last_index: LogIndex
    last_term: Term
    transfer: bool = False


class VoteResponse(_Message, frozen=True):
    """The vote is on disk before this leaves."""

    term: Term
    granted: bool


class AppendRequest(_Message, frozen=True):
    """Entries after (prev_index, prev_term); empty for a heartbeat.

    `round` is the leader's contact round: an echo of it proves that the follower accepted this
    leader at or after the moment the round was first sent (ReadIndex, check-quorum, leases).
    """

    term: Term
    prev_index: LogIndex
    prev_term: Term
    commit: LogIndex
    round: int
    entries: tuple[Entry, ...] = ()


class AppendResponse(_Message, frozen=True):
    """`match_index` is durable at the responder when `accepted`; else hints where to go back to.

    Refused: `match_index` is 0, `refused_index` the prev_index of the request, `conflict_term` the
    responder's term there (0 if its log is shorter) and `conflict_index` its first uncommitted
    index of that term (or its last index + 1). `refused_index` tells a late refusal from a
    current one: what the leader knows to match since then cannot be refused again.
    """

    term: Term
    round: int
    accepted: bool
    match_index: LogIndex
    conflict_index: LogIndex = LogIndex(0)
    conflict_term: Term = Term(0)
    refused_index: LogIndex = LogIndex(0)


class SnapshotChunk(_Message, frozen=True):
    """Bytes [offset, offset + len(data)) of a snapshot of `total` bytes; meta comes with each."""

    term: Term
    round: int
    meta: SnapshotMeta
    offset: int
    total: int
    data: bytes


class SnapshotResponse(_Message, frozen=True):
    """`next_offset` asks for the next chunk; `installed` once the snapshot is durable."""

    term: Term
    round: int
    index: LogIndex
    next_offset: int
    installed: bool


class TimeoutNow(_Message, frozen=True):
    """Campaign at once, without pre-vote (thesis §3.10)."""

    term: Term


RaftMessage: TypeAlias = (
    PreVoteRequest
    | PreVoteResponse
    | VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | SnapshotChunk
    | SnapshotResponse
    | TimeoutNow
)


# --- Events in ------------------------------------------------------------------------------


class Receive(msgspec.Struct, frozen=True, kw_only=True):
    """A message from a member arrived (its cluster id and addressee were checked already)."""

    now_ms: int
    sender: MemberId
    message: RaftMessage


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed; send one when `next_deadline_ms()` is reached."""

    now_ms: int


class Propose(msgspec.Struct, frozen=True, kw_only=True):
    """Append one entry; `ref` comes back in ProposalAccepted or ProposalDropped."""

    now_ms: int
    ref: int
    kind: EntryKind
    stamp_ms: int
    payload: bytes


class ProposeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Propose a membership change; dropped unless `expected_config_index` is current or None."""

    now_ms: int
    ref: int
    stamp_ms: int
    change: ConfigChange
    expected_config_index: LogIndex | None = None


class ReadIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for an index at which a read is linearizable (thesis §6.4)."""

    now_ms: int
    ref: int


class Persisted(msgspec.Struct, frozen=True, kw_only=True):
    """All Persist effects up to and including `seq` are on disk."""

    now_ms: int
    seq: int


class TransferLeadership(msgspec.Struct, frozen=True, kw_only=True):
    """Hand leadership to `target`, or to the most advanced voter when None."""

    now_ms: int
    target: MemberId | None = None


class Compact(msgspec.Struct, frozen=True, kw_only=True):
    """The layer above has encoded its state at `snapshot.meta.index` (<= applied index)."""

    now_ms: int
    snapshot: Snapshot


RaftEvent: TypeAlias = (
    Receive | Tick | Propose | ProposeConfig | ReadIndex | Persisted | TransferLeadership | Compact
)


# --- Effects out, to be executed in the order given -------------------------------------------


class Role(IntEnum):
    """What this member is at present. A learner is a FOLLOWER that is not among the voters."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """May leave at once. The network may lose, repeat, delay and reorder it."""

    to: MemberId
    message: RaftMessage


class Persist(msgspec.Struct, frozen=True, kw_only=True):
    """Put all of this on disk, then send `then`, then report Persisted(seq).

    Persist effects are executed in the order of `seq` and may be merged into one write and one
    fdatasync. `entries` replace whatever the log holds from `entries[0].index` on. With a
    `snapshot`, the snapshot becomes durable first; `keep_from` is the first log index that is
    still wanted afterwards (entries below it may be deleted). When `discard_log` is set the whole
    log is superseded by the snapshot.
    """

    seq: int
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: Snapshot | None = None
    keep_from: LogIndex = LogIndex(0)
    discard_log: bool = False
    then: tuple[Send, ...] = ()


class Apply(msgspec.Struct, frozen=True, kw_only=True):
    """These entries are committed: apply them in order, now. CONFIG entries took effect here."""

    entries: tuple[Entry, ...]


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """Replace the state machine's state by this snapshot received from the leader."""

    snapshot: Snapshot


class RoleChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Role, term or known leader changed."""

    role: Role
    term: Term
    leader: MemberId | None


class ConfigurationChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration in force changed."""

    configuration: Configuration


class DropReason(IntEnum):
    """Why a proposal or read was not taken; nothing was appended."""

    NOT_LEADER = 0
    TRANSFERRING = 1
    OVERLOADED = 2  # too many uncommitted bytes
    NOT_READY = 3  # leader whose no-op is not committed (config changes)
    CONFIG_IN_PROGRESS = 4
    CONFIG_INDEX_MISMATCH = 5
    CONFIG_INVALID = 6  # unknown id, tombstoned id, last voter, ...
    NOT_CAUGHT_UP = 7  # promotion of a learner that lags


class ProposalAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """Appended at (term, index); committed if that very entry is applied, lost if another is."""

    ref: int
    term: Term
    index: LogIndex


class ProposalDropped(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was appended."""

    ref: int
    reason: DropReason


class ReadReady(msgspec.Struct, frozen=True, kw_only=True):
    """Once the state machine has applied `index` the read may be served."""

    ref: int
    index: LogIndex


class ReadDropped(msgspec.Struct, frozen=True, kw_only=True):
    """The read cannot be confirmed by this member; ask the leader again."""

    ref: int
    reason: DropReason


RaftEffect: TypeAlias = (
    Send
    | Persist
    | Apply
    | Restore
    | RoleChanged
    | ConfigurationChanged
    | ProposalAccepted
    | ProposalDropped
    | ReadReady
    | ReadDropped
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftOptions:
    """Timing and limits; milliseconds and bytes."""

    election_timeout_min_ms: int = 400
    election_timeout_max_ms: int = 800
    heartbeat_ms: int = 100
    max_append_bytes: int = 1 << 20
    max_append_entries: int = 512
    max_inflight_requests: int = 8
    max_inflight_bytes: int = 8 << 20
    max_uncommitted_bytes: int = 64 << 20
    snapshot_chunk_bytes: int = 512 << 10
    retained_entries: int = 5_000  # kept below a snapshot for followers that lag a little
    promote_max_lag: int = 1_000  # entries a learner may lag to be promoted
    eager_commit: bool = False  # tell followers of a commit at once, by an empty append


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredState:
    """What the disk holds of a member that belongs to a cluster."""

    member_id: MemberId
    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...]  # contiguous; the first may lie at or below the snapshot's index
