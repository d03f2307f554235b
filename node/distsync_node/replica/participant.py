"""Taking part in a cluster: consensus, the lock state, leader time and the requests that wait.

What it guarantees, given a shell that executes effects in order and a disk that keeps its word:

- A command is answered with an outcome only after its entry is committed and applied here.
- `Rejected(NOT_LEADER)` means nothing was proposed; `LEADERSHIP_LOST` that it may have been. A
  retry under the same key attaches to the first attempt, so neither loses nor doubles anything.
- Commands are proposed only by a leader whose no-op is applied, under stamps that never go back.
- A member whose state differs from a quorum's answers nothing any more; one that was removed only
  takes part in elections, for what it knows to be committed.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol, assert_never

import msgspec

from distsync_node.cluster.leases import LeaseGrant, LeaseRequest
from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    EnterRing,
    Incarnation,
    LeaveRing,
    RingCommand,
)
from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Done,
    Expire,
    Granted,
    LockCommand,
    Notice,
    OpenSession,
    Outcome,
    RefusalCode,
    Refused,
    RequestKey,
    SessionId,
    Upgrade,
    Waiting,
)
from distsync_node.locks.machine import LockMachine
from distsync_node.raft.core import RaftCore
from distsync_node.raft.membership import decode_change
from distsync_node.raft.types import (
    Apply,
    Compact,
    ConfigChange,
    ConfigOperation,
    ConfigurationChanged,
    DropReason,
    Entry,
    EntryKind,
    LogIndex,
    MemberId,
    Persist,
    Persisted,
    ProposalAccepted,
    ProposalDropped,
    Propose,
    ProposeConfig,
    RaftEffect,
    RaftEvent,
    RaftOptions,
    ReadDropped,
    ReadIndex,
    ReadReady,
    Receive,
    RecoveredState,
    Restore,
    Role,
    RoleChanged,
    Send,
    Snapshot,
    SnapshotMeta,
    Tick,
    TransferLeadership,
)
from distsync_node.replica.administration import is_in_force, standings, takes_a_live_name
from distsync_node.replica.clock import LeaderClock
from distsync_node.replica.divergence import HashBoard
from distsync_node.replica.genesis import founders_digest
from distsync_node.replica.policy import next_change
from distsync_node.replica.requests import NO_REF, Batch, Requests
from distsync_node.replica.serving import Serving
from distsync_node.replica.types import (
    AcknowledgeEpoch,
    AdminDone,
    AwaitApplied,
    ChangeMembership,
    Disconnect,
    DiskFullChanged,
    Diverged,
    Drain,
    Flush,
    HashReport,
    LeaseHeld,
    LocksChanged,
    MarkRemoved,
    Parked,
    ParticipantEvent,
    PeerMessage,
    PeerMessages,
    ReadAt,
    Rejected,
    RejectReason,
    ReplicaEffect,
    ReplicaOptions,
    ReplicaState,
    ReplicatedCommand,
    Reply,
    RingChanged,
    SendPeer,
    Stop,
    StoragePersisted,
    Submit,
    SubmitRead,
    Transfer,
    Wake,
)

POLICY_INTERVAL_MS = 200
HAND_OVER_INTERVAL_MS = 5_000  # nothing can be proposed meanwhile, so not all the time
MAX_INCARNATION = 2**53 - 1

_encode = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(list[ReplicatedCommand]).decode
_decode_state = msgspec.msgpack.Decoder(ReplicaState).decode
_decode_version = msgspec.msgpack.Decoder(int).decode


class Random(Protocol):
    """A seeded generator."""

    def randint(self, a: int, b: int) -> int:
        """Return an integer in [a, b]."""
        ...


class Participant:
    """A member of a cluster, from its recovered or first state on."""

    def __init__(
        self,
        recovered: RecoveredState,
        *,
        options: ReplicaOptions,
        raft_options: RaftOptions,
        rng: Random,
        now_ms: int,
        removed: bool,
        disk_full: bool,
    ) -> None:
        meta = recovered.snapshot.meta
        self.member_id = recovered.member_id
        self.cluster_id = meta.cluster_id
        self.state: Literal["member", "removed", "stopped"] = "removed" if removed else "member"
        self.since_ms = now_ms  # when this process began to take part
        self.disk_full = disk_full
        self.clock = LeaderClock(meta.stamp_ms, now_ms)
        self.is_ready_leader = False
        self.versions: dict[MemberId, tuple[int, int]] = {}
        self._options = options
        self._now_ms = now_ms
        self._effects: list[ReplicaEffect] = []
        self._requests = Requests()
        self._admin: dict[int, LogIndex] = {}
        self._proposing: Batch | None = None
        self._raft_events: deque[RaftEvent] = deque()
        self._stepping = False
        self._flush_wanted = False
        self._expire_index: LogIndex | None = None
        self._proposed_at_ms = now_ms
        self._policy_at_ms = now_ms
        self._hand_over_at_ms = now_ms
        self._board = HashBoard()
        self.serving = Serving(
            options.lease,
            virtual_nodes=options.virtual_nodes,
            member_id=self.member_id,
            incarnation=Incarnation(rng.randint(1, MAX_INCARNATION)),
            ring=EMPTY_RING,
            now_ms=now_ms,
        )
        self._load(recovered.snapshot)
        self.raft = RaftCore(recovered, raft_options, rng, now_ms)

    # --- Stepping -----------------------------------------------------------------------------

    def step(self, event: ParticipantEvent, effects: list[ReplicaEffect]) -> None:
        """Take one event; append what is to be done, in order."""
        self._now_ms = event.now_ms
        self._effects = effects
        if self.state == "member":
            self._dispatch(event)
        elif self.state == "removed":
            self._linger(event)
        else:
            self._refuse(event)
        if self._flush_wanted:
            self._flush_wanted = False
            self._flush()

    def _dispatch(self, event: ParticipantEvent) -> None:
        match event:
            case Submit():
                self._submit(event.ref, event.command)
            case Flush():
                self._flush()
            case StoragePersisted():
                self._raft(Persisted(now_ms=self._now_ms, seq=event.seq))
            case PeerMessages():
                for message in event.messages:
                    self._receive(event.sender, message)
            case Wake():
                self._wake()
            case SubmitRead():
                self._raft(ReadIndex(now_ms=self._now_ms, ref=event.ref))
            case AwaitApplied():
                self._await_applied(event.ref, event.index)
            case Disconnect():
                self._disconnect(event.ref)
            case ChangeMembership():
                self._change_membership(event)
            case Transfer():
                self._raft(TransferLeadership(now_ms=self._now_ms, target=event.target))
            case DiskFullChanged():
                self._disk_full_changed(event.full)
            case AcknowledgeEpoch():
                self.serving.acknowledge(event.epoch, self._now_ms)
            case Drain():
                self._leave_ring()
            case _:
                assert_never(event)

    def _linger(self, event: ParticipantEvent) -> None:
        """A removed member serves nobody and wants nothing. But it may be the only one that knows
        its removal to be committed, and without its vote the others may not find out."""
        match event:
            case PeerMessages():
                for message in event.messages:
                    if not isinstance(message, LeaseRequest | LeaseGrant | HashReport | Diverged):
                        self._raft(
                            Receive(now_ms=self._now_ms, sender=event.sender, message=message)
                        )
            case StoragePersisted():
                self._raft(Persisted(now_ms=self._now_ms, seq=event.seq))
            case _:
                self._refuse(event)

    def _refuse(self, event: ParticipantEvent) -> None:
        """A removed or stopped member ends every request."""
        if isinstance(event, Submit | SubmitRead | AwaitApplied | ChangeMembership):
            removed = self.state == "removed"
            self._reject(event.ref, RejectReason.REMOVED if removed else RejectReason.STOPPED)

    def _emit(self, effect: ReplicaEffect) -> None:
        self._effects.append(effect)

    def _raft(self, event: RaftEvent) -> None:
        """Step the core; events that its effects lead to come after all of its effects."""
        self._raft_events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._raft_events:
                for effect in self.raft.step(self._raft_events.popleft()):
                    self._raft_effect(effect)
        finally:
            self._stepping = False

    def _raft_effect(self, effect: RaftEffect) -> None:
        match effect:
            case Send():
                self._effects.append(effect)
            case Persist():
                if effect.entries:
                    self.clock.arrived(effect.entries[0].index, self._now_ms)
                self._effects.append(effect)
            case Apply():
                self._apply(effect.entries)
            case ProposalAccepted():
                self._accepted(effect)
            case ProposalDropped():
                self._dropped(effect)
            case ReadReady():
                self._await_applied(effect.ref, effect.index)
            case ReadDropped():
                self._reject(effect.ref, RejectReason.NOT_LEADER)
            case RoleChanged():
                self._role_changed(effect)
            case ConfigurationChanged():
                self._configuration_changed(effect)
            case Restore():
                self._restore(effect.snapshot)
            case _:
                assert_never(effect)

    def _load(self, snapshot: Snapshot) -> None:
        state = _decode_state(snapshot.data)
        self.machine = LockMachine.restore(state.machine)
        self.genesis = state.genesis
        self.founders = founders_digest(state.genesis)
        if self.serving.restore(state.ring, self._now_ms):
            self._ring_changed()
        self.cluster_version = snapshot.meta.cluster_version
        self.clock.restored(snapshot.meta.stamp_ms, self._now_ms)
        self._snapshot_index = snapshot.meta.index
        self._log_bytes = 0

    def next_deadline_ms(self) -> int | None:
        """Return the local time at which a Wake is wanted."""
        if self.state != "member":
            return None
        deadline_ms = self.raft.next_deadline_ms()
        entry_at_ms = self._next_entry_at_ms()
        if entry_at_ms is not None and entry_at_ms > self._now_ms:
            if self._requests.has_submitted:
                deadline_ms = min(deadline_ms, entry_at_ms)
        elif entry_at_ms is not None:
            if self.machine.has_leases:
                deadline_ms = min(
                    deadline_ms, self._proposed_at_ms + self._options.stamp_interval_ms
                )
            due_ms = self.machine.next_deadline_ms()
            if due_ms is not None and self._expire_index is None:
                deadline_ms = min(deadline_ms, self.clock.local_ms(due_ms))
        if self.is_ready_leader:
            overdue_ms = self.serving.overdue_at_ms()
            if overdue_ms is not None:
                deadline_ms = min(deadline_ms, overdue_ms)
        if self._options.serves and (self.raft.leader is not None or not self._is_voter):
            deadline_ms = min(deadline_ms, self.serving.heartbeat_at_ms)
        return deadline_ms

    @property
    def is_idle_leader(self) -> bool:
        """This member leads and no entry of its commands is in flight."""
        return self.is_ready_leader and not self._requests.batches

    def check_invariants(self) -> None:
        """Raise InvariantViolation if this member contradicts itself."""
        self.machine.check_invariants()
        self.raft.check_invariants()
        if self.is_ready_leader and self.raft.role is not Role.LEADER:
            raise InvariantViolation("ready to propose without being the leader")
        if not self.is_ready_leader and self._requests.batches:
            raise InvariantViolation("entries in flight without being a ready leader")

    def removed_by(self, config_index: LogIndex, now_ms: int, effects: list[ReplicaEffect]) -> None:
        """Another member says that this one was removed in its configuration."""
        self._now_ms = now_ms
        self._effects = effects
        if self.state == "member" and config_index >= self.raft.configuration.index:
            self._removed()

    def _receive(self, sender: MemberId, message: PeerMessage) -> None:
        if self.state != "member":
            return  # an earlier message of the same envelope ended it
        if isinstance(message, HashReport):
            self._board.report(sender, message.index, message.state_hash)
            self._judge_hashes(message.index)
        elif isinstance(message, LeaseRequest):
            self._lease_requested(sender, message)
        elif isinstance(message, LeaseGrant):
            self._lease_granted(message)
        elif isinstance(message, Diverged):
            self._diverged(message.index)
        else:
            self._raft(Receive(now_ms=self._now_ms, sender=sender, message=message))

    def _removed(self) -> None:
        if self.state == "removed":
            return
        self.state = "removed"
        self.is_ready_leader = False
        self._emit(MarkRemoved())
        self._reject_all(RejectReason.REMOVED)

    def _diverged(self, index: LogIndex) -> None:
        self._stop(f"the state at index {index} differs from a quorum's", diverged=True)

    def _stop(self, reason: str, *, diverged: bool = False) -> None:
        self.state = "stopped"
        self.is_ready_leader = False
        self._emit(Stop(reason=reason, diverged=diverged))
        self._reject_all(RejectReason.STOPPED)

    # --- Leading --------------------------------------------------------------------------------

    def _role_changed(self, effect: RoleChanged) -> None:
        self._emit(effect)
        self.serving.heartbeat_soon(self._now_ms)
        if effect.role is not Role.LEADER:
            self.serving.resign()
            self.clock.resigned()
            self.is_ready_leader = False
            self._reject_all(RejectReason.NOT_LEADER)
        self._board = HashBoard()

    def _become_ready(self) -> None:
        """This leader's no-op is applied: everything of earlier leaders is, too."""
        self.is_ready_leader = True
        self.serving.lead(self._now_ms)
        self._expire_index = None
        # A stamp at once: the time between two leaders must not depend on this one living long.
        self._proposed_at_ms = self._now_ms - self._options.stamp_interval_ms
        self._flush_wanted = True
        if self.disk_full:
            self._hand_over()

    def _hand_over(self) -> None:
        self._hand_over_at_ms = self._now_ms + HAND_OVER_INTERVAL_MS
        self._raft(TransferLeadership(now_ms=self._now_ms))

    def _wake(self) -> None:
        if self.raft.next_deadline_ms() <= self._now_ms:
            self._raft(Tick(now_ms=self._now_ms))
        if self._options.serves and self.serving.heartbeat_at_ms <= self._now_ms:
            self._heartbeat()
        if not self.is_ready_leader:
            return
        for command in self.serving.overdue(self._now_ms):
            self._requests.submit(NO_REF, command)
        if self._now_ms >= self._policy_at_ms:
            self._policy_at_ms = self._now_ms + POLICY_INTERVAL_MS
            self._pursue_policy()
        if self.is_ready_leader:
            self._flush()

    def _pursue_policy(self) -> None:
        if self.disk_full and self._now_ms >= self._hand_over_at_ms:
            self._hand_over()  # the one before failed
            return
        self._propose_version()
        configuration = self.raft.configuration
        change = next_change(
            configuration,
            self.member_id,
            standings(self.raft, self._now_ms),
            ceiling=self._options.voters,
            takeover_ms=self._options.name_takeover_ms,
        )
        if change is not None and self.is_ready_leader:
            self._propose_config(NO_REF, change, configuration.index)

    def _propose_version(self) -> None:
        """Raise the cluster version once every member supports the next one."""
        wanted = self.cluster_version + 1
        if self._options.supported_versions[1] < wanted:
            return
        for member in self.raft.configuration.members:
            lowest, highest = self.versions.get(member.id, (0, 0))
            if member.id != self.member_id and not lowest <= wanted <= highest:
                return
        self._raft(
            Propose(
                now_ms=self._now_ms,
                ref=_OWN,
                kind=EntryKind.VERSION,
                stamp_ms=self.clock.stamp(self._now_ms),
                payload=_encode(wanted),
            )
        )

    def _heartbeat(self) -> None:
        """Ask the leader for this node's lease.

        A learner that knows no leader asks one member after another: it says nothing else, so
        nobody else could tell it that it was removed.
        """
        configuration = self.raft.configuration
        request = self.serving.heartbeat(configuration, self._now_ms)
        if request is None:
            return
        asked = self.raft.leader
        if asked is None and not self._is_voter:
            others = [one.id for one in configuration.members if one.id != self.member_id]
            asked = others[request.sequence % len(others)] if others else None
        if asked == self.member_id:
            self._lease_requested(asked, request)
        elif asked is not None:
            self._emit(SendPeer(to=asked, message=request))

    @property
    def _is_voter(self) -> bool:
        return self.member_id in self.raft.configuration.voters

    def _lease_requested(self, sender: MemberId, request: LeaseRequest) -> None:
        # A step of the core judges the contact to the quorum at this very moment.
        self._raft(Tick(now_ms=self._now_ms))
        verdict = self.serving.judge(
            request,
            sender,
            self.raft.configuration,
            now_ms=self._now_ms,
            quorum_contact_ms=self.raft.quorum_contact_ms,
        )
        if verdict.command is not None:
            self._requests.submit(NO_REF, verdict.command)
            self._flush_wanted = True
        if verdict.grant is None:
            return
        if sender == self.member_id:
            self._lease_granted(verdict.grant)
        else:
            self._emit(SendPeer(to=sender, message=verdict.grant))

    def _lease_granted(self, grant: LeaseGrant) -> None:
        ends_ms = self.serving.granted(grant)
        if ends_ms:
            self._emit(LeaseHeld(epoch=grant.epoch, ends_ms=ends_ms))

    def _leave_ring(self) -> None:
        """The lease is given up before a heartbeat says so: no other waits for its end then."""
        epoch = self.serving.leave(self._now_ms)
        if epoch is not None:
            self._emit(LeaseHeld(epoch=epoch, ends_ms=0))

    def _ring_changed(self) -> None:
        self._emit(RingChanged(ring=self.serving.ring))
        if self._options.acknowledge_at_once:
            self.serving.acknowledge(self.serving.ring.epoch, self._now_ms)

    def _submit(self, ref: int, command: LockCommand) -> None:
        if self.raft.role is not Role.LEADER:
            self._reject(ref, RejectReason.NOT_LEADER)
        elif self.disk_full:
            self._reject(ref, RejectReason.DISK_FULL)
        elif self._requests.count >= self._options.max_pending and self._is_too_much(command):
            self._reject(ref, RejectReason.OVERLOADED)
        elif isinstance(command, Cancel) and self._is_awaited(command):
            self._reply(ref, Done())
        else:
            self._requests.submit(ref, command)

    def _is_too_much(self, command: LockCommand) -> bool:
        """Whether a command is refused while that many wait.

        What ends or prolongs something never is: it is what makes waits end well. And requests that
        wait in queues keep out only what would wait there too, since they cost the leader nothing.
        """
        if isinstance(command, Acquire | Upgrade) and command.wait_ms > 0:
            return True
        begins = isinstance(command, Acquire | Upgrade | OpenSession)
        return begins and self._requests.submitted_count >= self._options.max_pending

    def _is_awaited(self, command: Cancel) -> bool:
        """Whether another connection waits here for what a node that lost its client gives up."""
        return self._requests.parked_gone(command.key, command.attempt) is None

    def _flush(self) -> None:
        """Propose what waits, one entry after another while there is room."""
        requests = self._requests
        while self._may_propose():
            expire = self._due()
            if expire is None and not requests.has_submitted and not self._stamp_is_due():
                return
            if not self._propose_batch(requests.take_batch(expire, self._options.flush_bytes)):
                return  # what was refused once would be refused again

    def _may_propose(self) -> bool:
        """Whether an entry would be taken now. What waits is flushed once it would."""
        entry_at_ms = self._next_entry_at_ms()
        return entry_at_ms is not None and entry_at_ms <= self._now_ms

    def _next_entry_at_ms(self) -> int | None:
        """Return when an entry would be taken; None: not before one is applied, or not here.

        What comes while an entry is in flight shares the next one, since an entry costs its leader
        several times what a command does (docs/decisions.md). Only where an entry takes long does
        the next one follow it on its way.
        """
        in_flight = len(self._requests.batches)
        if (
            not self.is_ready_leader
            or self.raft.transfer_target is not None
            or in_flight >= self._options.max_inflight_entries
        ):
            return None
        return self._proposed_at_ms + self._options.pipeline_after_ms if in_flight else self._now_ms

    def _due(self) -> Expire | None:
        if self._expire_index is not None:
            return None
        return self.machine.due(self.clock.read(self._now_ms))

    def _stamp_is_due(self) -> bool:
        return (
            self.machine.has_leases
            and self._now_ms - self._proposed_at_ms >= self._options.stamp_interval_ms
        )

    def _propose_batch(self, batch: Batch) -> bool:
        """Propose a batch; returns whether it is in flight."""
        in_flight = len(self._requests.batches)
        self._proposing = batch
        self._proposed_at_ms = self._now_ms
        self._raft(
            Propose(
                now_ms=self._now_ms,
                ref=_BATCH,
                kind=EntryKind.COMMANDS,
                stamp_ms=self.clock.stamp(self._now_ms),
                payload=_encode(batch.commands),
            )
        )
        return len(self._requests.batches) > in_flight

    def _accepted(self, effect: ProposalAccepted) -> None:
        if effect.ref == _BATCH:
            batch, self._proposing = self._proposing, None
            if batch is None:
                raise InvariantViolation("an entry was accepted that nobody proposed")
            batch.term = effect.term
            self._requests.batches[effect.index] = batch
            if batch.expires:
                self._expire_index = effect.index
        elif effect.ref > 0:
            self._admin[effect.ref] = effect.index

    def _dropped(self, effect: ProposalDropped) -> None:
        if effect.ref == _BATCH:
            batch, self._proposing = self._proposing, None
            if batch is None:
                raise InvariantViolation("an entry was dropped that nobody proposed")
            for command in batch.commands:
                if isinstance(command, EnterRing | LeaveRing):
                    self.serving.proposal_failed(command)
            overloaded = effect.reason is DropReason.OVERLOADED
            for ref in batch.all_refs():
                self._reject(
                    ref, RejectReason.OVERLOADED if overloaded else RejectReason.NOT_LEADER
                )
        elif effect.ref > 0:
            self._reject(effect.ref, _CONFIG_REASONS.get(effect.reason, _CONFLICT))

    # --- Applying -------------------------------------------------------------------------------

    def _apply(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            self._apply_entry(entry)
        changes = self.machine.take_changes()
        if changes:
            self._emit(LocksChanged(names=tuple(changes)))
        for ref in self._requests.applied(entries[-1].index):
            self._emit(ReadAt(ref=ref))
        self._maybe_snapshot(entries[-1])
        if self.member_id in self.raft.configuration.removed:
            self._removed()

    def _apply_entry(self, entry: Entry) -> None:
        raft = self.raft
        if entry.kind is not EntryKind.NOOP:
            self.clock.applied(entry.index, entry.stamp_ms)
        self._log_bytes += len(entry.payload) + 64
        match entry.kind:
            case EntryKind.COMMANDS:
                self._apply_commands(entry)
            case EntryKind.CONFIG:
                self._applied_config(entry)
            case EntryKind.VERSION:
                version = _decode_version(entry.payload)
                self.cluster_version = max(self.cluster_version, version)
                if version > self._options.supported_versions[1]:
                    self._stop(f"the cluster has moved to version {version}; upgrade this node")
            case EntryKind.NOOP:
                if entry.term == raft.term and raft.role is Role.LEADER:
                    self._become_ready()
            case _:
                assert_never(entry.kind)
        if entry.index % self._options.hash_interval == 0:
            self._report_hash(entry.index)

    def _apply_commands(self, entry: Entry) -> None:
        batch = self._requests.batches.pop(entry.index, None)
        machine = self.machine
        if batch is None:
            for command in _decode_commands(entry.payload):
                if isinstance(command, EnterRing | LeaveRing):
                    self._apply_ring(command)
                else:
                    machine.apply(command, entry.stamp_ms)
            # Nobody waits here; what became of waits is told where their connections are.
            machine.take_notices()
            return
        if batch.term != entry.term:
            raise InvariantViolation("an entry in flight was replaced while its leader led")
        if batch.expires:
            self._expire_index = None
        for command, ref in zip(batch.commands, batch.refs, strict=True):
            if isinstance(command, EnterRing | LeaveRing):
                self._apply_ring(command)
                continue
            outcome = machine.apply(command, entry.stamp_ms)
            if ref:
                self._answer(ref, command, outcome)
            for notice in machine.take_notices():
                self._notify(notice)
        for session, refs in batch.keepalives.items():
            for ref in refs:
                self._reply(ref, self._kept_alive(session))
        self._flush_wanted = True

    def _apply_ring(self, command: RingCommand) -> None:
        if self.serving.apply(command, self._now_ms):
            self._ring_changed()

    def _answer(self, ref: int, command: LockCommand, outcome: Outcome) -> None:
        abandoned = ref in self._requests.abandoned
        self._requests.abandoned.discard(ref)
        if isinstance(outcome, Waiting):
            if not isinstance(command, Acquire | Upgrade):
                raise InvariantViolation(f"{type(command).__name__} cannot wait")
            if abandoned:
                attempt = self._requests.parked_gone(command.key, outcome.attempt)
                if attempt is not None:
                    self._cancel(command.key, attempt)
            else:
                self._requests.park(ref, command.key, outcome.attempt)
                self._emit(Parked(ref=ref, attempt=outcome.attempt))
        elif not abandoned:
            self._reply(ref, outcome)

    def _notify(self, notice: Notice) -> None:
        for ref in self._requests.unpark(notice.key):
            self._reply(ref, notice.outcome)

    def _kept_alive(self, session: SessionId) -> Outcome:
        deadline_ms = self.machine.session_deadline_ms(session)
        if deadline_ms is None:
            return Refused(code=RefusalCode.SESSION_NOT_FOUND, name=session)
        return Done(deadline_ms=deadline_ms)

    def _reply(self, ref: int, outcome: Outcome) -> None:
        deadline_ms = outcome.deadline_ms if isinstance(outcome, Granted | Done) else 0
        remaining_ms = max(0, deadline_ms - self.clock.read(self._now_ms)) if deadline_ms else 0
        self._emit(Reply(ref=ref, outcome=outcome, remaining_ms=remaining_ms))

    def _applied_config(self, entry: Entry) -> None:
        change = decode_change(entry.payload)
        # Here, in the order of the log, and not when the core reports it after all its entries.
        if change.operation is ConfigOperation.REMOVE and self.serving.remove_member(
            change.member.id, self._now_ms
        ):
            self._ring_changed()
        for ref, index in list(self._admin.items()):
            if index == entry.index:
                del self._admin[ref]
                self._emit(AdminDone(ref=ref, configuration=self.raft.configuration))

    def _configuration_changed(self, effect: ConfigurationChanged) -> None:
        self._emit(effect)
        present = {member.id for member in effect.configuration.members}
        for member_id in [known for known in self.versions if known not in present]:
            del self.versions[member_id]

    def _report_hash(self, index: LogIndex) -> None:
        state_hash = self.machine.state_hash() ^ self.serving.ring.hash()
        self._board.report(self.member_id, index, state_hash)
        if self.is_ready_leader:
            self._judge_hashes(index)
        elif self.raft.leader is not None and self.raft.leader != self.member_id:
            self._emit(
                SendPeer(
                    to=self.raft.leader, message=HashReport(index=index, state_hash=state_hash)
                )
            )

    def _judge_hashes(self, index: LogIndex) -> None:
        if not self.is_ready_leader:
            return
        for member_id in self._board.diverged(index, self.raft.configuration.voters):
            if member_id == self.member_id:
                self._diverged(index)
                return
            self._emit(SendPeer(to=member_id, message=Diverged(index=index)))

    def _maybe_snapshot(self, last: Entry) -> None:
        if (
            self._log_bytes < self._options.snapshot_log_bytes
            and last.index - self._snapshot_index < self._options.snapshot_entries
        ):
            return
        self._log_bytes = 0
        self._snapshot_index = last.index
        snapshot = Snapshot(
            meta=SnapshotMeta(
                cluster_id=self.cluster_id,
                index=last.index,
                term=last.term,
                stamp_ms=last.stamp_ms,
                cluster_version=self.cluster_version,
                configuration=self.raft.configuration,
            ),
            data=_encode(
                ReplicaState(
                    machine=self.machine.snapshot(), genesis=self.genesis, ring=self.serving.ring
                )
            ),
        )
        self._raft(Compact(now_ms=self._now_ms, snapshot=snapshot))

    def _restore(self, snapshot: Snapshot) -> None:
        self._load(snapshot)
        self._emit(LocksChanged(names=()))
        for ref in self._requests.applied(snapshot.meta.index):
            self._emit(ReadAt(ref=ref))
        if self.member_id in snapshot.meta.configuration.removed:
            self._removed()

    # --- Requests -------------------------------------------------------------------------------

    def _await_applied(self, ref: int, index: LogIndex) -> None:
        if self.raft.applied_index >= index:
            self._emit(ReadAt(ref=ref))
        else:
            self._requests.await_applied(ref, index)

    def _disconnect(self, ref: int) -> None:
        wait = self._requests.disconnect(ref)
        if wait is not None:
            self._cancel(*wait)

    def _cancel(self, key: RequestKey, attempt: int) -> None:
        self._requests.submit(NO_REF, Cancel(key=key, attempt=attempt))
        self._flush_wanted = True

    def _change_membership(self, event: ChangeMembership) -> None:
        configuration = self.raft.configuration
        seen = standings(self.raft, self._now_ms)
        if not self.is_ready_leader:
            self._reject(event.ref, RejectReason.NOT_LEADER)
        elif is_in_force(configuration, event):
            self._emit(AdminDone(ref=event.ref, configuration=configuration))
        elif takes_a_live_name(configuration, event, seen, self._options.name_takeover_ms):
            self._reject(event.ref, RejectReason.NAME_TAKEN)
        else:
            known = configuration.member(event.member.id)
            keeps_place = known is not None and event.operation is not ConfigOperation.UPDATE
            member = known if known is not None and keeps_place else event.member
            change = ConfigChange(operation=event.operation, member=member)
            self._propose_config(event.ref, change, event.expected_config_index)

    def _propose_config(
        self, ref: int, change: ConfigChange, expected_index: LogIndex | None
    ) -> None:
        self._raft(
            ProposeConfig(
                now_ms=self._now_ms,
                ref=ref or _OWN,
                stamp_ms=self.clock.stamp(self._now_ms),
                change=change,
                expected_config_index=expected_index,
            )
        )

    def _disk_full_changed(self, full: bool) -> None:
        self.disk_full = full
        if full and self.is_ready_leader:
            self._hand_over()

    def _reject(self, ref: int, reason: RejectReason) -> None:
        self._emit(Rejected(ref=ref, reason=reason, leader=self.raft.leader))

    def _reject_all(self, reason: RejectReason) -> None:
        """End every request that waits for an outcome of this member as a leader.

        `reason` is for what was never proposed; of the rest nobody knows what becomes of it, also
        when this member stops or is removed: its entries may be committed without it.
        """
        unproposed, proposed = self._requests.drain()
        for ref in unproposed:
            self._reject(ref, reason)
        for ref in [*proposed, *self._admin]:
            self._reject(ref, RejectReason.LEADERSHIP_LOST)
        self._admin.clear()
        self._expire_index = None
        if self.state in ("removed", "stopped"):
            for ref in self._requests.drain_reads():
                self._reject(ref, reason)


# Refs of entries that no administrator asked for; those of administrators are positive.
_BATCH = 0
_OWN = -1
_CONFLICT = RejectReason.CONFIG_CONFLICT
_CONFIG_REASONS = {
    DropReason.NOT_LEADER: RejectReason.NOT_LEADER,
    DropReason.TRANSFERRING: RejectReason.NOT_LEADER,
    DropReason.NOT_READY: RejectReason.NOT_LEADER,
    DropReason.OVERLOADED: RejectReason.OVERLOADED,
    DropReason.NOT_CAUGHT_UP: RejectReason.NOT_CAUGHT_UP,
}
