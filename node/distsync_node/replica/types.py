"""What a replica is told and what it wants done.

A replica joins the consensus core and the lock state machine; everything that decides anything is
in it, so that the simulator runs it unchanged. Shells receive, step and execute. Times are local
`CLOCK_BOOTTIME` milliseconds, read when the event is stamped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

import msgspec

from distsync_node.cluster.leases import LeaseGrant, LeaseOptions, LeaseRequest
from distsync_node.cluster.ring_state import EMPTY_RING, Epoch, RingCommand, RingState
from distsync_node.locks.commands import LockCommand, Outcome
from distsync_node.raft.types import (
    ConfigOperation,
    Configuration,
    ConfigurationChanged,
    HardState,
    LogIndex,
    Member,
    MemberId,
    Persist,
    RaftMessage,
    RoleChanged,
    Send,
    Snapshot,
)
from distsync_node.ring import DEFAULT_VIRTUAL_NODES

# --- Between replicas -------------------------------------------------------------------------


class HashReport(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The state hash of the sender after applying `index`."""

    index: LogIndex
    state_hash: int


class Diverged(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A quorum agrees on another state than yours at `index`: stop."""

    index: LogIndex


PeerMessage: TypeAlias = RaftMessage | LeaseRequest | LeaseGrant | HashReport | Diverged


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Messages of one member to another. Addresses get reused, so ids say who is meant.

    `versions` are the lowest and highest cluster version the sender supports; (0, 0) is unknown.
    `genesis` stands for the list of founders, since one cluster id may have been given to two lists
    (`genesis.founders_digest`); 0 is unknown.
    """

    cluster_id: str
    sender: MemberId
    to: MemberId
    versions: tuple[int, int]
    messages: tuple[PeerMessage, ...]
    genesis: int = 0


class AnswerCode(IntEnum):
    """How an envelope was taken."""

    ACCEPTED = 0
    CLUSTER_MISMATCH = 1
    MEMBER_MISMATCH = 2
    SENDER_REMOVED = 3  # the sender's id is tombstoned in the receiver's configuration
    NOT_SERVING = 4  # the receiver has stopped


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The reply to an envelope; `messages` travel back in it when they are ready in time."""

    code: AnswerCode
    cluster_id: str
    member_id: MemberId
    config_index: LogIndex
    versions: tuple[int, int]
    messages: tuple[PeerMessage, ...] = ()


ReplicatedCommand: TypeAlias = LockCommand | RingCommand  # what an entry of COMMANDS holds


# --- Events in --------------------------------------------------------------------------------


class ReceiveEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope arrived; exactly one AnswerEnvelope effect comes back for it."""

    now_ms: int
    envelope: Envelope


class ReceiveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an envelope this replica sent arrived."""

    now_ms: int
    answer: Answer


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """Run a command; `ref` names the connection that waits. Proposed at the next Flush."""

    now_ms: int
    ref: int
    command: LockCommand


class Flush(msgspec.Struct, frozen=True, kw_only=True):
    """Propose what was submitted since the last Flush, as one entry (when there is room)."""

    now_ms: int


class SubmitRead(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a linearizable read point; answered by ReadAt or Rejected."""

    now_ms: int
    ref: int


class AwaitApplied(msgspec.Struct, frozen=True, kw_only=True):
    """Answer ReadAt once `index` (a read index the leader confirmed) is applied here."""

    now_ms: int
    ref: int
    index: LogIndex


class Disconnect(msgspec.Struct, frozen=True, kw_only=True):
    """The connection behind `ref` is gone: cancel its wait, answer nothing."""

    now_ms: int
    ref: int


class StoragePersisted(msgspec.Struct, frozen=True, kw_only=True):
    """Persist effects up to `seq` are on disk (and their `then` messages have been sent)."""

    now_ms: int
    seq: int


class StorageInitialised(msgspec.Struct, frozen=True, kw_only=True):
    """The Initialise effect is on disk."""

    now_ms: int


class DiskFullChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The disk became full, or has room again."""

    now_ms: int
    full: bool


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """Create the cluster on this member (idempotent); answered by AdminDone or Rejected."""

    now_ms: int
    ref: int
    cluster_id: str
    members: tuple[Member, ...]


class ChangeMembership(msgspec.Struct, frozen=True, kw_only=True):
    """Propose a membership change; answered by AdminDone once applied, or by Rejected."""

    now_ms: int
    ref: int
    operation: ConfigOperation
    member: Member
    expected_config_index: LogIndex | None = None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Hand leadership to `target` or to the most advanced voter; see RoleChanged."""

    now_ms: int
    target: MemberId | None = None


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed: `next_deadline_ms()` is reached."""

    now_ms: int


class PeerMessages(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of another member, whose envelope or answer was judged before."""

    now_ms: int
    sender: MemberId
    messages: tuple[PeerMessage, ...]


class AcknowledgeEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """This node has handed over what the ring of `epoch` gives to others."""

    now_ms: int
    epoch: Epoch


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Leave the ring. What is served under the node lease has to have ended by now."""

    now_ms: int


ParticipantEvent: TypeAlias = (
    Submit
    | Flush
    | StoragePersisted
    | PeerMessages
    | Wake
    | SubmitRead
    | AwaitApplied
    | Disconnect
    | ChangeMembership
    | Transfer
    | DiskFullChanged
    | AcknowledgeEpoch
    | Drain
)

ReplicaEvent: TypeAlias = (
    ReceiveEnvelope
    | ReceiveAnswer
    | Submit
    | Flush
    | SubmitRead
    | AwaitApplied
    | Disconnect
    | StoragePersisted
    | StorageInitialised
    | DiskFullChanged
    | Bootstrap
    | ChangeMembership
    | Transfer
    | Wake
    | AcknowledgeEpoch
    | Drain
)


# --- Effects out ------------------------------------------------------------------------------
# Raft's Send, Persist, RoleChanged and ConfigurationChanged pass through. A Send is wrapped by the
# shell into an envelope from `replica.envelope(to, messages)`.


class SendPeer(msgspec.Struct, frozen=True, kw_only=True):
    """A message that does not come from the consensus core; may leave at once."""

    to: MemberId
    message: PeerMessage


class AnswerEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """How the envelope was taken; the shell adds messages for the sender if it has some."""

    answer: Answer


class Initialise(msgspec.Struct, frozen=True, kw_only=True):
    """Make this genesis durable, then report StorageInitialised."""

    snapshot: Snapshot
    hard_state: HardState


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """The request behind `ref` waits in a queue, as attempt number `attempt`."""

    ref: int
    attempt: int


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The final outcome of the command behind `ref`; remaining_ms as the leader counts it."""

    ref: int
    outcome: Outcome
    remaining_ms: int


class ReadAt(msgspec.Struct, frozen=True, kw_only=True):
    """The local state machine may be read now for `ref`."""

    ref: int


class AdminDone(msgspec.Struct, frozen=True, kw_only=True):
    """The administrative call behind `ref` took effect."""

    ref: int
    configuration: Configuration


class RejectReason(IntEnum):
    """Why nothing came of a request here."""

    NOT_LEADER = 0  # not proposed; ask `leader`
    LEADERSHIP_LOST = 1  # proposed, outcome unknown; ask `leader` again under the same key
    OVERLOADED = 2
    DISK_FULL = 3
    UNINITIALISED = 4
    REMOVED = 5
    STOPPED = 6
    ALREADY_BOOTSTRAPPED = 7
    NOT_LISTED = 8  # bootstrap whose members do not include this one
    CONFIG_CONFLICT = 9
    NAME_TAKEN = 10  # a live member of that name exists
    NOT_CAUGHT_UP = 11


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """The request behind `ref` ends here without an outcome."""

    ref: int
    reason: RejectReason
    leader: MemberId | None


class LocksChanged(msgspec.Struct, frozen=True, kw_only=True):
    """These locks changed (for watchers)."""

    names: tuple[str, ...]


class RingChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The ring has a new epoch here, or fewer in doubt.

    Answer a new epoch with AcknowledgeEpoch unless that is automatic.
    """

    ring: RingState


class LeaseHeld(msgspec.Struct, frozen=True, kw_only=True):
    """This process holds a lease of that epoch until `ends_ms`; 0 = no more, it was given up."""

    epoch: Epoch
    ends_ms: int


class MarkRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """This member was removed from its cluster: remember it on disk."""


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """This member's state differs from the quorum's, or a promise broke: stop loudly.

    With `diverged` the disk must remember it: a restart would bring the wrong state back.
    """

    reason: str
    diverged: bool = False


ReplicaEffect: TypeAlias = (
    Send
    | SendPeer
    | Persist
    | RoleChanged
    | ConfigurationChanged
    | AnswerEnvelope
    | Initialise
    | Parked
    | Reply
    | ReadAt
    | AdminDone
    | Rejected
    | LocksChanged
    | RingChanged
    | LeaseHeld
    | MarkRemoved
    | Stop
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Policy and limits; milliseconds, bytes and entries."""

    voters: int = 7  # ceiling of the number of voters
    stamp_interval_ms: int = 500
    flush_bytes: int = 512 << 10  # the commands of one entry
    max_inflight_entries: int = 4
    pipeline_after_ms: int = 5  # how old the newest entry in flight is when another may follow it
    snapshot_log_bytes: int = 16 << 20
    snapshot_entries: int = 50_000
    hash_interval: int = 1_024  # entries between two comparisons of state hashes
    max_pending: int = 20_000  # requests waiting for an outcome; see Participant
    name_takeover_ms: int = 3_000  # silence after which a member's name may be taken over
    supported_versions: tuple[int, int] = (1, 1)
    lease: LeaseOptions = field(default_factory=LeaseOptions)
    virtual_nodes: int = DEFAULT_VIRTUAL_NODES  # of a ring that is made under this leader
    serves: bool = True  # takes part in the ring
    acknowledge_at_once: bool = True  # no service has anything to hand over at a ring change


class ReplicaState(msgspec.Struct, frozen=True, array_like=True):
    """The data of a snapshot."""

    machine: bytes
    genesis: tuple[Member, ...]
    ring: RingState = EMPTY_RING
