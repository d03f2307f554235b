"""A replica: one member without its I/O, from an empty disk to a member of a cluster and beyond.

What it guarantees about belonging (what it guarantees as a member is in `participant`):

- An empty member belongs to no cluster until a bootstrap that lists its very id, or a message that
  is addressed to its very id; it adopts at most one cluster, durably, before it votes.
- Messages of another cluster, to another id or from a removed id change nothing.
- A removed member serves nothing, also after a restart.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from distsync_node.cluster.ring_state import EMPTY_RING, RingState
from distsync_node.errors import InvariantViolation
from distsync_node.locks.machine import LockMachine
from distsync_node.raft.core import RaftCore
from distsync_node.raft.types import (
    Configuration,
    ConfigurationChanged,
    HardState,
    LogIndex,
    Member,
    MemberId,
    RaftOptions,
    RecoveredState,
    Snapshot,
)
from distsync_node.replica.clock import LeaderClock
from distsync_node.replica.genesis import blank_snapshot, founders_digest, genesis_snapshot
from distsync_node.replica.participant import Participant, Random
from distsync_node.replica.types import (
    AdminDone,
    Answer,
    AnswerCode,
    AnswerEnvelope,
    AwaitApplied,
    Bootstrap,
    ChangeMembership,
    DiskFullChanged,
    Envelope,
    Initialise,
    ParticipantEvent,
    PeerMessage,
    PeerMessages,
    ReceiveAnswer,
    ReceiveEnvelope,
    Rejected,
    RejectReason,
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    ReplicaState,
    StorageInitialised,
    Submit,
    SubmitRead,
)

State = Literal["uninitialised", "joining", "member", "removed", "stopped"]


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
        self.disk_full = False
        self._options = options
        self._raft_options = raft_options
        self._rng = rng
        self._now_ms = now_ms
        self._effects: list[ReplicaEffect] = []
        self._removed = removed
        self._initialising: Snapshot | None = None
        self._bootstrap_refs: list[int] = []
        self._blank_machine = LockMachine()
        self._blank_clock = LeaderClock(0, now_ms)
        self.participant: Participant | None = None
        if recovered is not None:
            self._start(recovered)

    # --- Reading ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """How far this member is."""
        if self.participant is not None:
            return self.participant.state
        if self._removed:
            return "removed"
        return "uninitialised" if self._initialising is None else "joining"

    @property
    def raft(self) -> RaftCore | None:
        """The consensus core, once this member belongs to a cluster."""
        return self.participant.raft if self.participant is not None else None

    @property
    def machine(self) -> LockMachine:
        """The lock state as applied here."""
        return self.participant.machine if self.participant is not None else self._blank_machine

    @property
    def clock(self) -> LeaderClock:
        """Leader time as known here."""
        return self.participant.clock if self.participant is not None else self._blank_clock

    @property
    def cluster_id(self) -> str:
        """The cluster this member belongs to, or an empty string."""
        return self.participant.cluster_id if self.participant is not None else ""

    @property
    def genesis(self) -> tuple[Member, ...]:
        """The founders of the cluster, as far as this member knows them."""
        if self.participant is not None:
            return self.participant.genesis
        if self._initialising is not None:
            return msgspec.msgpack.decode(self._initialising.data, type=ReplicaState).genesis
        return ()

    @property
    def founders(self) -> int:
        """A digest of `genesis`; 0 while it is unknown."""
        if self.participant is not None:
            return self.participant.founders
        return founders_digest(self.genesis)

    @property
    def cluster_version(self) -> int:
        """The version by which entries are applied."""
        if self.participant is None:
            return self._options.supported_versions[0]
        return self.participant.cluster_version

    @property
    def ring(self) -> RingState:
        """The ring as applied here."""
        return self.participant.serving.ring if self.participant is not None else EMPTY_RING

    @property
    def leader(self) -> MemberId | None:
        """The leader this member knows of; one that was removed or has stopped knows none."""
        if self.participant is None or self.participant.state != "member":
            return None
        return self.participant.raft.leader

    @property
    def is_ready_leader(self) -> bool:
        """This member leads and its no-op is applied."""
        return self.participant is not None and self.participant.is_ready_leader

    @property
    def is_idle_leader(self) -> bool:
        """This member leads and no entry of its commands is in flight."""
        return self.participant is not None and self.participant.is_idle_leader

    @property
    def configuration(self) -> Configuration:
        """The membership in force here."""
        if self.participant is None:
            return Configuration(index=LogIndex(0), members=())
        return self.participant.raft.configuration

    def envelope(self, to: MemberId, messages: tuple[PeerMessage, ...]) -> Envelope:
        """Wrap messages for a member."""
        return Envelope(
            cluster_id=self.cluster_id,
            sender=self.member_id,
            to=to,
            versions=self._options.supported_versions,
            messages=messages,
            genesis=self.founders,
        )

    def next_deadline_ms(self) -> int | None:
        """Return the local time at which a Wake is wanted."""
        return self.participant.next_deadline_ms() if self.participant is not None else None

    def check_invariants(self) -> None:
        """Raise InvariantViolation if this replica contradicts itself."""
        if self.participant is not None:
            self.participant.check_invariants()

    # --- Stepping -----------------------------------------------------------------------------

    def step(self, event: ReplicaEvent) -> list[ReplicaEffect]:
        """Take one event; return what is to be done, in order."""
        self._now_ms = event.now_ms
        effects = self._effects = []
        match event:
            case ReceiveEnvelope():
                self._receive_envelope(event.envelope)
            case ReceiveAnswer():
                self._receive_answer(event.answer)
            case Bootstrap():
                self._bootstrap(event)
            case StorageInitialised():
                self._initialised()
            case _:
                self._participate(event)
        return effects

    def _participate(self, event: ParticipantEvent) -> None:
        if isinstance(event, DiskFullChanged):
            self.disk_full = event.full
        if self.participant is not None:
            self.participant.step(event, self._effects)
        elif isinstance(event, Submit | SubmitRead | AwaitApplied | ChangeMembership):
            self._reject(
                event.ref,
                RejectReason.REMOVED if self._removed else RejectReason.UNINITIALISED,
            )

    def _reject(self, ref: int, reason: RejectReason) -> None:
        self._effects.append(Rejected(ref=ref, reason=reason, leader=self.leader))

    # --- Belonging to a cluster ---------------------------------------------------------------

    def _start(self, recovered: RecoveredState) -> None:
        self.participant = Participant(
            recovered,
            options=self._options,
            raft_options=self._raft_options,
            rng=self._rng,
            now_ms=self._now_ms,
            removed=self._removed,
            disk_full=self.disk_full,
        )

    def _bootstrap(self, event: Bootstrap) -> None:
        if self.state == "removed":
            self._reject(event.ref, RejectReason.REMOVED)
        elif self.participant is not None:
            self._bootstrap_again(event, self.participant.cluster_id, self.participant.genesis)
        elif self._initialising is not None:
            self._bootstrap_again(event, self._initialising.meta.cluster_id, self.genesis)
        elif not any(member.id == self.member_id for member in event.members):
            self._reject(event.ref, RejectReason.NOT_LISTED)
        elif len({member.id for member in event.members}) != len(event.members):
            self._reject(event.ref, RejectReason.CONFIG_CONFLICT)
        else:
            self._bootstrap_refs.append(event.ref)
            version = self._options.supported_versions[0]
            self._initialise(genesis_snapshot(event.cluster_id, event.members, version))

    def _bootstrap_again(
        self, event: Bootstrap, cluster_id: str, genesis: tuple[Member, ...]
    ) -> None:
        """The same genesis again is fine; a member that joined knows only the cluster's id."""
        known = tuple(member.id for member in genesis)
        asked = tuple(member.id for member in event.members)
        if cluster_id != event.cluster_id or (known and known != asked):
            self._reject(event.ref, RejectReason.ALREADY_BOOTSTRAPPED)
        elif self.participant is None:
            self._bootstrap_refs.append(event.ref)
        else:
            self._effects.append(AdminDone(ref=event.ref, configuration=self.configuration))

    def _initialise(self, snapshot: Snapshot) -> None:
        self._initialising = snapshot
        hard_state = HardState(term=snapshot.meta.term, vote=None)
        self._effects.append(Initialise(snapshot=snapshot, hard_state=hard_state))

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
        self._effects.append(ConfigurationChanged(configuration=self.configuration))
        for ref in self._bootstrap_refs:
            self._effects.append(AdminDone(ref=ref, configuration=self.configuration))
        self._bootstrap_refs = []

    def _adopt(self, cluster_id: str) -> None:
        """A member of that cluster knows this very id: join it with an empty log."""
        if self._initialising is None:
            self._initialise(blank_snapshot(cluster_id, self._options.supported_versions[0]))

    # --- Envelopes ----------------------------------------------------------------------------

    def _receive_envelope(self, envelope: Envelope) -> None:
        code = self._judge(envelope)
        answer = Answer(
            code=code,
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            config_index=self.configuration.index,
            versions=self._options.supported_versions,
        )
        self._effects.append(AnswerEnvelope(answer=answer))
        if code is not AnswerCode.ACCEPTED:
            return
        if self.participant is None:
            self._adopt(envelope.cluster_id)
        else:
            self._hear(self.participant, envelope.sender, envelope.versions, envelope.messages)

    def _judge(self, envelope: Envelope) -> AnswerCode:
        if self.state == "stopped" or (self._removed and self.participant is None):
            return AnswerCode.NOT_SERVING
        if envelope.to != self.member_id:
            return AnswerCode.MEMBER_MISMATCH
        cluster_id = self.cluster_id
        if self._initialising is not None:
            cluster_id = self._initialising.meta.cluster_id
        if cluster_id and cluster_id != envelope.cluster_id:
            return AnswerCode.CLUSTER_MISMATCH
        founders = self.founders
        if founders and envelope.genesis and founders != envelope.genesis:
            return AnswerCode.CLUSTER_MISMATCH
        if envelope.sender in self.configuration.removed:
            return AnswerCode.SENDER_REMOVED
        return AnswerCode.ACCEPTED

    def _receive_answer(self, answer: Answer) -> None:
        participant = self.participant
        if participant is None or answer.cluster_id != participant.cluster_id:
            return
        if answer.code is AnswerCode.SENDER_REMOVED:
            participant.removed_by(answer.config_index, self._now_ms, self._effects)
        elif answer.code is AnswerCode.ACCEPTED:
            self._hear(participant, answer.member_id, answer.versions, answer.messages)

    def _hear(
        self,
        participant: Participant,
        sender: MemberId,
        versions: tuple[int, int],
        messages: tuple[PeerMessage, ...],
    ) -> None:
        participant.versions[sender] = versions
        event = PeerMessages(now_ms=self._now_ms, sender=sender, messages=messages)
        participant.step(event, self._effects)
