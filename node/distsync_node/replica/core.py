"""A replica: consensus, lock state, leader time and the requests that wait, without any I/O.

What it guarantees, given a shell that executes effects in order and a disk that keeps its word:

- A command is answered with an outcome only after its entry is committed and applied here.
- `Rejected(NOT_LEADER)` means nothing was proposed; `LEADERSHIP_LOST` that it may have been. A
  retry under the same key attaches to the first attempt, so neither loses nor doubles anything.
- Commands are proposed only by a leader whose no-op is applied, under stamps that never go back.
- An empty member belongs to no cluster until a bootstrap that lists its very id, or a message that
  is addressed to its very id, and it adopts at most one cluster, durably, before it votes.
- Messages of another cluster, to another id or from a removed id change nothing.
- A member whose state differs from a quorum's, or that was removed, answers nothing any more.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, Protocol, assert_never

import msgspec

from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Done,
    Expire,
    Granted,
    LockCommand,
    Notice,
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
from distsync_node.raft.types import (
    Apply,
    Compact,
    ConfigChange,
    ConfigOperation,
    Configuration,
    ConfigurationChanged,
    DropReason,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Member,
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
    Term,
    Tick,
    TransferLeadership,
)
from distsync_node.replica.clock import LeaderClock
from distsync_node.replica.divergence import HashBoard
from distsync_node.replica.policy import Standing, next_change, wanted_voters
from distsync_node.replica.requests import NO_REF, Batch, Requests
from distsync_node.replica.types import (
    AdminDone,
    Answer,
    AnswerCode,
    AnswerEnvelope,
    AwaitApplied,
    Bootstrap,
    ChangeMembership,
    Disconnect,
    DiskFullChanged,
    Diverged,
    Envelope,
    Flush,
    HashReport,
    Initialise,
    LocksChanged,
    MarkRemoved,
    Parked,
    PeerMessage,
    ReadAt,
    ReceiveAnswer,
    ReceiveEnvelope,
    Rejected,
    RejectReason,
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    ReplicaState,
    Reply,
    SendPeer,
    Stop,
    StorageInitialised,
    StoragePersisted,
    Submit,
    SubmitRead,
    Transfer,
    Wake,
)

POLICY_INTERVAL_MS = 200
CAUGHT_UP_ENTRIES = 100

State = Literal["uninitialised", "joining", "member", "removed", "stopped"]

_encode = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(list[LockCommand]).decode
_decode_state = msgspec.msgpack.Decoder(ReplicaState).decode
_decode_version = msgspec.msgpack.Decoder(int).decode


class Random(Protocol):
    """A seeded generator."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def randint(self, a: int, b: int) -> int:
        """Return an integer in [a, b]."""
        ...


def genesis_snapshot(cluster_id: str, members: tuple[Member, ...], version: int) -> Snapshot:
    """Return the first snapshot of a cluster: the same bytes on every member of the list."""
    voters = wanted_voters(len(members), 7)
    listed = tuple(
        msgspec.structs.replace(member, voter=position < voters)
        for position, member in enumerate(members)
    )
    configuration = Configuration(
        index=LogIndex(1), members=tuple(sorted(listed, key=lambda member: member.id))
    )
    return _first_snapshot(cluster_id, LogIndex(1), Term(1), version, configuration, members)


def _first_snapshot(
    cluster_id: str,
    index: LogIndex,
    term: Term,
    version: int,
    configuration: Configuration,
    genesis: tuple[Member, ...],
) -> Snapshot:
    return Snapshot(
        meta=SnapshotMeta(
            cluster_id=cluster_id,
            index=index,
            term=term,
            stamp_ms=0,
            cluster_version=version,
            configuration=configuration,
        ),
        data=_encode(ReplicaState(machine=LockMachine().snapshot(), genesis=genesis)),
    )


class Replica:
    """One member; see the module's docstring. `step` is the only entry."""

    def __init__(
        self,
        member_id: MemberId,
        *,
        options: ReplicaOptions,
        raft_options: RaftOptions,
        rng: Random,
        now_ms: int,
        recovered: RecoveredState | None = None,
        removed: bool = False,
    ) -> None:
        self.member_id = member_id
        self._options = options
        self._raft_options = raft_options
        self._rng = rng
        self._now_ms = now_ms
        self._effects: list[ReplicaEffect] = []
        self.raft: RaftCore | None = None
        self.machine = LockMachine()
        self.clock = LeaderClock(0, now_ms)
        self.cluster_id = ""
        self.cluster_version = options.supported_versions[0]
        self.disk_full = False
        self._genesis: tuple[Member, ...] = ()
        self._requests = Requests()
        self._admin: dict[int, LogIndex] = {}
        self._bootstrap_refs: list[int] = []
        self._initialising: Snapshot | None = None
        self._proposing: Batch | None = None
        self._raft_events: deque[RaftEvent] = deque()
        self._stepping = False
        self._flush_wanted = False
        self._ready = False
        self._expire_index: LogIndex | None = None
        self._last_stamp_at_ms = now_ms
        self._policy_at_ms = now_ms
        self._board = HashBoard()
        self._versions: dict[MemberId, tuple[int, int]] = {}
        self._log_bytes = 0
        self._snapshot_index = LogIndex(0)
        self.state: State = "removed" if removed else "uninitialised"
        if recovered is not None:
            self._start(recovered)

    # --- Reading ------------------------------------------------------------------------------

    @property
    def leader(self) -> MemberId | None:
        """The leader this member knows of."""
        return self.raft.leader if self.raft is not None else None

    @property
    def is_ready_leader(self) -> bool:
        """This member leads and its no-op is applied."""
        return self._ready

    @property
    def configuration(self) -> Configuration:
        """The membership in force here."""
        if self.raft is None:
            return Configuration(index=LogIndex(0), members=())
        return self.raft.configuration

    def envelope(self, to: MemberId, messages: tuple[PeerMessage, ...]) -> Envelope:
        """Wrap messages for a member."""
        return Envelope(
            cluster_id=self.cluster_id,
            sender=self.member_id,
            to=to,
            versions=self._options.supported_versions,
            messages=messages,
        )

    def next_deadline_ms(self) -> int | None:
        """Return the local time at which a Wake is wanted."""
        if self.raft is None or self.state != "member":
            return None
        deadline_ms = self.raft.next_deadline_ms()
        if self._ready:
            if self.machine.has_leases:
                deadline_ms = min(
                    deadline_ms, self._last_stamp_at_ms + self._options.stamp_interval_ms
                )
            due_ms = self.machine.next_deadline_ms()
            if due_ms is not None and self._expire_index is None:
                deadline_ms = min(deadline_ms, self.clock.local_ms(due_ms))
        return deadline_ms

    def check_invariants(self) -> None:
        """Raise InvariantViolation if this replica contradicts itself."""
        self.machine.check_invariants()
        if self.raft is None:
            return
        self.raft.check_invariants()
        if self._ready and self.raft.role is not Role.LEADER:
            raise InvariantViolation("ready to propose without being the leader")
        if not self._ready and self._requests.batches:
            raise InvariantViolation("entries in flight without being a ready leader")

    # --- Stepping -----------------------------------------------------------------------------

    def step(self, event: ReplicaEvent) -> list[ReplicaEffect]:
        """Take one event; return what is to be done, in order."""
        self._now_ms = event.now_ms
        self._effects = []
        self._dispatch(event)
        if self._flush_wanted:
            self._flush_wanted = False
            self._flush()
        return self._effects

    def _dispatch(self, event: ReplicaEvent) -> None:
        match event:
            case Submit():
                self._submit(event.ref, event.command)
            case Flush():
                self._flush()
            case ReceiveEnvelope():
                self._receive_envelope(event.envelope)
            case ReceiveAnswer():
                self._receive_answer(event.answer)
            case StoragePersisted():
                if self.raft is not None:
                    self._raft(Persisted(now_ms=self._now_ms, seq=event.seq))
            case Wake():
                self._wake()
            case SubmitRead():
                self._submit_read(event.ref)
            case AwaitApplied():
                self._await_applied(event.ref, event.index)
            case Disconnect():
                self._disconnect(event.ref)
            case Bootstrap():
                self._bootstrap(event)
            case StorageInitialised():
                self._initialised()
            case ChangeMembership():
                self._change_membership(event)
            case Transfer():
                if self.raft is not None and self.state == "member":
                    self._raft(TransferLeadership(now_ms=self._now_ms, target=event.target))
            case DiskFullChanged():
                self._disk_full_changed(event.full)
            case _:
                assert_never(event)

    def _emit(self, effect: ReplicaEffect) -> None:
        self._effects.append(effect)

    def _raft(self, event: RaftEvent) -> None:
        """Step the core; events that its effects lead to come after all of its effects."""
        if self.raft is None:
            raise InvariantViolation("a consensus event without a cluster")
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
            case Send() | Persist():
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

    # --- Belonging to a cluster ----------------------------------------------------------------

    def _start(self, recovered: RecoveredState) -> None:
        """Become the member that the disk remembers."""
        meta = recovered.snapshot.meta
        self.cluster_id = meta.cluster_id
        self._load(recovered.snapshot)
        self.raft = RaftCore(recovered, self._raft_options, self._rng, self._now_ms)
        if self.state != "removed":
            self.state = "member"

    def _load(self, snapshot: Snapshot) -> None:
        state = _decode_state(snapshot.data)
        self.machine = LockMachine.restore(state.machine)
        self._genesis = state.genesis
        self.cluster_version = snapshot.meta.cluster_version
        self.clock.applied(snapshot.meta.stamp_ms, self._now_ms, leading=False)
        self._snapshot_index = snapshot.meta.index
        self._log_bytes = 0

    def _bootstrap(self, event: Bootstrap) -> None:
        if self.state == "removed":
            self._reject(event.ref, RejectReason.REMOVED)
        elif self.raft is not None or self._initialising is not None:
            self._bootstrap_again(event)
        elif not any(member.id == self.member_id for member in event.members):
            self._reject(event.ref, RejectReason.NOT_LISTED)
        else:
            self._bootstrap_refs.append(event.ref)
            version = self._options.supported_versions[0]
            self._initialise(genesis_snapshot(event.cluster_id, event.members, version))

    def _bootstrap_again(self, event: Bootstrap) -> None:
        """The same genesis again is fine; a member that joined knows only the cluster's id."""
        cluster_id, genesis = self.cluster_id, self._genesis
        if self._initialising is not None:
            cluster_id = self._initialising.meta.cluster_id
            genesis = _decode_state(self._initialising.data).genesis
        ids = tuple(member.id for member in event.members)
        if cluster_id != event.cluster_id or (
            genesis and tuple(member.id for member in genesis) != ids
        ):
            self._reject(event.ref, RejectReason.ALREADY_BOOTSTRAPPED)
        elif self._initialising is not None:
            self._bootstrap_refs.append(event.ref)
        else:
            self._emit(AdminDone(ref=event.ref, configuration=self.configuration))

    def _initialise(self, snapshot: Snapshot) -> None:
        self._initialising = snapshot
        self.state = "joining"
        self._emit(
            Initialise(snapshot=snapshot, hard_state=HardState(term=snapshot.meta.term, vote=None))
        )

    def _initialised(self) -> None:
        snapshot = self._initialising
        if snapshot is None:
            raise InvariantViolation("the disk reports a genesis that nobody asked for")
        self._initialising = None
        self._start(
            RecoveredState(
                member_id=self.member_id,
                hard_state=HardState(term=snapshot.meta.term, vote=None),
                snapshot=snapshot,
                entries=(),
            )
        )
        self._emit(ConfigurationChanged(configuration=self.configuration))
        for ref in self._bootstrap_refs:
            self._emit(AdminDone(ref=ref, configuration=self.configuration))
        self._bootstrap_refs = []

    def _receive_envelope(self, envelope: Envelope) -> None:
        code = self._judge(envelope)
        self._emit(
            AnswerEnvelope(
                answer=Answer(
                    code=code,
                    cluster_id=self.cluster_id,
                    member_id=self.member_id,
                    config_index=self.configuration.index,
                    versions=self._options.supported_versions,
                )
            )
        )
        if code is not AnswerCode.ACCEPTED:
            return
        if self.raft is None:
            self._adopt(envelope.cluster_id)
            return
        self._versions[envelope.sender] = envelope.versions
        for message in envelope.messages:
            self._receive(envelope.sender, message)

    def _judge(self, envelope: Envelope) -> AnswerCode:
        if self.state in ("removed", "stopped"):
            return AnswerCode.NOT_SERVING
        if envelope.to != self.member_id:
            return AnswerCode.MEMBER_MISMATCH
        if self.raft is None:
            adopting = self._initialising
            if adopting is not None and adopting.meta.cluster_id != envelope.cluster_id:
                return AnswerCode.CLUSTER_MISMATCH
            return AnswerCode.ACCEPTED
        if envelope.cluster_id != self.cluster_id:
            return AnswerCode.CLUSTER_MISMATCH
        if envelope.sender in self.raft.configuration.removed:
            return AnswerCode.SENDER_REMOVED
        return AnswerCode.ACCEPTED

    def _adopt(self, cluster_id: str) -> None:
        """A member of that cluster knows this very id: join it with an empty log."""
        if self._initialising is not None:
            return
        blank = Configuration(index=LogIndex(0), members=())
        version = self._options.supported_versions[0]
        self._initialise(
            _first_snapshot(cluster_id, LogIndex(0), Term(0), version, blank, genesis=())
        )

    def _receive(self, sender: MemberId, message: PeerMessage) -> None:
        if self.raft is None or self.state != "member":
            return
        if isinstance(message, HashReport):
            self._board.report(sender, message.index, message.state_hash)
            self._judge_hashes(message.index)
        elif isinstance(message, Diverged):
            self._stop(f"the state at index {message.index} differs from a quorum's")
        else:
            self._raft(Receive(now_ms=self._now_ms, sender=sender, message=message))

    def _receive_answer(self, answer: Answer) -> None:
        if self.raft is None or answer.cluster_id != self.cluster_id:
            return
        if answer.code is AnswerCode.SENDER_REMOVED:
            if answer.config_index >= self.raft.configuration.index:
                self._removed()
        elif answer.code is AnswerCode.ACCEPTED:
            self._versions[answer.member_id] = answer.versions
            for message in answer.messages:
                self._receive(answer.member_id, message)

    def _removed(self) -> None:
        if self.state == "removed":
            return
        self.state = "removed"
        self._ready = False
        self._emit(MarkRemoved())
        self._reject_all(RejectReason.REMOVED)

    def _stop(self, reason: str) -> None:
        self.state = "stopped"
        self._ready = False
        self._emit(Stop(reason=reason))
        self._reject_all(RejectReason.STOPPED)

    # --- Leading --------------------------------------------------------------------------------

    def _role_changed(self, effect: RoleChanged) -> None:
        self._emit(effect)
        if self._ready and effect.role is not Role.LEADER:
            self._ready = False
            self._reject_all(RejectReason.LEADERSHIP_LOST)
        elif effect.role is not Role.LEADER:
            self._reject_all(RejectReason.NOT_LEADER)
        self._board = HashBoard()

    def _become_ready(self) -> None:
        """This leader's no-op is applied: everything of earlier leaders is, too."""
        self._ready = True
        self._expire_index = None
        # A stamp at once: the time between two leaders must not depend on this one living long.
        self._last_stamp_at_ms = self._now_ms - self._options.stamp_interval_ms
        self._flush_wanted = True
        if self.disk_full:
            self._raft(TransferLeadership(now_ms=self._now_ms))

    def _wake(self) -> None:
        if self.raft is None or self.state != "member":
            return
        if self.raft.next_deadline_ms() <= self._now_ms:
            self._raft(Tick(now_ms=self._now_ms))
        if not self._ready:
            return
        if self._now_ms >= self._policy_at_ms:
            self._policy_at_ms = self._now_ms + POLICY_INTERVAL_MS
            self._pursue_policy()
        if self._ready:
            self._flush()

    def _pursue_policy(self) -> None:
        raft = self.raft
        if raft is None:
            return
        self._propose_version()
        change = next_change(
            raft.configuration,
            self.member_id,
            self._standings(raft),
            ceiling=self._options.voters,
            takeover_ms=self._options.name_takeover_ms,
        )
        if change is not None and self._ready:
            self._propose_config(NO_REF, change, raft.configuration.index)

    def _standings(self, raft: RaftCore) -> dict[MemberId, Standing]:
        standings = {}
        progress = raft.progress()
        for member in raft.configuration.members:
            if member.id == self.member_id:
                standings[member.id] = Standing(silent_ms=0, caught_up=True)
            elif (known := progress.get(member.id)) is not None:
                contact_ms = known.last_contact_ms
                standings[member.id] = Standing(
                    silent_ms=1 << 40 if contact_ms is None else self._now_ms - contact_ms,
                    caught_up=known.match_index + CAUGHT_UP_ENTRIES >= raft.commit_index,
                )
            else:
                standings[member.id] = Standing(silent_ms=1 << 40, caught_up=False)
        return standings

    def _propose_version(self) -> None:
        """Raise the cluster version once every member supports the next one."""
        raft = self.raft
        wanted = self.cluster_version + 1
        if raft is None or self._options.supported_versions[1] < wanted:
            return
        for member in raft.configuration.members:
            lowest, highest = self._versions.get(member.id, (0, 0))
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

    def _submit(self, ref: int, command: LockCommand) -> None:
        raft = self.raft
        if raft is None or self.state != "member":
            self._reject(ref, _STATE_REASONS.get(self.state, RejectReason.UNINITIALISED))
        elif raft.role is not Role.LEADER:
            self._reject(ref, RejectReason.NOT_LEADER)
        elif self.disk_full:
            self._reject(ref, RejectReason.DISK_FULL)
        elif self._requests.count >= self._options.max_pending:
            self._reject(ref, RejectReason.OVERLOADED)
        else:
            self._requests.submit(ref, command)

    def _flush(self) -> None:
        """Propose what waits, one entry after another while there is room."""
        requests = self._requests
        while self._ready and len(requests.batches) < self._options.max_inflight_entries:
            expire = self._due()
            if expire is None and not requests.has_submitted and not self._stamp_is_due():
                return
            self._propose_batch(requests.take_batch(expire, self._options.flush_bytes))

    def _due(self) -> Expire | None:
        if self._expire_index is not None:
            return None
        return self.machine.due(self.clock.read(self._now_ms))

    def _stamp_is_due(self) -> bool:
        return (
            self.machine.has_leases
            and self._now_ms - self._last_stamp_at_ms >= self._options.stamp_interval_ms
        )

    def _propose_batch(self, batch: Batch) -> None:
        self._proposing = batch
        self._last_stamp_at_ms = self._now_ms
        self._raft(
            Propose(
                now_ms=self._now_ms,
                ref=_BATCH,
                kind=EntryKind.COMMANDS,
                stamp_ms=self.clock.stamp(self._now_ms),
                payload=_encode(batch.commands),
            )
        )

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
        raft = self.raft
        if raft is None:
            raise InvariantViolation("applied entries without a cluster")
        for ref in self._requests.applied(entries[-1].index):
            self._emit(ReadAt(ref=ref))
        self._maybe_snapshot(raft, entries[-1])
        if self.member_id in raft.configuration.removed:
            self._removed()

    def _apply_entry(self, entry: Entry) -> None:
        raft = self.raft
        if raft is None:
            raise InvariantViolation("applied an entry without a cluster")
        self.clock.applied(entry.stamp_ms, self._now_ms, leading=raft.role is Role.LEADER)
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
                machine.apply(command, entry.stamp_ms)
            # Nobody waits here; what became of waits is told where their connections are.
            machine.take_notices()
            return
        if batch.term != entry.term:
            raise InvariantViolation("an entry in flight was replaced while its leader led")
        if batch.expires:
            self._expire_index = None
        for command, ref in zip(batch.commands, batch.refs, strict=True):
            outcome = machine.apply(command, entry.stamp_ms)
            if ref:
                self._answer(ref, command, outcome)
            for notice in machine.take_notices():
                self._notify(notice)
        for session, refs in batch.keepalives.items():
            for ref in refs:
                self._reply(ref, self._kept_alive(session))
        self._flush_wanted = True

    def _answer(self, ref: int, command: LockCommand, outcome: Outcome) -> None:
        abandoned = ref in self._requests.abandoned
        self._requests.abandoned.discard(ref)
        if isinstance(outcome, Waiting):
            if not isinstance(command, Acquire | Upgrade):
                raise InvariantViolation(f"{type(command).__name__} cannot wait")
            if abandoned:
                self._cancel(command.key, outcome.attempt)
            else:
                self._requests.park(ref, command.key, outcome.attempt)
                self._emit(Parked(ref=ref, attempt=outcome.attempt))
        elif not abandoned:
            self._reply(ref, outcome)

    def _notify(self, notice: Notice) -> None:
        for ref in self._requests.unpark(notice.key):
            self._reply(ref, notice.outcome)

    def _kept_alive(self, session: SessionId) -> Outcome:
        view = self.machine.session_view(session)
        if view is None:
            return Refused(code=RefusalCode.SESSION_NOT_FOUND, name=session)
        return Done(deadline_ms=view.deadline_ms)

    def _reply(self, ref: int, outcome: Outcome) -> None:
        deadline_ms = outcome.deadline_ms if isinstance(outcome, Granted | Done) else 0
        remaining_ms = max(0, deadline_ms - self.clock.read(self._now_ms)) if deadline_ms else 0
        self._emit(Reply(ref=ref, outcome=outcome, remaining_ms=remaining_ms))

    def _applied_config(self, entry: Entry) -> None:
        for ref, index in list(self._admin.items()):
            if index == entry.index:
                del self._admin[ref]
                self._emit(AdminDone(ref=ref, configuration=self.configuration))

    def _configuration_changed(self, effect: ConfigurationChanged) -> None:
        self._emit(effect)
        present = {member.id for member in effect.configuration.members}
        for member_id in [known for known in self._versions if known not in present]:
            del self._versions[member_id]

    def _report_hash(self, index: LogIndex) -> None:
        state_hash = self.machine.state_hash()
        self._board.report(self.member_id, index, state_hash)
        if self._ready:
            self._judge_hashes(index)
        elif self.leader is not None and self.leader != self.member_id:
            self._emit(
                SendPeer(to=self.leader, message=HashReport(index=index, state_hash=state_hash))
            )

    def _judge_hashes(self, index: LogIndex) -> None:
        if not self._ready:
            return
        for member_id in self._board.diverged(index, self.configuration.voters):
            if member_id == self.member_id:
                self._stop(f"the state at index {index} differs from a quorum's")
                return
            self._emit(SendPeer(to=member_id, message=Diverged(index=index)))

    def _maybe_snapshot(self, raft: RaftCore, last: Entry) -> None:
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
                configuration=raft.configuration,
            ),
            data=_encode(ReplicaState(machine=self.machine.snapshot(), genesis=self._genesis)),
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

    def _submit_read(self, ref: int) -> None:
        if self.raft is None or self.state != "member":
            self._reject(ref, _STATE_REASONS.get(self.state, RejectReason.UNINITIALISED))
        else:
            self._raft(ReadIndex(now_ms=self._now_ms, ref=ref))

    def _await_applied(self, ref: int, index: LogIndex) -> None:
        if self.raft is None or self.state != "member":
            self._reject(ref, _STATE_REASONS.get(self.state, RejectReason.UNINITIALISED))
        elif self.raft.applied_index >= index:
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
        raft = self.raft
        if raft is None or self.state != "member":
            self._reject(event.ref, _STATE_REASONS.get(self.state, RejectReason.UNINITIALISED))
        elif not self._ready:
            self._reject(event.ref, RejectReason.NOT_LEADER)
        elif self._in_effect(raft.configuration, event):
            self._emit(AdminDone(ref=event.ref, configuration=raft.configuration))
        elif self._name_is_taken(raft, event):
            self._reject(event.ref, RejectReason.NAME_TAKEN)
        else:
            known = raft.configuration.member(event.member.id)
            member = event.member
            if known is not None and event.operation is not ConfigOperation.UPDATE:
                member = known
            change = ConfigChange(operation=event.operation, member=member)
            self._propose_config(event.ref, change, event.expected_config_index)

    def _in_effect(self, configuration: Configuration, event: ChangeMembership) -> bool:
        """A repeated call answers like the first."""
        known = configuration.member(event.member.id)
        match event.operation:
            case ConfigOperation.ADD_LEARNER:
                return known is not None and _same_place(known, event.member)
            case ConfigOperation.UPDATE:
                return known is not None and _same_place(known, event.member)
            case ConfigOperation.PROMOTE:
                return known is not None and known.voter
            case ConfigOperation.DEMOTE:
                return known is not None and not known.voter
            case ConfigOperation.REMOVE:
                return known is None and event.member.id in configuration.removed
            case _:
                assert_never(event.operation)

    def _name_is_taken(self, raft: RaftCore, event: ChangeMembership) -> bool:
        """A name belongs to its member while that member answers."""
        if event.operation not in (ConfigOperation.ADD_LEARNER, ConfigOperation.UPDATE):
            return False
        standings = self._standings(raft)
        return any(
            other.name == event.member.name
            and other.id != event.member.id
            and standings[other.id].silent_ms < self._options.name_takeover_ms
            for other in raft.configuration.members
        )

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
        if full and self._ready:
            self._raft(TransferLeadership(now_ms=self._now_ms))

    def _reject(self, ref: int, reason: RejectReason) -> None:
        self._emit(Rejected(ref=ref, reason=reason, leader=self.leader))

    def _reject_all(self, reason: RejectReason) -> None:
        """End every request that waits for an outcome of this member as a leader."""
        unproposed, proposed = self._requests.drain()
        lost = reason is RejectReason.LEADERSHIP_LOST
        for ref in unproposed:
            self._reject(ref, RejectReason.NOT_LEADER if lost else reason)
        for ref in [*proposed, *self._admin]:
            self._reject(ref, reason)
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
_STATE_REASONS = {
    "removed": RejectReason.REMOVED,
    "stopped": RejectReason.STOPPED,
}


def _same_place(known: Member, wanted: Member) -> bool:
    return (known.name, known.peer_url, known.client_url) == (
        wanted.name,
        wanted.peer_url,
        wanted.client_url,
    )
